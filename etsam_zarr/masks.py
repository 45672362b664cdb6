"""Binary masks as the passes over stored results read them: box by box, checked to be binary on the way."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.volume import Array, Volume

BoolArray = npt.NDArray[np.bool_]


class BoxSource(Protocol):
    """Anything three-dimensional that can be read box by box: a score view, a mask."""

    @property
    def shape(self) -> Shape3:
        """Voxels in z, y, x."""
        ...

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box, shape (z.size, y.size, x.size); None is the whole axis."""
        ...


class ArrayBox:
    """A :class:`BoxSource` over anything that is indexed like an array: numpy, Zarr, HDF5."""

    def __init__(self, array: Any) -> None:  # noqa: ANN401 - numpy, Zarr and h5py share no type
        if len(array.shape) != 3:
            raise InputError(
                f"The array has {len(array.shape)} dimensions, shape {tuple(array.shape)}; volumes have 3 (z, y, x). "
                "Give one 3-D array, or one scale level of an image."
            )
        self._array = array

    @property
    def shape(self) -> Shape3:
        """Voxels in z, y, x."""
        z, y, x = (int(n) for n in self._array.shape)
        return z, y, x

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box, shape (z.size, y.size, x.size), as a copy."""
        voxels = np.asarray(self._array[z.as_slice(), _slice(y), _slice(x)])
        # Only plain numpy gives a view of what the caller owns.
        return voxels.copy() if isinstance(self._array, np.ndarray) else voxels


class VolumeBox:
    """A :class:`BoxSource` over an opened :class:`~etsam_zarr.volume.Volume`."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    @property
    def shape(self) -> Shape3:
        """Voxels in z, y, x."""
        return self._volume.info.shape

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box, shape (z.size, y.size, x.size)."""
        return self._volume.read(z, y, x)


def as_boxes(source: Any) -> BoxSource:  # noqa: ANN401 - as above
    """Return ``source`` as a :class:`BoxSource`: a Volume, an array of any kind, or what is one already."""
    if isinstance(source, Volume):
        return VolumeBox(source)
    if hasattr(source, "read") and hasattr(source, "shape"):
        boxes: BoxSource = source
        return boxes
    return ArrayBox(source)


class BinaryMask:
    """A mask read as booleans, with the check that it holds zero and at most one other value.

    Parameters
    ----------
    source
        A Volume, a :class:`BoxSource` or an array of shape (z, y, x).
    name
        What to call it in errors: its path, or "the truth".
    any_label
        Take every value but 0 as foreground, for label images with many objects.

    Notes
    -----
    The check covers what has been read so far, by any thread, so that it costs no pass of its own.
    """

    def __init__(
        self,
        source: Any,  # noqa: ANN401 - as above
        *,
        name: str = "the mask",
        any_label: bool = False,
    ) -> None:
        self._boxes = as_boxes(source)
        self._name = name
        self._any_label = any_label
        self._lock = threading.Lock()
        self._foreground: float | None = None

    @property
    def shape(self) -> Shape3:
        """Voxels in z, y, x."""
        return self._boxes.shape

    @property
    def name(self) -> str:
        """What the mask is called in errors."""
        return self._name

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> BoolArray:
        """Return a box as booleans, shape (z.size, y.size, x.size).

        Raises
        ------
        InputError
            The mask holds more than one value beside 0 (and ``any_label`` is not set).
        """
        voxels = self._boxes.read(z, y, x)
        if voxels.dtype == np.bool_:
            return voxels
        inside: BoolArray = voxels != 0
        if not self._any_label and inside.any():
            self._check(voxels, inside)
        return inside

    def _check(self, voxels: Array, inside: BoolArray) -> None:
        value = float(voxels.ravel()[inside.argmax()])
        # The product is cheaper than sorting out the distinct values, and as strict.
        other = inside & (voxels != voxels.dtype.type(value))
        with self._lock:
            if self._foreground is None:
                self._foreground = value
            expected = self._foreground
        if other.any():
            self._refuse(value, float(voxels.ravel()[other.argmax()]))
        if value != expected:
            self._refuse(expected, value)

    def _refuse(self, one: float, another: float) -> None:
        raise InputError(
            f"{self._name} is not a binary mask: it holds {one:g} and {another:g} beside 0. Give a mask of 0 and one "
            "other value; threshold scores first (etsam-zarr threshold), or pass --any-label to take every value but "
            "0 as foreground."
        )


def require_same_shape(first: BoxSource, second: BoxSource, *, first_name: str, second_name: str) -> None:
    """Raise InputError unless both have the same shape."""
    if first.shape != second.shape:
        raise InputError(
            f"{first_name} is {_by(first.shape)} voxels, {second_name} is {_by(second.shape)} (z, y, x): they cannot "
            "be compared voxel by voxel. Give two volumes of the same grid, or resample one of them."
        )


def _slice(span: Span | None) -> slice:
    return slice(None) if span is None else span.as_slice()


def _by(shape: Shape3) -> str:
    return " x ".join(str(n) for n in shape)
