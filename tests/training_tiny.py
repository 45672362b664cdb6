"""A model and volumes so small that training steps take a tenth of a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import yaml
from scipy import ndimage

from etsam_zarr.model_config import BUNDLED_FOLDER, ModelConfig, read_model_config
from etsam_zarr.training.pairs import Pair, TrainingVolume
from etsam_zarr.training.settings import RECIPES, Augmentation, TrainSettings

SHAPE = (10, 64, 64)


def write_model(folder: Path) -> str:
    """Write a config of 64-pixel images and return its path."""
    content: Any = yaml.safe_load((BUNDLED_FOLDER / "demo-256.yaml").read_text())
    model = content["model"]
    model["image_size"] = 64
    model["image_encoder"]["trunk"].update(
        embed_dim=16, stages=[1, 1, 2, 1], global_att_blocks=[3], window_pos_embed_bkg_spatial_size=[4, 4]
    )
    model["image_encoder"]["neck"].update(d_model=64, backbone_channel_list=[128, 64, 32, 16])
    model["image_encoder"]["neck"]["position_encoding"]["num_pos_feats"] = 64
    attention = model["memory_attention"]
    attention.update(d_model=64, num_layers=1)
    attention["layer"].update(d_model=64, dim_feedforward=128)
    for name in ("self_attention", "cross_attention"):
        attention["layer"][name].update(embedding_dim=64, feat_sizes=[4, 4])
    attention["layer"]["cross_attention"]["kv_in_dim"] = 16
    memory = model["memory_encoder"]
    memory.update(in_dim=64, out_dim=16)
    memory["position_encoding"]["num_pos_feats"] = 16
    memory["mask_downsampler"]["embed_dim"] = 64
    memory["fuser"]["layer"]["dim"] = 64
    path = folder / "tiny-64.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def config(folder: Path) -> ModelConfig:
    return read_model_config(write_model(folder))


def settings(**changes: Any) -> TrainSettings:
    """Return fast settings without augmentation."""
    plain = Augmentation(flip_x=False, flip_y=False, reverse=False, degrees=0, shear=0, brightness=0, contrast=0)
    defaults: dict[str, Any] = {
        "augmentation": plain, "clip_slices": 3, "steps_per_epoch": 2, "epochs": 2, "warmup_steps": 1,
        "learning_rate": 1e-3, "grid_interval": 4, "far_prompts": 0.0,
    }  # fmt: skip
    return dataclasses.replace(RECIPES["inference"], **(defaults | changes))


def write_pair(folder: Path, seed: int = 0, *, suffix: str = "") -> Pair:
    """Write blobs with dark shells as MRC, and the shells as mask."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (3, 6, 6), mode="wrap")
    mask = np.abs(field) < 0.25 * field.std()
    volume = (0.3 * rng.standard_normal(SHAPE) - mask).astype(np.float32)
    paths = [folder / f"{name}{seed}{suffix}.mrc" for name in ("volume", "mask")]
    for path, content in zip(paths, (volume, mask.astype(np.int8)), strict=True):
        with mrcfile.new(path, content) as file:
            file.voxel_size = 10.0
    return Pair(str(paths[0]), str(paths[1]))


def opened(pair: Pair, folder: Path) -> TrainingVolume:
    return TrainingVolume(pair, normalize_method="percentile", facts_folder=folder / "facts")
