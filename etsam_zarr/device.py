"""Which device and precision a run uses."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from etsam_zarr.config import Precision
from etsam_zarr.errors import SettingsError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device for ``"auto"``, ``"cpu"`` or ``"cuda:N"``; auto takes the first GPU if there is one.

    Raises
    ------
    SettingsError
        There is no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name!r} is no device. Give auto, cpu or cuda:0, cuda:1, ...") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"--device {name!r} is not supported. Give auto, cpu or cuda:0, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"--device {name} is not there: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs. "
            "Give --device cpu, or install a CUDA build of PyTorch if the machine has a GPU."
        )
    return device


def choose_precision(name: Literal["float32", "bfloat16", "auto"], device: torch.device) -> Precision:
    """Return the precision; auto takes bfloat16 where the device computes it fast.

    Raises
    ------
    SettingsError
        There is no such precision.
    """
    if name == "auto":
        return "bfloat16" if _fast_bfloat16(device) else "float32"
    if name not in get_args(Precision):
        raise SettingsError(f"--precision {name!r} is not known. Give float32, bfloat16 or auto.")
    return name


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
