"""Checkpoint files: what is read, what is refused, and that none of them runs code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etsam_zarr.checkpoint import file_digest, load_weights, read_checkpoint
from etsam_zarr.errors import ModelError


class _RunsCode:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._mark),)


def _model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("glance", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_come_back_as_they_were_saved(zipped: bool, glance: bool, path: Path) -> None:
    state = _model().state_dict()
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(path, glance=glance)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_missing_file_is_named_with_where_to_get_it(path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights\.pt cannot be opened: No such file.*zenodo"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\).*Download it again"),
        (b"\n <!DOCTYPE html><title>404</title>", r"is an HTML page \(\d+ bytes\).*Download it again"),
        (b"not weights at all", "cannot be read as PyTorch weights"),
        (bytes(range(256)) * 8, "cannot be read as PyTorch weights"),
    ],
)
def test_a_failed_download_is_recognised(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("glance", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, glance: bool, path: Path) -> None:
    torch.save({"model": _model().state_dict()}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match="cannot be read as PyTorch weights"):
        read_checkpoint(path, glance=glance)


@pytest.mark.parametrize("glance", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(zipped: bool, glance: bool, path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"model": _RunsCode(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"cannot be read as PyTorch weights.*tensors only"):
        read_checkpoint(path, glance=glance)
    assert not mark.exists()


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"model": 3}, {"model": {"a": 3}}, [1], torch.zeros(2)])
def test_what_holds_no_weights_is_refused(content: object, path: Path) -> None:
    torch.save(content, path)
    with pytest.raises(ModelError, match="no entry 'model' with weights"):
        read_checkpoint(path)


def test_another_architecture_is_refused_by_the_first_weight_that_differs() -> None:
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    other = {**weights, "0.bias": torch.zeros(5), "1.bias": torch.zeros(9)}
    with pytest.raises(ModelError, match=r"elsewhere\.pt.*0\.bias has shape \(5,\) where the model has \(4,\)"):
        load_weights(model, other, origin="elsewhere.pt")
    missing = {name: value for name, value in weights.items() if name != "1.weight"}
    with pytest.raises(ModelError, match=r"1\.weight is missing"):
        load_weights(model, missing, origin="x")
    with pytest.raises(ModelError, match=r"2\.weight is unknown to the model"):
        load_weights(model, {**weights, "2.weight": torch.zeros(1)}, origin="x")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "left half loaded"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(kind: torch.dtype) -> None:
    model = _model()
    weights = {name: torch.randn(value.shape).to(kind) for name, value in model.state_dict().items()}
    load_weights(model, weights, origin="x")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].float())


def test_the_digest_tells_files_apart(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"one")
    (tmp_path / "same").write_bytes(b"one")
    (tmp_path / "other").write_bytes(b"two")
    assert file_digest(path) == file_digest(tmp_path / "same") != file_digest(tmp_path / "other")
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        file_digest(tmp_path / "absent")
