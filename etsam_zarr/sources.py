"""Opens a volume, whatever it is stored as: the content decides, not the name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from zarr.storage import LocalStore

from etsam_zarr.errors import InputError, InputNotFoundError, SettingsError
from etsam_zarr.mask_union import UnionVolume
from etsam_zarr.mrc.read import MrcVolume
from etsam_zarr.portal.address import PREFIX
from etsam_zarr.portal.search import Found, resolve
from etsam_zarr.remote.address import RemoteAddress, as_uri, is_remote
from etsam_zarr.remote.volumes import RemoteOptions, open_remote
from etsam_zarr.volume import Volume
from etsam_zarr.zarr_source import ZarrSource, open_zarr_volume

_SUFFIXES = (".ome.zarr", ".zarr", ".mrcs", ".mrc", ".rec", ".map", ".preali", ".ali", ".st")

# First bytes that tell what a file is instead of an MRC, and what to do about it.
_COMPRESSED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz")}
_OTHER_KINDS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
    b"II+\x00": "a TIFF",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
}


def open_volume(
    uri: str | Path,
    *,
    level: int = 0,
    voxel_size: tuple[float, float, float] | None = None,
    remote: RemoteOptions | None = None,
) -> Volume:
    """Open an MRC file, an OME-Zarr image (0.4, 0.5) or a bare Zarr array without reading its voxels.

    Parameters
    ----------
    uri
        Path of the file or folder, or an address: ``https://``, ``http://`` or ``s3://`` (Zarr only), or one of the
        CryoET Data Portal (:mod:`etsam_zarr.portal.address`).
    level
        Which level of an OME-Zarr image, 0 being the finest.
    voxel_size
        Edge lengths of a voxel in angstrom, z, y, x, that replace what is stored.
    remote
        How to open an address.

    Raises
    ------
    InputNotFoundError
        There is nothing at the path.
    RemoteError
        What lies at the address cannot be reached.
    InputError
        What is there cannot be read as a volume; the message says why and what to do.
    SettingsError
        ``voxel_size`` or ``level`` is out of range.
    """
    if voxel_size is not None and not all(0 < size < float("inf") for size in voxel_size):
        raise SettingsError(f"A voxel size of {voxel_size} A is out of range: each edge must be above 0.")
    if level < 0:
        raise SettingsError(f"Level {level} is out of range: the finest level is 0.")
    uri = as_uri(uri)
    meant = resolve(uri)
    if meant is not None:
        return _open_meant(meant, level=level, voxel_size=voxel_size, remote=remote)
    if is_remote(uri):
        address = RemoteAddress.parse(uri)
        return open_remote(address, base_name(address.path), level=level, voxel_size=voxel_size, options=remote)
    path = Path(uri.removeprefix("file://")).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{path} cannot be reached: {error.strerror}. Check the path and its permissions.") from error
    if not exists:
        raise InputNotFoundError(
            f"There is nothing at {path}. Check the spelling, and the current folder if the path is relative."
        )
    if path.is_dir():
        return open_zarr_volume(
            ZarrSource(LocalStore(path, read_only=True), str(path), base_name(path), level, voxel_size)
        )
    if level != 0:
        raise InputError(f"{path} is a single file, so it has only level 0, not {level}. Leave out --level.")
    _refuse_other_kinds(path)
    return MrcVolume(path, name=base_name(path), voxel_size=voxel_size)


def _open_meant(
    meant: Found, *, level: int, voxel_size: tuple[float, float, float] | None, remote: RemoteOptions | None
) -> Volume:
    """Open what an address of the portal means, with the portal's name and ids."""
    with contextlib.ExitStack() as opened:
        volumes = [
            opened.enter_context(open_volume(place, level=level, voxel_size=voxel_size, remote=remote))
            for place in meant.places
        ]
        volume = volumes[0] if len(volumes) == 1 else UnionVolume(volumes)
        opened.pop_all()
    volume.info = dataclasses.replace(volume.info, name=meant.name or volume.info.name, portal=tuple(meant.ids.items()))
    return volume


def as_place(text: str) -> Path | str:
    """Return a local path as a Path and an address as it is; a Path would lose one of its slashes.

    >>> as_place("s3://bucket/a.zarr"), as_place("portal:8354"), as_place("a/b.mrc") == Path("a/b.mrc")
    ('s3://bucket/a.zarr', 'portal:8354', True)
    """
    return text if "://" in text or text.startswith(PREFIX) else Path(text)


def base_name(uri: str | Path) -> str:
    """Return the last part of a path without its known suffix, and only that.

    >>> base_name("data/tomo_10.5A.mrc"), base_name("a/b.ome.zarr/"), base_name("notes.txt")
    ('tomo_10.5A', 'b', 'notes.txt')
    """
    name = os.path.basename(str(uri).rstrip("/\\"))  # noqa: PTH119 - also for addresses
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _refuse_other_kinds(path: Path) -> None:
    """Refuse what is surely no MRC with the name of what it is."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if not start:
        raise InputError(f"{path} is empty (0 bytes). Copy or download it again.")
    for magic, (kind, program) in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{path} is compressed ({kind}), so its slices cannot be read one by one. Decompress it "
                f"first, for example with '{program} --keep', and give the result."
            )
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {kind}, not an MRC. Give the tomogram as MRC or OME-Zarr.")
    text = _text_kind(start)
    if text is not None:
        raise InputError(
            f"{path} is {text}, not an MRC; often this is what a failed download leaves. Download the tomogram again."
        )


def _text_kind(start: bytes) -> str | None:
    lower = start.lstrip().lower()
    if lower.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    # An MRC header holds zero bytes from its first small integer on; text holds none.
    is_text = b"\x00" not in start and all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
    return "a text file" if is_text else None
