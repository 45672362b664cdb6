"""Clips show the model what a run shows it, and the same ones for the same seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import training_tiny as tiny
import zarr

from etsam_zarr.frames import to_frame
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.training.clips import ClipSampler, clips_ahead
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.settings import RECIPES, Augmentation


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


def test_what_is_not_warped_is_a_flipped_cutout_voxel_by_voxel(volume: TrainingVolume) -> None:
    flips_only = Augmentation(
        flip_y=True, reverse=True, degrees=180, shear=10, zoom=(0.8, 1.2), warped=0.0, brightness=0, contrast=0
    )
    sampler = ClipSampler([volume], tiny.settings(augmentation=flips_only), stage=1, image_size=48)
    truth = [mask for _, masks in (volume.planes(Span(z, z + 1)) for z in range(10)) for mask in masks]
    found = set()
    for key in range(16):
        mask = sampler.draw(key).masks[1, 0].numpy()
        places = {
            (flip_y, flip_x, y, x)
            for plane in truth
            for flip_y, flip_x in itertools.product((1, -1), repeat=2)
            for y, x in itertools.product(range(17), repeat=2)
            if np.array_equal(plane[::flip_y, ::flip_x][y : y + 48, x : x + 48], mask)
        }
        assert len(places) == 1
        found |= places
    assert {place[:2] for place in found} == set(itertools.product((1, -1), repeat=2))
    assert len({place[2:] for place in found}) > 8


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


def test_truth_follows_the_augmented_image(volume: TrainingVolume) -> None:
    """Membranes are dark: wherever a clip is turned, its truth is darker than the rest."""
    augmentation = Augmentation(flip_y=True, reverse=True, degrees=180, shear=10, zoom=(0.9, 1.1))
    sampler = ClipSampler([volume], tiny.settings(augmentation=augmentation), stage=1, image_size=64)
    for key in range(6):
        clip = sampler.draw(key)
        inside = clip.images[:, :, 0][clip.masks].mean()
        outside = clip.images[:, :, 0][~clip.masks].mean()
        assert inside < outside - 0.5


def test_degraded_slices_keep_their_spectrum_but_not_their_structure(volume: TrainingVolume) -> None:
    settings = tiny.settings(augmentation=Augmentation(degraded_slices=1.0, degrees=0, shear=0, flip_x=False))
    sampler = ClipSampler([volume], settings, stage=1, image_size=64)

    def contrast_and_spread(image: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
        grey = image[0, 0]
        return float(grey[~mask[0]].mean() - grey[mask[0]].mean()), float(grey.std())

    clips = [sampler.draw(key) for key in range(8)]
    seen = np.array(
        [[contrast_and_spread(*pair) for pair in zip(clip.images, clip.masks, strict=True)] for clip in clips]
    ).mean(axis=0)
    # Prompted and first tracked slice are spared.
    assert seen[2:, 0].max() < 0.8 * seen[:2, 0].min()
    assert seen[2:, 1] == pytest.approx(seen[:2, 1].mean(), rel=0.1)


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
