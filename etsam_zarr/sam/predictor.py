"""Builds sam2's video predictor, and hands it slices where it would load pictures.

Apart from training this is the one module that imports sam2. (In this package a slice is sometimes called a frame, as
sam2 does.)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sam2.sam2_video_predictor as sam2_video
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from sam2.modeling.position_encoding import PositionEmbeddingSine

from etsam_zarr.checkpoint import load_weights
from etsam_zarr.errors import ModelError, in_one_line
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.sam.frames import Frames
from etsam_zarr.sam.remembered import remember_absent_prompt, remember_position_embedding, remember_sine_encoding

Predictor = Any
"""A ``SAM2VideoPredictor``; sam2 has no type information."""

# sam2 takes its frames through two names of its module; they are replaced for the moment of a call only.
_FEEDING = threading.RLock()


def build_predictor(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor] | None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    origin: str = "weights",
) -> Predictor:
    """Build a ``SAM2VideoPredictor`` as ETSAM does: without sam2's hole filling, in evaluation mode.

    Parameters
    ----------
    weights
        State dict to load; None leaves the initial values, drawn from ``seed``.
    origin
        Where the weights come from, for error messages.

    Raises
    ------
    ModelError
        The configuration cannot be built or the weights do not fit it.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            predictor = instantiate(config.tree, _recursive_=True)
    except (HydraException, TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = in_one_line(error)
        raise ModelError(
            f"The model config {config.name} cannot be built: {reason}. Compare it with a config of the sam2 package."
        ) from error
    if not isinstance(predictor, sam2_video.SAM2VideoPredictor):
        raise ModelError(f"The model config {config.name} does not describe a SAM 2 model.")
    if weights is not None:
        load_weights(predictor, weights, origin=origin)
    remember_position_embedding(predictor.image_encoder.trunk)
    remember_absent_prompt(predictor.sam_prompt_encoder)
    for module in predictor.modules():
        if isinstance(module, PositionEmbeddingSine):
            remember_sine_encoding(module)
    predictor.eval()
    return predictor.to(device)


@contextlib.contextmanager
def fed_by(predictor: Predictor, frames: Frames, height: int, width: int) -> Iterator[None]:
    """Let ``init_state`` take ``frames`` where it would load pictures from a folder, and look at none of them yet.

    It would encode the first one to warm up: a walk that goes on in the midst of a volume never needs it.
    """
    with (
        _replaced(sam2_video, load_video_frames=lambda **_: (frames, height, width)),
        _replaced(predictor, _get_image_feature=lambda *_, **__: None),
    ):
        yield


def without_bars() -> contextlib.AbstractContextManager[None]:
    """Keep sam2 from drawing a progress bar of its own; it builds one on a walk's first step."""

    def no_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
        return items

    return _replaced(sam2_video, tqdm=no_bar)


@contextlib.contextmanager
def _replaced(owner: object, **names: object) -> Iterator[None]:
    """Replace names of sam2's module, or methods of one predictor, for the duration of one call."""
    with _FEEDING:
        before = {name: vars(owner)[name] for name in names if name in vars(owner)}
        try:
            for name, value in names.items():
                setattr(owner, name, value)
            yield
        finally:
            for name in names:
                if name in before:
                    setattr(owner, name, before[name])
                else:
                    delattr(owner, name)
