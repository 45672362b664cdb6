"""What is changed at random in a clip is changed in its truth as well, and no more than was asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import training_tiny as tiny

from etsam_zarr.geometry import Span
from etsam_zarr.training.clips import ClipSampler
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.settings import Augmentation


@pytest.fixture
def volume(tmp_path: Path) -> TrainingVolume:
    return tiny.opened(tiny.write_pair(tmp_path), tmp_path)


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
