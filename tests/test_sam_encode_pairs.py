"""Encoding in pairs: in order, only where it was seen to change no bit, and looked at once.

That results of whole runs are the same to the last bit is shown in ``test_equality.py`` and ``test_resume.py``, where
models of 256 x 256 pixels encode in pairs.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
import torch
from sam_walks import HEIGHT, WIDTH, RepeatedFrames, blob, logits_of, walked

from etsam_zarr.config import Precision
from etsam_zarr.geometry import Span
from etsam_zarr.sam import propagation
from etsam_zarr.sam.encode_ahead import Features
from etsam_zarr.sam.encode_pairs import EncodedPairs, EqualInPairs
from etsam_zarr.sam.frames import to_frame
from etsam_zarr.sam.propagation import Propagation

DEPTH = 7


class _Encoder:
    """Doubles frames; where ``mixing``, a frame's features depend on its neighbour in the batch."""

    def __init__(self, *, mixing: bool) -> None:
        self._mixing = mixing
        self.batches: list[list[int]] = []

    def __call__(self, *frames: torch.Tensor) -> Features:
        self.batches.append([int(frame) for frame in frames])
        images = torch.stack(frames)[:, None]
        return images, {"levels": [2 * images, images + (images.sum() if self._mixing else 1)]}


class _Frames:
    """Frames of one number each; the slice ``missing`` cannot be read, ``slow`` takes a while."""

    def __init__(self, *, missing: int | None = None, slow: int | None = None) -> None:
        self._missing, self._slow = missing, slow

    def __len__(self) -> int:
        return DEPTH

    def __getitem__(self, z: int) -> torch.Tensor:
        if z == self._missing:
            raise OSError(f"slice {z} is not there")
        if z == self._slow:
            time.sleep(0.2)
        return torch.tensor(float(z))


def _pairs(encoder: _Encoder, known: Any, frames: _Frames | None = None, order: Any = range(DEPTH)) -> EncodedPairs:
    return EncodedPairs(encoder, frames or _Frames(), order, known)


@pytest.mark.parametrize("mixing", [False, True])
def test_each_slice_gets_the_features_that_it_has_alone(mixing: bool) -> None:
    encoder = _Encoder(mixing=mixing)
    pairs = _pairs(encoder, {}, order=[0, 1, 2, 4, 5])
    for z in (0, 1, 2, 4, 5):
        images, found = pairs.take(z)
        assert images.tolist() == [[z]]
        assert [level.tolist() for level in found["levels"]] == [[[2 * z]], [[z + (z if mixing else 1)]]]
    looked_at = [[0, 1], [0], [1]]
    assert encoder.batches == [*looked_at, *([[2], [4], [5]] if mixing else [[2, 4], [5]])]


def test_it_is_looked_at_once_for_each_model_and_number_of_threads() -> None:
    encoder, known = _Encoder(mixing=False), EqualInPairs()
    model = torch.nn.Identity()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            _pairs(encoder, known.of(model)).take(0)
    finally:
        torch.set_num_threads(before)
    assert encoder.batches == [[0, 1], [0], [1]] * 2 + [[0, 1]]
    assert known.of(model) == {1: True, 2: True}
    assert known.of(torch.nn.Identity()) == {}, "another model"


def test_what_is_known_of_a_model_goes_with_it() -> None:
    known = EqualInPairs()
    model = torch.nn.Identity()
    known.of(model)[1] = True
    del model
    gc.collect()
    assert len(known._found) == 0


def test_a_slice_that_cannot_be_read_is_an_error() -> None:
    pairs = _pairs(_Encoder(mixing=False), {}, _Frames(missing=3))
    assert [int(pairs.take(z)[0]) for z in (0, 1)] == [0, 1]
    with pytest.raises(OSError, match="slice 3 is not there"):
        pairs.take(2)


def test_waiting_for_slices_counts() -> None:
    pairs = _pairs(_Encoder(mixing=False), {}, _Frames(slow=3))
    pairs.take(0)
    pairs.take(1)
    before = pairs.seconds_waited
    pairs.take(2)
    assert pairs.seconds_waited - before > 0.1


def _walk(predictor: Any, precision: Precision = "float32") -> Propagation:
    frames = RepeatedFrames(DEPTH, period=DEPTH)
    walk = Propagation(predictor, frames, height=HEIGHT, width=WIDTH, precision=precision)
    for z in (0, 3):
        walk.prompt(z, blob(z))
    return walk


def test_a_walk_in_pairs_equals_one_that_encodes_slice_by_slice(
    seeded_predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk that looks whether pairs are equal here, one that knows it, and one that was told that they are not."""
    expected = logits_of(walked(_walk(seeded_predictor), Span(0, DEPTH)))
    known = EqualInPairs()
    monkeypatch.setattr(propagation, "EQUAL_IN_PAIRS", known)
    batches: list[int] = []
    encode = seeded_predictor.forward_image

    def forward_image(images: torch.Tensor) -> Any:
        batches.append(len(images))
        return encode(images)

    monkeypatch.setattr(seeded_predictor, "forward_image", forward_image)

    def batches_of_a_walk() -> list[int]:
        walk = _walk(seeded_predictor)
        batches.clear()  # of the prompts
        with walk.encoding(Span(0, DEPTH), ahead=False):
            found = logits_of(walked(walk, Span(0, DEPTH)))
        assert torch.equal(found, expected)
        return list(batches)

    # Without the two prompted slices there are five.
    looked_at = batches_of_a_walk()
    equal = known.of(seeded_predictor)[torch.get_num_threads()]
    assert looked_at == ([2, 1, 1, 2, 1] if equal else [2, 1, 1, 1, 1, 1])
    assert batches_of_a_walk() == ([2, 2, 1] if equal else [1] * 5)
    known.of(seeded_predictor)[torch.get_num_threads()] = False
    assert batches_of_a_walk() == [1] * 5


def test_bfloat16_is_encoded_slice_by_slice(seeded_predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding would hide in the slices that are looked at what shows in others."""
    known = EqualInPairs()
    monkeypatch.setattr(propagation, "EQUAL_IN_PAIRS", known)
    walk = _walk(seeded_predictor, "bfloat16")
    with walk.encoding(Span(0, 2), ahead=False):
        walked(walk, Span(0, 2))
    assert known.of(seeded_predictor) == {}


def _features(predictor: Any, images: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = predictor.forward_image(images)["vision_features"]
    return features


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_one_look_tells_for_all_slices(threads: int, seeded_predictor: Any) -> None:
    """In float32: whatever the images, they are equal in pairs if the first ones are."""
    random = np.random.default_rng(7)
    noise = random.normal(size=(24, 256, 256)).astype(np.float32)
    kinds = (noise, np.zeros_like(noise), np.cumsum(noise, axis=1) / 30, np.clip(0.2 * noise + 0.5, 0, 1))
    frames = [to_frame(kinds[kind][z], 256) for z, kind in enumerate(random.integers(4, size=len(noise)))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            alone = [_features(seeded_predictor, frame[None]) for frame in frames]
            pairs = [torch.stack(frames[z : z + 2]) for z in range(0, len(frames), 2)]
            at_once = [image[None] for pair in pairs for image in _features(seeded_predictor, pair)]
    finally:
        torch.set_num_threads(before)
    equal = [torch.equal(one, other) for one, other in zip(alone, at_once, strict=True)]
    assert all(equal[:2]) == all(equal)
