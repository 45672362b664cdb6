"""Opens volumes that lie on web servers and in object stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from etsam_zarr.errors import NoZarrError, RemoteError
from etsam_zarr.geometry import Box
from etsam_zarr.remote.address import SCHEMES, RemoteAddress, as_uri, is_remote
from etsam_zarr.remote.chunk_cache import ChunkStore, MissingChunks
from etsam_zarr.remote.chunk_shelf import DiskShelf, MemoryShelf
from etsam_zarr.remote.chunk_supply import ChunkSupply
from etsam_zarr.remote.http_store import HttpStore
from etsam_zarr.remote.s3_store import open_s3
from etsam_zarr.remote.store import RemoteStore, RetryPolicy
from etsam_zarr.roi import RoiVolume
from etsam_zarr.volume import Volume
from etsam_zarr.zarr_source import ZarrSource, open_zarr_volume
from etsam_zarr.zarr_volume import ZarrVolume


@dataclass(frozen=True)
class RemoteOptions:
    """How remote addresses are opened; of no concern for local ones."""

    s3_endpoint: str | None = None
    """Address of an S3 service that is not Amazon's."""
    s3_profile: str | None = None
    """Name of a profile in ``~/.aws``."""
    cache: Literal["memory", "none"] | Path = "none"
    """Where fetched chunks are kept: all of them in a folder or in memory, or only the layers being read, in memory."""
    missing_chunks: MissingChunks = "fill"
    """What to do about chunks that are not stored: read them as the fill value and count them, or stop."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    secrets: RemoteAddress | None = field(default=None, repr=False)
    """The address as it was given, for processes that open its shown form again; in memory only, never stored."""


_defaults: ContextVar[RemoteOptions | None] = ContextVar("how addresses are opened", default=None)


@contextlib.contextmanager
def opening_with(options: RemoteOptions) -> Iterator[None]:
    """Open addresses so within this context where nothing else is said: truths, masks and inputs of a command alike."""
    token = _defaults.set(options)
    try:
        yield
    finally:
        _defaults.reset(token)


def open_store(address: RemoteAddress, options: RemoteOptions | None = None) -> RemoteStore:
    """Return a store of what lies at an address; nothing is requested yet.

    Raises
    ------
    SettingsError
        The endpoint or profile cannot be used.
    """
    options = options or _defaults.get() or RemoteOptions()
    below: Store = HttpStore(address)
    if address.scheme == "s3":
        bucket = open_s3(address, endpoint=options.s3_endpoint, profile=options.s3_profile)
        below = ObjectStore(bucket, read_only=True)
    return RemoteStore(below, address.shown, retry=options.retry)


def open_remote(
    address: RemoteAddress,
    name: str,
    *,
    level: int = 0,
    voxel_size: tuple[float, float, float] | None = None,
    options: RemoteOptions | None = None,
) -> ZarrVolume:
    """Open the OME-Zarr image or bare array at an address; only metadata is read.

    Raises
    ------
    RemoteError
        It cannot be reached.
    InputError
        There is no volume.
    SettingsError
        An option cannot be used.
    """
    options = options or _defaults.get() or RemoteOptions()
    address = address.with_secrets_of(options.secrets)
    store = open_store(address, options)
    # Until the caller gives another shelf, what has passed is dropped.
    chunks = ChunkStore(store, MemoryShelf(lasting=False), missing=options.missing_chunks)
    try:
        volume = open_zarr_volume(ZarrSource(chunks, address.shown, name, level, voxel_size))
    except NoZarrError:
        raise NoZarrError(_explain_absence(store, address)) from None
    keep_chunks(volume, options.cache)
    return volume


def keep_chunks(volume: Volume, cache: Literal["memory", "none"] | Path, *, lasting: bool = True) -> None:
    """Say where the chunks of a remote volume are kept from now on; does nothing for a local one.

    Parameters
    ----------
    volume
        The volume, or a region of one.
    cache
        As :attr:`RemoteOptions.cache`.
    lasting
        Whether a folder keeps chunks of layers that have been passed.
    """
    supply = supply_of(volume)
    if supply is None:
        return
    if isinstance(cache, Path):
        supply.keep_on(DiskShelf(cache, supply.identity(volume.info.uri), lasting=lasting))
    else:
        supply.keep_on(MemoryShelf(lasting=cache == "memory"))


def supply_of(volume: Volume) -> ChunkSupply | None:
    """Return where the chunks of a volume, or of the one it is a region of, come from; None for local ones."""
    if isinstance(volume, RoiVolume):
        return supply_of(volume.whole)
    return volume.supply if isinstance(volume, ZarrVolume) else None


def expect_only(volume: Volume, box: Box | None) -> None:
    """Say that a volume will be read only within a box, so that nothing outside is fetched ahead; None is no limit."""
    if box is not None and isinstance(volume, ZarrVolume):
        volume.expect(box)


def secrets_of(uri: str) -> RemoteAddress | None:
    """Return what :attr:`RemoteOptions.secrets` takes for an address; None where there is nothing secret."""
    if not is_remote(as_uri(uri)) or as_uri(uri).partition("://")[0].lower() not in SCHEMES:
        return None
    address = RemoteAddress.parse(as_uri(uri))
    return address if address.query or address.user else None


def _explain_absence(store: RemoteStore, address: RemoteAddress) -> str:
    """Say why no Zarr was found at an address, by looking at what is there."""
    if store.forbidden:
        credentials = (
            "Give credentials with --s3-profile or by the usual variables (AWS_ACCESS_KEY_ID and others)"
            if address.scheme == "s3"
            else "Check the path; if it is private, give an address that carries the access (user:password@, signed)"
        )
        return (
            f"{address.shown} cannot be opened: the server answers 403 (forbidden) for every Zarr metadata file, so it "
            f"is private, or there is no Zarr at this path. {credentials}."
        )
    start = _first_bytes(address, store)
    if start is None and _no_bucket(store):
        return (
            f"There is no bucket for {address.shown}: the store answers NoSuchBucket. Check its name, and "
            "--s3-endpoint if it does not lie at Amazon."
        )
    if start is None:
        return (
            f"There is no Zarr at {address.shown}: none of zarr.json, .zgroup and .zarray is there. Check the path; it "
            "is usually that of a folder whose name ends in .zarr."
        )
    kind = "a web page" if start.lstrip()[:1] == b"<" else "a single file"
    mrc = address.path.lower().endswith((".mrc", ".rec", ".map"))
    remedy = (
        "MRC files cannot be read chunk by chunk over a network: download it, or give the OME-Zarr beside it"
        if mrc
        else "Give the address of a Zarr folder"
    )
    return f"{address.shown} is {kind}, not a Zarr. {remedy}."


def _no_bucket(store: RemoteStore) -> bool:
    """Say whether the server says that there is no bucket; zarr's store takes that for a missing key."""
    below = store.below
    if not isinstance(below, ObjectStore):
        return False
    try:
        below.store.get("zarr.json")
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no word of the bucket in it
        return "NoSuchBucket" in str(error)
    return False


def _first_bytes(address: RemoteAddress, store: RemoteStore) -> bytes | None:
    """Return the first bytes of what lies at the very address; None if there is nothing."""
    try:
        found = sync(store.get("", default_buffer_prototype(), RangeByteRequest(0, 256)))
    except RemoteError:
        return None
    return None if found is None else found.to_bytes()
