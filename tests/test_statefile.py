"""Tensors on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from etsam_zarr.errors import RunStoreError
from etsam_zarr.statefile import read_state, write_state


def test_tensors_keep_type_shape_and_every_bit(tmp_path: Path) -> None:
    tensors = {
        "memory": torch.randn(1, 4, 3, 3).to(torch.bfloat16),
        "turned": torch.randn(4, 6).T,
        "score": torch.tensor([[float("-inf")]]),
        "none": torch.empty(0, 3),
    }
    write_state(tmp_path / "new" / "folder" / "state.safetensors", tensors)
    read = read_state(tmp_path / "new" / "folder" / "state.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_new_state_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, {"a": torch.zeros(1000)})
    write_state(path, {"b": torch.ones(2)})
    assert list(read_state(path)) == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "text"])
def test_a_damaged_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "recent.safetensors"
    if damage != "absent":
        write_state(path, {"a": torch.zeros(1000)})
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[:-1], "text": b"no tensors in here"}[damage])
    with pytest.raises(RunStoreError, match=r"recent\.safetensors cannot be read"):
        read_state(path)
