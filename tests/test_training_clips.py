"""Clips show the model what a run shows it, and the same ones for the same seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import training_tiny as tiny
import zarr

from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.sam.frames import to_frame
from etsam_zarr.training.clips import ClipSampler, clips_ahead
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.settings import RECIPES


@pytest.fixture
def volume(tmp_path: Path) -> TrainingVolume:
    return tiny.opened(tiny.write_pair(tmp_path), tmp_path)


def test_without_augmentation_a_clip_is_what_a_run_sees(volume: TrainingVolume) -> None:
    sampler = ClipSampler([volume], tiny.settings(empty_prompts=0.0), stage=1, image_size=64)
    clip = sampler.draw(0)
    assert clip.images.shape == (4, 1, 3, 64, 64)
    assert clip.slices[0] == 0
    assert list(np.diff(clip.slices[1:])) == [1, 1]
    assert clip.prompts.shape == (1, 1, 1, 64, 64)
    assert clip.prompts.sum() == 16 * 16  # the grid
    for number, z in enumerate(clip.slices):
        images, masks = volume.planes(Span(z, z + 1))
        assert torch.allclose(clip.images[number, 0], to_frame(images[0], 64), atol=1e-4)
        assert np.array_equal(clip.masks[number, 0].numpy(), masks[0])


def test_a_clip_depends_on_its_key_alone(volume: TrainingVolume) -> None:
    settings = tiny.settings(augmentation=RECIPES["inference"].augmentation, clips=2)
    first, second = (ClipSampler([volume], settings, stage=1, image_size=64) for _ in range(2))
    first.draw(0, 0)
    a, b, c = first.draw(7, 1), second.draw(7, 1), second.draw(8, 1)
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.masks, b.masks)
    assert a.slices == b.slices
    assert not torch.equal(a.images, c.images)


def test_a_lead_comes_before_the_same_clip(volume: TrainingVolume) -> None:
    without = ClipSampler([volume], tiny.settings(empty_prompts=0.0), stage=1, image_size=64)
    led = ClipSampler([volume], tiny.settings(empty_prompts=0.0, lead_slices=2), stage=1, image_size=64)
    leads = set()
    for key in range(12):
        plain, clip = without.draw(key), led.draw(key)
        leads.add(clip.lead)
        assert plain.lead == 0
        assert clip.slices[0] == 0
        assert clip.slices[1:] == tuple(range(plain.slices[1] - clip.lead, plain.slices[-1] + 1))
        assert clip.slices[1] >= 1
        kept = [0, *range(1 + clip.lead, len(clip.slices))]
        assert torch.equal(clip.images[kept], plain.images)
        assert torch.equal(clip.masks[kept], plain.masks)
    assert leads == {0, 1, 2}, "a clip right after the prompted slice has no room for one"


def test_stage_2_is_prompted_with_what_stage_1_found(volume: TrainingVolume, tmp_path: Path) -> None:
    logits = np.full((10, 16, 16), -5.0, np.float32)
    logits[0::4, 8:] = 5.0
    zarr.save_array(tmp_path / "logits.zarr", logits)
    volume.use_stage1(tmp_path / "logits.zarr", LogitBounds(-5.0, 5.0))
    clip = ClipSampler([volume], tiny.settings(empty_prompts=0.0), stage=2, image_size=64).draw(3)
    assert set(clip.slices[: len(clip.prompts)]) <= {0, 4, 8}
    assert not set(clip.slices[len(clip.prompts) :]) & {0, 4, 8}
    assert bool(clip.prompts[..., 40:, :].all())
    assert not bool(clip.prompts[..., :24, :].any())


def test_etsam_clips_are_consecutive_and_unprompted(volume: TrainingVolume) -> None:
    clip = ClipSampler([volume], tiny.settings(recipe="etsam", clip_slices=5), stage=1, image_size=64).draw(0)
    assert clip.slices == (0, 1, 2, 3, 4)
    assert len(clip.prompts) == 0


def test_clips_ahead_come_in_order(volume: TrainingVolume) -> None:
    sampler = ClipSampler([volume], tiny.settings(), stage=1, image_size=64)
    keys = [(number,) for number in range(5)]
    for key, clip in itertools.zip_longest(keys, clips_ahead(sampler, keys)):
        assert torch.equal(clip.images, sampler.draw(*key).images)
