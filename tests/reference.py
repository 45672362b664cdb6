"""ETSAM in memory, the plain way: the standard that the streamed implementation is compared with.

Everything is done on whole arrays, straight from sam2's ``SAM2VideoPredictor`` and ETSAM's arithmetic; nothing of
``etsam_zarr`` is used. All frames, all outputs, full-resolution logits of both stages are held at once.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Volume = npt.NDArray[np.float32]


def normalize(volume: npt.NDArray[Any], method: str) -> Volume:
    """ETSAM's normalisation of a whole volume."""
    volume = volume.astype(np.float32)
    normalized: Volume
    if method == "min_max_positive_values":
        volume[volume < 0] = 0
        normalized = volume / np.max(volume)
    elif method == "softplus_minmax":
        volume = torch.nn.functional.softplus(torch.from_numpy(volume)).numpy()
        normalized = (volume - np.min(volume)) / (np.max(volume) - np.min(volume))
    else:
        low, high = np.percentile(volume, (0.1, 99.9)).astype(np.float32)
        normalized = (np.clip(volume, low, high) - low) / (high - low)
    return normalized


def prompt_masks(
    method: str, shape: tuple[int, int, int], interval: int, stage1_mask: npt.NDArray[np.uint8] | None
) -> dict[int, npt.NDArray[np.uint8]]:
    """Prompt masks by slice."""
    depth, height, width = shape
    empty = np.zeros((height, width), dtype=np.uint8)
    grid = empty.copy()
    for y in range(0, height, interval):
        for x in range(0, width, interval):
            grid[y, x] = 1
    if method == "zero":
        return {0: empty}
    if method == "grid_zero":
        return {0: grid}
    if method == "grid":
        return dict.fromkeys(range(0, depth, interval), grid)
    assert method == "stage1_partial"
    assert stage1_mask is not None
    return {z: stage1_mask[z] for z in range(0, depth, interval)}


def to_video(volume: Volume, image_size: int) -> torch.Tensor:
    """All slices as the model's frames, (z, 3, image_size, image_size)."""
    resized = [np.array(Image.fromarray(plane).resize((image_size, image_size))) for plane in volume]
    video = torch.from_numpy(np.array(resized)).float().unsqueeze(1).repeat(1, 3, 1, 1)
    video -= torch.tensor((0.485, 0.456, 0.406), dtype=torch.float32)[:, None, None]
    video /= torch.tensor((0.229, 0.224, 0.225), dtype=torch.float32)[:, None, None]
    return video


def segment(
    predictor: Any, volume: Volume, masks: dict[int, npt.NDArray[np.uint8]], *, autocast: bool = False
) -> Volume:
    """One stage: logits of all slices, float32, shape of the volume."""
    video = to_video(volume, predictor.image_size)
    logits = {}
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        mock.patch(
            "sam2.sam2_video_predictor.load_video_frames", return_value=(video, volume.shape[1], volume.shape[2])
        ),
        mock.patch("sam2.sam2_video_predictor.tqdm", lambda items, **_: items),
    ):
        state = predictor.init_state(video_path="volume", offload_video_to_cpu=True, offload_state_to_cpu=True)
        for z, mask in masks.items():
            predictor.add_new_mask(state, frame_idx=z, obj_id=1, mask=mask)
        for z, _, masks_out in predictor.propagate_in_video(state):
            logits[z] = masks_out[0].cpu().numpy()
    return np.concatenate([logits[z] for z in sorted(logits)])


def two_stages(
    predictors: tuple[Any, Any],
    volume: npt.NDArray[Any],
    *,
    normalize_method: str,
    stage1_prompt: str,
    stage2_prompt: str,
    grid_interval: int,
    stage1_logit_threshold: float,
    autocast: bool = False,
) -> tuple[Volume, Volume]:
    """Logits of stage 1 and stage 2."""
    return two_stages_of_normalized(
        predictors,
        normalize(volume, normalize_method),
        stage1_prompt=stage1_prompt,
        stage2_prompt=stage2_prompt,
        grid_interval=grid_interval,
        stage1_logit_threshold=stage1_logit_threshold,
        autocast=autocast,
    )


def two_stages_of_normalized(
    predictors: tuple[Any, Any],
    normalized: Volume,
    *,
    stage1_prompt: str,
    stage2_prompt: str,
    grid_interval: int,
    stage1_logit_threshold: float,
    autocast: bool = False,
) -> tuple[Volume, Volume]:
    """Logits of stage 1 and stage 2 of what is normalised already: a volume, or a quadrant of one."""
    shape = normalized.shape
    first = segment(
        predictors[0], normalized, prompt_masks(stage1_prompt, shape, grid_interval, None), autocast=autocast
    )
    stage1_mask = (first > stage1_logit_threshold).astype(np.uint8)
    clipped = first.copy()
    clipped[clipped < -5] = -5
    clipped[clipped > 5] = 5
    scaled = (clipped - np.min(clipped)) / (np.max(clipped) - np.min(clipped))
    second = segment(
        predictors[1],
        normalized + scaled,
        prompt_masks(stage2_prompt, shape, grid_interval, stage1_mask),
        autocast=autocast,
    )
    return first, second
