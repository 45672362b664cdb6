"""Which device and precision are chosen."""

from __future__ import annotations

import pytest
import torch

from etsam_zarr import device
from etsam_zarr.device import choose_device, choose_precision, devices_for
from etsam_zarr.errors import SettingsError


def test_auto_takes_the_first_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_with_the_number_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingsError, match=r"--device cuda:2 is not there.*sees 2 GPUs.*--device cpu"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="cuda is not there"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "mps"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"--device .*auto, cpu or cuda:0"):
        choose_device(name)


@pytest.mark.parametrize("capability", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}])
def test_auto_computes_in_bfloat16_only_where_the_processor_does_so_fast(
    capability: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capability)
    expected = "bfloat16" if any(capability.values()) else "float32"
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_likewise_on_gpus(capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda:0")) == expected


def test_the_precision_that_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_fast_bfloat16", lambda device: True)
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    with pytest.raises(SettingsError, match=r"float64.*float32, bfloat16 or auto"):
        choose_precision("float64", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "workers", "device", "gpus", "wanted"),
    [
        (None, None, "auto", 2, ()),
        (None, 2, "auto", 0, ("cpu", "cpu")),
        (None, 2, "cpu", 4, ("cpu", "cpu")),
        (None, 2, "auto", 4, ("cuda:0", "cuda:1")),
        ("cuda:1,cuda:3", None, "auto", 4, ("cuda:1", "cuda:3")),
        ("all", None, "auto", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cpu,cpu", None, "auto", 0, ("cpu", "cpu")),
    ],
)
def test_devices_of_the_workers(
    devices: str | None, workers: int | None, device: str, gpus: int, wanted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert devices_for(devices, workers, device) == wanted


@pytest.mark.parametrize(
    ("devices", "workers", "device", "says"),
    [
        ("cuda:0,cuda:9", None, "auto", "cuda:9 is not there: this machine has 2 GPUs"),
        ("cuda:0,cuda:0", None, "auto", "named twice"),
        ("cuda:0,cpu", None, "auto", "mixes CPU and GPU"),
        ("cuda:0", 2, "auto", "--devices says already"),
        ("cuda:0,cuda:1", None, "cpu", "--devices says already"),
        (None, 0, "auto", "0 workers cannot"),
        (None, 2, "cuda:1", "Use --devices"),
        (None, 3, "auto", "cuda:2 is not there"),
    ],
)
def test_devices_that_contradict(
    devices: str | None, workers: int | None, device: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SettingsError, match=says):
        devices_for(devices, workers, device)
