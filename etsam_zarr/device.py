"""Which devices and which precision a run uses."""

from __future__ import annotations

from collections import Counter
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


def devices_for(devices: str | None, workers: int | None, device: str) -> tuple[str, ...]:
    """Return the device of each worker on this machine, from what the command line says; empty for no workers.

    Parameters
    ----------
    devices
        A list with commas, such as ``"cuda:0,cuda:1"``, or ``"all"`` for all GPUs.
    workers
        How many workers; they get the first GPUs, or all the CPU.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda:N"``.

    Raises
    ------
    SettingsError
        They contradict, name a device that is not there, or mix kinds.
    """
    if devices is None and workers is None:
        return ()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices is not None:
        if workers is not None or device != "auto":
            raise SettingsError("--devices says already how many workers there are and where. Leave --workers and "
                                "--device out.")  # fmt: skip
        chosen = tuple(f"cuda:{n}" for n in range(gpus)) if devices == "all" else tuple(devices.split(","))
    else:
        assert workers is not None
        if workers < 1:
            raise SettingsError(f"{workers} workers cannot compute anything; give --workers 1 or more.")
        if device not in ("auto", "cpu"):
            raise SettingsError(f"--workers chooses devices itself, and --device names {device}. Use --devices to name "
                                "several, or --device cpu.")  # fmt: skip
        on_cpu = device == "cpu" or not gpus
        chosen = ("cpu",) * workers if on_cpu else tuple(f"cuda:{n}" for n in range(workers))
    absent = [name for name in chosen if name != "cpu" and name not in {f"cuda:{n}" for n in range(gpus)}]
    if absent or not chosen:
        raise SettingsError(
            f"{absent[0] if absent else 'A GPU'} is not there: this machine has {gpus} GPUs that PyTorch can use. Give "
            "devices as cuda:0,cuda:1 or cpu,cpu, or --workers with --device cpu."
        )
    if len({name.partition(":")[0] for name in chosen}) > 1:
        raise SettingsError(f"--devices {devices} mixes CPU and GPU, whose results differ in the last bits. Take one.")
    twice = [name for name, count in Counter(chosen).items() if count > 1 and name != "cpu"]
    if twice:
        raise SettingsError(f"{twice[0]} is named twice; two workers on one GPU are no faster. Name each GPU once.")
    return chosen


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
