"""Checkpoint files in the format of SAM 2 and ETSAM: a pickle-free ``{"model": state_dict}``."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from etsam_zarr.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_checkpoint(path: Path, *, glance: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint, on the CPU, without running code from the file.

    Parameters
    ----------
    glance
        Whether only names and shapes are wanted: values are then read when they are looked at.

    Raises
    ------
    ModelError
        There is no file, or it is not a checkpoint (often a saved error page), or holds no weights.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(
            f"The checkpoint {path} cannot be opened: {error.strerror}. Check the path; ETSAM's weights are "
            "etsam_stage1_v1.pt and etsam_stage2_v1.pt at https://doi.org/10.5281/zenodo.17571925."
        ) from error
    if head.lstrip()[:1] == b"<" or not head:
        size = path.stat().st_size
        raise ModelError(
            f"The checkpoint {path} is {'an HTML page' if head else 'empty'} ({size} bytes), not weights: the download "
            "failed. Download it again and compare its size and checksum with the source's."
        )
    try:
        mapped = glance and zipfile.is_zipfile(path)  # PyTorch cannot map its files of before 2020
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"The checkpoint {path} cannot be read as PyTorch weights ({reason}). It must be a file saved by "
            "torch.save that holds tensors only; download or export it again."
        ) from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(
            f"The checkpoint {path} has no entry 'model' with weights. The file format of SAM 2 and ETSAM is "
            '{"model": state_dict}; save it that way.'
        )
    return weights


def serialized(content: Mapping[str, object]) -> bytes:
    """Return what ``torch.save`` writes, to be stored atomically."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Put ``weights`` into ``model``, which must have exactly these names and shapes.

    Half-precision weights are cast to the model's own type.

    Raises
    ------
    ModelError
        They belong to another architecture; the message names the first weight that differs.
    """
    check_weights(model, weights, origin=origin)
    model.load_state_dict(dict(weights))


def check_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Compare names and shapes of ``weights`` with those of ``model``.

    Raises
    ------
    ModelError
        They belong to another architecture; the message names the first weight that differs.
    """
    expected = model.state_dict()
    problem = None
    for name, value in expected.items():
        if name not in weights:
            problem = f"{name} is missing"
        elif weights[name].shape != value.shape:
            problem = f"{name} has shape {tuple(weights[name].shape)} where the model has {tuple(value.shape)}"
        if problem:
            break
    else:
        problem = next((f"{name} is unknown to the model" for name in weights if name not in expected), None)
    if problem:
        raise ModelError(
            f"The checkpoint {origin} does not belong to this model: {problem}. Give --model the config that the "
            "checkpoint was trained with (ETSAM's: sam2.1_hiera_b+)."
        )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hex.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"The checkpoint {path} cannot be read: {error.strerror}. Check the path.") from error
