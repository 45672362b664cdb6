"""Walks of the seeded model through a few slices, whose image features are computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from tiny import texture

from etsam_zarr.geometry import Span
from etsam_zarr.sam.frames import to_frame
from etsam_zarr.sam.propagation import Propagation, SliceOutput

HEIGHT, WIDTH = 40, 48
Mask = npt.NDArray[np.bool_]


class RepeatedFrames:
    """``depth`` slices, of which only every ``period`` th differ."""

    def __init__(self, depth: int, period: int) -> None:
        self._depth = depth
        self._frames = [to_frame(plane, 256) for plane in texture((period, HEIGHT, WIDTH))]

    def __len__(self) -> int:
        return self._depth

    def __getitem__(self, z: int) -> torch.Tensor:
        return self._frames[z % len(self._frames)]


@contextlib.contextmanager
def encoding_once(predictor: Any) -> Iterator[None]:
    """Let the predictor encode equal images once: the encoder has no memory and takes most of the time."""
    encode, known = predictor.forward_image, {}

    def forward_image(images: torch.Tensor) -> Any:
        key = images.numpy().tobytes()
        if key not in known:
            known[key] = encode(images)
        return {name: list(value) if isinstance(value, list) else value for name, value in known[key].items()}

    with mock.patch.object(predictor, "forward_image", forward_image):
        yield


def blob(seed: int) -> Mask:
    """A prompt that covers about a third of a slice."""
    mask: Mask = texture((3, HEIGHT, WIDTH), seed=100 + seed)[1] > 0.15
    return mask


def prompted_walk(predictor: Any, frames: Any, prompts: tuple[int, ...]) -> Propagation:
    walk = Propagation(predictor, frames, height=HEIGHT, width=WIDTH)
    for z in prompts:
        walk.prompt(z, blob(z))
    return walk


def walked(walk: Propagation, span: Span) -> list[SliceOutput]:
    outputs: list[SliceOutput] = []
    walk.walk(span, outputs.append)
    return outputs


def logits_of(outputs: list[SliceOutput]) -> torch.Tensor:
    return torch.stack([output.native for output in outputs])
