"""Small files are whole or not there, and refusals of the system become messages with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import OutputError, OutputExistsError


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="Free some space"):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EFBIG, "ulimit"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "permissions"),
    ],
)
def test_every_refusal_says_what_where_and_what_to_do(number: int, remedy: str) -> None:
    with (
        pytest.raises(OutputError, match=rf"writing logits at /x/y: .*{remedy}") as caught,
        disk_errors("writing logits", "/x/y"),
    ):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)


def test_our_own_errors_pass_as_they_are() -> None:
    mine = OutputExistsError("exists")
    with pytest.raises(OutputExistsError) as caught, disk_errors("writing", "/x"):
        raise mine
    assert caught.value is mine


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(KeyError), disk_errors("writing", "/x"):
        raise KeyError("x")
