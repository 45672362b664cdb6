"""What a command will fetch from an address, what it has fetched, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

from etsam_zarr_cli.amounts import bytes_text
from etsam_zarr_cli.remote_options import Cache

from etsam_zarr.geometry import Span
from etsam_zarr.remote.chunk_cache import FLYING_BYTES
from etsam_zarr.remote.chunk_shelf import DiskShelf
from etsam_zarr.remote.chunk_supply import ChunkSupply, Need
from etsam_zarr.remote.volumes import supply_of
from etsam_zarr.roi import RoiVolume
from etsam_zarr.volume import Volume


def need_of(volume: Volume) -> Need | None:
    """Return what reading all of a volume will fetch; None for a local one. Asks for the sizes of some chunks.

    Raises
    ------
    RemoteError
        The address cannot be reached.
    """
    supply = supply_of(volume)
    if supply is None:
        return None
    z, y, x = volume.info.shape
    return supply.need(volume.box if isinstance(volume, RoiVolume) else (Span(0, z), Span(0, y), Span(0, x)))


def room(need: Need, cache: Cache) -> tuple[int, int]:
    """Return the most bytes that keeping fetched chunks takes, in memory and on disk."""
    # While they are on their way, and while they are being decoded.
    passing = 2 * min(FLYING_BYTES, need.most_bytes)
    most = need.most_bytes if need.known_bytes is None or not need.exact else need.known_bytes
    if isinstance(cache, Path):
        return passing, most
    return passing + (most if cache == "memory" else min(most, need.layer_most_bytes)), 0


def plan_line(need: Need, cache: Cache) -> str:
    """Say in a line what will be fetched and where it is kept.

    >>> plan_line(Need(12, 3 << 20, 2 << 20, True, 1 << 20), "none")
    'traffic    2.0 MiB in 12 chunks, as the server says; for each of three passes, as nothing is kept'
    """
    chunks = f"{need.chunks} chunks" if need.chunks != 1 else "1 chunk"
    if need.known_bytes is None:
        amount = f"at most {bytes_text(need.most_bytes)} in {chunks} (uncompressed; the server does not say more)"
    elif need.exact:
        amount = f"{bytes_text(need.known_bytes)} in {chunks}, as the server says"
    else:
        amount = (
            f"about {bytes_text(need.known_bytes)} in {chunks} (estimated from the sizes of some; at most "
            f"{bytes_text(need.most_bytes)})"
        )
    if cache == "none":
        return f"traffic    {amount}; for each of three passes, as nothing is kept"
    place = f"kept in {cache}" if isinstance(cache, Path) else "kept in memory"
    return f"traffic    {amount}; fetched once, {place}"


def summary_lines(volume: Volume) -> list[str]:
    """Say what was fetched; nothing for a local volume."""
    supply = supply_of(volume)
    if supply is None:
        return []
    count = supply.store.remote.traffic.count
    again = f", {count.retries} of them repeated" if count.retries else ""
    lines = [f"traffic    {bytes_text(count.bytes)} read in {count.requests} requests{again}"]
    missing = supply.store.missing
    if missing:
        some = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        lines.append(
            f"missing    {len(missing)} chunks are not stored and were read as the fill value: {some} "
            "(--missing-chunks error stops at them)"
        )
    return lines


def remove_default_cache(volume: Volume, *, asked_for: bool) -> None:
    """Delete the scratch folder of a finished command, unless the user named it."""
    supply = supply_of(volume)
    if supply is not None and not asked_for and isinstance(supply.store.shelf, DiskShelf):
        supply.store.shelf.remove()


def cached_bytes(supply: ChunkSupply | None) -> int:
    """Return what an earlier, interrupted command has left on disk already."""
    shelf = None if supply is None else supply.store.shelf
    return shelf.size() if isinstance(shelf, DiskShelf) else 0
