"""Encodes the images of two slices at once, where that is faster and gives the same bits.

With images of 256 x 256 pixels PyTorch's operations are so small that calling them and sharing them out to threads
takes a good part of the time: one after the other, two images took 1.15 times as long as at once, measured on two cores
with a model of 5.7 M parameters. With 512 x 512 pixels it was 1.01.

Whether an image's result is the same to the last bit in a batch is up to the kernels that PyTorch chooses, by shape,
threads and processor. So it is looked at before it is relied on: once in a process for each model and number of threads
two slices are encoded both ways. Only in float32: another order of adding shows at once among half a million numbers
there, whereas bfloat16's rounding was seen to hide it in most slices.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from etsam_zarr.sam.encode_ahead import Features
from etsam_zarr.sam.frames import Frames

MOST_PIXELS = 256 * 256
"""Of an image for which pairs are tried."""

Encode = Callable[..., Features]
"""Makes the features of the frames that it is given, as one batch."""


class EqualInPairs:
    """Which models give the same bits in pairs, with how many threads."""

    def __init__(self) -> None:
        self._found: weakref.WeakKeyDictionary[torch.nn.Module, dict[int, bool]] = weakref.WeakKeyDictionary()

    def of(self, model: torch.nn.Module) -> dict[int, bool]:
        """Return what is known of a model by number of threads, to be added to."""
        return self._found.setdefault(model, {})


EQUAL_IN_PAIRS = EqualInPairs()
"""What this process has seen."""


class EncodedPairs:
    """Slices whose images are encoded two by two if that makes no difference, else one by one.

    Parameters
    ----------
    encode
        Makes the features of frames as one batch.
    frames
        Where the slices come from.
    order
        The slices, in the order in which they are taken.
    equal
        What is known of the model; see :class:`EqualInPairs`.
    """

    def __init__(self, encode: Encode, frames: Frames, order: Iterable[int], equal: dict[int, bool]) -> None:
        self._encode, self._frames, self._order = encode, frames, iter(order)
        self._equal, self._threads = equal, torch.get_num_threads()
        self._encoded: dict[int, Features] = {}
        self.seconds_waited = 0.0
        """Time spent waiting for slices."""

    def take(self, z: int) -> Features:
        """Return the features of slice ``z``, the next one of the order."""
        if not self._encoded:
            self._encode_next()
        return self._encoded.pop(z)

    def _encode_next(self) -> None:
        numbers = list(islice(self._order, 1 if self._equal.get(self._threads) is False else 2))
        asked = time.perf_counter()
        frames = [self._frames[number] for number in numbers]
        self.seconds_waited += time.perf_counter() - asked
        self._encoded = dict(zip(numbers, self._features(frames), strict=True))

    def _features(self, frames: Sequence[torch.Tensor]) -> Sequence[Features]:
        if len(frames) == 1:
            return [self._encode(*frames)]
        batch = self._encode(*frames)
        together: list[Features] = [_one_of(batch, index) for index in range(2)]
        if self._threads in self._equal:
            return together
        alone = [self._encode(frame) for frame in frames]
        self._equal[self._threads] = _same(together, alone)
        return alone


def _one_of(value: Any, index: int) -> Any:  # noqa: ANN401 - tensors, nested as sam2 does
    """Return one image's part of the features of a batch."""
    if isinstance(value, torch.Tensor):
        return value[index : index + 1]
    if isinstance(value, Mapping):
        return {name: _one_of(part, index) for name, part in value.items()}
    return type(value)(_one_of(part, index) for part in value)


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - tensors, nested as sam2 does
    """Say whether features are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(part, other[name]) for name, part in one.items())
    return len(one) == len(other) and all(map(_same, one, other))
