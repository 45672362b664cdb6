"""Tensors of a propagation's state on disk, whole or not at all (safetensors: no code, keeps bfloat16)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import RunStoreError


def write_state(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors of any type and device.

    Raises
    ------
    OutputError
        The disk is full or the folder cannot be written.
    """
    write_atomically(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors, on the CPU.

    Raises
    ------
    RunStoreError
        The file is not there or damaged.
    """
    try:
        tensors: dict[str, torch.Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunStoreError(f"The state file {path} cannot be read ({error}).") from error
    return tensors
