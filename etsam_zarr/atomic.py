"""Small files that are either whole or not there, whenever the process or the machine dies."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from etsam_zarr.errors import OutputError


@contextlib.contextmanager
def disk_errors(doing: str, path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals while writing into one :class:`OutputError` with the remedy.

    Parameters
    ----------
    doing
        What was being written, as it fits after "while": ``"writing logits of stage 1"``.
    path
        Where to.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some space (or choose another destination) and give the same command again"
        elif error.errno == errno.EFBIG:
            remedy = "The system limits the size of a file (see 'ulimit -f'); raise it and give the command again"
        else:
            remedy = "Check the path and its permissions, then give the same command again"
        raise OutputError(
            f"Cannot go on {doing} at {path}: {error.strerror or error}. {remedy}; finished work is kept."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, sees all of it or what was there before.

    Raises
    ------
    OutputError
        The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
