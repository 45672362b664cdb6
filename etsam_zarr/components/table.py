"""What is known of every component: size, place, extent. Filters on it, and the table as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Shape3

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CUBIC_ANGSTROM_PER_CUBIC_NM = 1000.0


@dataclass(frozen=True)
class ComponentTable:
    """Statistics of components, one row each, ordered by the components' first voxels in raster order.

    The component in row i has the id i + 1.
    """

    shape: Shape3
    """Of the volume, in voxels."""
    voxels: Ids
    """Number of voxels, shape (components,)."""
    first: Ids
    """Raster index of the first voxel, shape (components,)."""
    lower: Ids
    """First index of the bounding box along z, y, x, shape (components, 3)."""
    upper: Ids
    """Index after the last of the bounding box along z, y, x, shape (components, 3)."""
    sums: Ids
    """Sum of the voxels' indices along z, y, x, shape (components, 3)."""

    def __len__(self) -> int:
        return self.voxels.size

    @property
    def slices(self) -> Ids:
        """Z extent of the bounding boxes."""
        extent: Ids = self.upper[:, 0] - self.lower[:, 0]
        return extent

    @property
    def centroids(self) -> npt.NDArray[np.float64]:
        """Mean index of the voxels along z, y, x, shape (components, 3)."""
        means: npt.NDArray[np.float64] = self.sums / self.voxels[:, None]
        return means

    @property
    def touches_border(self) -> Flags:
        """Whether a component reaches an outer face of the volume and may go on beyond it."""
        flags: Flags = ((self.lower == 0) | (self.upper == np.array(self.shape))).any(axis=1)
        return flags

    def passing(
        self,
        *,
        min_slices: int = 0,
        min_voxels: int = 0,
        min_volume: float = 0.0,
        voxel_size: tuple[float, float, float] | None = None,
    ) -> Flags:
        """Return which components are large enough in every respect.

        Parameters
        ----------
        min_slices
            Least z extent of the bounding box, in slices.
        min_voxels
            Least number of voxels.
        min_volume
            Least volume in nm^3; needs ``voxel_size``.
        voxel_size
            Edge lengths of a voxel along z, y, x in angstrom.

        Raises
        ------
        SettingsError
            A limit is negative, or a volume is asked for and the voxel size is not known.
        """
        limits = {"--min-slices": min_slices, "--min-voxels": min_voxels, "--min-volume": min_volume}
        for flag, value in limits.items():
            if value < 0:
                raise SettingsError(f"{flag} is {value}; it takes 0 (no limit) or more.")
        keep: Flags = (self.slices >= min_slices) & (self.voxels >= min_voxels)
        if min_volume > 0:
            keep &= self.voxels * _cubic_nm(voxel_size) >= min_volume
        return keep

    def select(self, keep: Flags) -> ComponentTable:
        """Return the rows where ``keep`` is true; ids are counted anew."""
        return ComponentTable(
            self.shape,
            self.voxels[keep],
            self.first[keep],
            self.lower[keep],
            self.upper[keep],
            self.sums[keep],
        )


def id_dtype(count: int) -> np.dtype[Any]:
    """Return the type for ``count`` instance labels: uint32, or uint64 where that is too small."""
    return np.dtype(np.uint32 if count <= np.iinfo(np.uint32).max else np.uint64)


def write_table(
    table: ComponentTable,
    path: Path,
    *,
    voxel_size: tuple[float, float, float] | None,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write the table as CSV or, where the name ends in ``.parquet``, as Parquet.

    Columns: id; voxels; volume_nm3; z_start, z_stop, y_start, ... (bounding box in voxels, stop
    exclusive); slices; centroid_z_angstrom, ...; touches_border. Volume and centroid are empty where the
    voxel size is unknown.

    Parameters
    ----------
    table
        The components.
    path
        Where to; an existing file is replaced.
    voxel_size, origin
        In angstrom, along z, y, x.

    Raises
    ------
    SettingsError
        Parquet is asked for and pyarrow is not installed, or the suffix is neither.
    OutputError
        The file cannot be written.
    """
    columns = _columns(table, voxel_size, origin)
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        # zip over plain lists: numpy scalars would be written as np.int64(3).
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        # An unknown size is NaN in the arrays; in the file it is an empty field.
        write_atomically(path, text.getvalue().replace("nan", "").encode())
    elif path.suffix == ".parquet":
        write_atomically(path, _parquet(columns))
    else:
        raise SettingsError(f"The table's name {path.name!r} ends in neither .csv nor .parquet; give one of these.")


def _cubic_nm(voxel_size: tuple[float, float, float] | None) -> float:
    if voxel_size is None:
        raise SettingsError(
            "--min-volume needs the size of a voxel, and the file does not say it. Give it with --voxel-size, or use "
            "--min-voxels."
        )
    z, y, x = voxel_size
    return z * y * x / CUBIC_ANGSTROM_PER_CUBIC_NM


def _columns(
    table: ComponentTable, voxel_size: tuple[float, float, float] | None, origin: tuple[float, float, float]
) -> dict[str, npt.NDArray[Any]]:
    unknown = np.full(len(table), np.nan)
    columns: dict[str, npt.NDArray[Any]] = {
        "id": np.arange(1, len(table) + 1),
        "voxels": table.voxels,
        "volume_nm3": unknown if voxel_size is None else table.voxels * _cubic_nm(voxel_size),
    }
    for i, axis in enumerate("zyx"):
        columns[f"{axis}_start"] = table.lower[:, i]
        columns[f"{axis}_stop"] = table.upper[:, i]
    columns["slices"] = table.slices
    for i, axis in enumerate("zyx"):
        # A voxel's index names its centre, as OME-Zarr and MRC have it.
        place = unknown if voxel_size is None else table.centroids[:, i] * voxel_size[i] + origin[i]
        columns[f"centroid_{axis}_angstrom"] = place
    columns["touches_border"] = table.touches_border
    return columns


def _parquet(columns: dict[str, npt.NDArray[Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SettingsError(
            "Writing Parquet needs pyarrow, which is not installed. Install it (pip install 'etsam-zarr[parquet]'), "
            "or give the table a name that ends in .csv."
        ) from error
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), data)
    return data.getvalue()
