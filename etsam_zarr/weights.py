"""ETSAM's published weights: where they lie, how they get there, and whether they are whole.

They are two files on Zenodo. pooch knows Zenodo's DOIs and compares what it got with the checksums of the
record; :mod:`etsam_zarr.download` adds that an interrupted download goes on where it was. On a machine without
network, copy the two files into the folder (``etsam-zarr weights list`` prints it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.download import ResumingDownloader, partial_path
from etsam_zarr.errors import InputError, InputNotFoundError, ModelError
from etsam_zarr.events import OnEvent, ignore

ETSAM_DOI = "10.5281/zenodo.17571925"
ETSAM_FILES = ("etsam_stage1_v1.pt", "etsam_stage2_v1.pt")
FOLDER_VARIABLE = "ETSAM_ZARR_WEIGHTS"
_CHECKSUMS = "checksums.json"
# Far below any SAM 2 checkpoint, far above an error page.
_LEAST_BYTES = 1 << 20

State = Literal["absent", "partial", "unverified", "whole", "damaged"]


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from: a record in a data repository, or a plain web folder."""

    files: tuple[str, ...] = ETSAM_FILES
    base_url: str = f"doi:{ETSAM_DOI}"
    checksums: Mapping[str, str] = field(default_factory=dict)
    """``algorithm:hex`` by file name; empty asks the record, which only works for a DOI."""
    least_bytes: int = _LEAST_BYTES
    """A smaller file is no checkpoint."""


ETSAM = WeightsSource()


@dataclass(frozen=True)
class WeightsFile:
    """One file as it is on this machine."""

    path: Path
    bytes: int
    state: State
    checksum: str | None
    """What it should have, where known."""


def weights_folder() -> Path:
    """Return where weights are kept: ``ETSAM_ZARR_WEIGHTS``, or the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    import pooch

    return Path(pooch.os_cache("etsam-zarr"))


def find_etsam_weights() -> tuple[Path, Path] | None:
    """Return the paths of ETSAM's two checkpoints if both are there and look like checkpoints, else None.

    Their checksums are not compared here: :func:`verify` does that, and loading refuses what is no
    checkpoint.
    """
    folder = weights_folder()
    first, second = (folder / name for name in ETSAM_FILES)
    if all(path.is_file() and not _problem(path, ETSAM) for path in (first, second)):
        return first, second
    return None


def list_weights(source: WeightsSource = ETSAM, *, folder: Path | None = None) -> list[WeightsFile]:
    """Return what is there of each file, without reading the files or the network."""
    folder = folder or weights_folder()
    known = {**_stored_checksums(folder), **source.checksums}
    return [_looked_at(folder, name, source, known.get(name)) for name in source.files]


def fetch(source: WeightsSource = ETSAM, *, folder: Path | None = None, on_event: OnEvent = ignore) -> list[Path]:
    """Download what is missing or damaged, compare checksums, and return the paths.

    An interrupted download goes on where it was when fetched again.

    Raises
    ------
    InputError
        The server cannot be reached, sends something else, or the checksum differs. Nothing wrong is kept.
    OutputError
        The folder cannot be written.
    """
    import pooch
    import requests

    folder = folder or weights_folder()
    with disk_errors("downloading weights", folder), _understood(source):
        folder.mkdir(parents=True, exist_ok=True)
        keeper = pooch.create(path=folder, base_url=f"{source.base_url.rstrip('/')}/", registry=dict(source.checksums))
        if not source.checksums:
            keeper.load_registry_from_doi()
        _refuse_missing(source, keeper.registry)
        _store_checksums(folder, {name: keeper.registry[name] for name in source.files})
        # pooch says where it downloads from in its log; here events do.
        pooch.get_logger().setLevel("WARNING")
        paths = []
        for name in source.files:
            try:
                paths.append(Path(keeper.fetch(name, downloader=ResumingDownloader(on_event))))
            except (InputError, requests.RequestException):
                raise
            except ValueError as error:
                raise InputError(
                    f"{name} from {source.base_url} does not have the checksum {keeper.registry[name]} that its "
                    "record states, and was deleted. Fetch it again; if it happens again, the network changes what "
                    f"it carries: download it on another one and copy it to {folder}."
                ) from error
    return paths


def verify(source: WeightsSource = ETSAM, *, folder: Path | None = None) -> list[WeightsFile]:
    """Read the files and compare them with the checksums that the record states.

    The checksums come from the last fetch, or from the record where there was none.

    Raises
    ------
    InputNotFoundError
        A file is not there.
    InputError
        No checksum is known and the record cannot be reached.
    """
    folder = folder or weights_folder()
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing:
        raise InputNotFoundError(
            f"{' and '.join(missing)} is not in {folder}. Get the files with 'etsam-zarr weights fetch', or copy them "
            f"there, or set {FOLDER_VARIABLE} to the folder that holds them."
        )
    known = {**_stored_checksums(folder), **source.checksums}
    if any(name not in known for name in source.files):
        known.update(_checksums_of_record(source))
        _refuse_missing(source, known)
        with contextlib.suppress(OSError):  # a folder for reading only is fine
            _store_checksums(folder, {name: known[name] for name in source.files})
    found = []
    for name in source.files:
        path, checksum = folder / name, known[name]
        algorithm, _, expected = checksum.rpartition(":")
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, algorithm or "sha256").hexdigest()
        state: State = "whole" if actual == expected.lower() else "damaged"
        found.append(WeightsFile(path, path.stat().st_size, state, checksum))
    return found


@contextlib.contextmanager
def _understood(source: WeightsSource) -> Iterator[None]:
    """Turn what requests and pooch raise into one sentence with the remedy."""
    import requests

    remedy = (
        f"Check the network and fetch again (what has arrived is kept), or download {' and '.join(source.files)} from "
        f"https://doi.org/{ETSAM_DOI} elsewhere and copy them to {weights_folder()}"
    )
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise InputError(f"{source.base_url} answered with HTTP {status}. {remedy}.") from error
    except requests.RequestException as error:
        raise InputError(f"{source.base_url} cannot be reached or broke off ({error}). {remedy}.") from error


def _checksums_of_record(source: WeightsSource) -> dict[str, str]:
    import pooch

    keeper = pooch.create(path=weights_folder(), base_url=f"{source.base_url.rstrip('/')}/", registry=None)
    with _understood(source):
        keeper.load_registry_from_doi()
    return dict(keeper.registry)


def _refuse_missing(source: WeightsSource, registry: Mapping[str, str]) -> None:
    absent = [name for name in source.files if name not in registry]
    if absent:
        raise InputError(
            f"{source.base_url} does not hold {' and '.join(absent)}; it holds {', '.join(registry) or 'nothing'}. "
            "The record may have a newer version: download the weights from its page by hand."
        )


def _store_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    stored = {**_stored_checksums(folder), **checksums}
    write_atomically(folder / _CHECKSUMS, json.dumps(stored, indent=1, sort_keys=True).encode())


def _stored_checksums(folder: Path) -> dict[str, str]:
    path = folder / _CHECKSUMS
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}). Delete it; the checksums are fetched again.") from error
    return {str(name): str(checksum) for name, checksum in stored.items()}


def _looked_at(folder: Path, name: str, source: WeightsSource, checksum: str | None) -> WeightsFile:
    path = folder / name
    if path.is_file():
        state: State = "damaged" if _problem(path, source) else "unverified"
        return WeightsFile(path, path.stat().st_size, state, checksum)
    partial = partial_path(folder, name)
    if partial.is_file():
        return WeightsFile(path, partial.stat().st_size, "partial", checksum)
    return WeightsFile(path, 0, "absent", checksum)


def _problem(path: Path, source: WeightsSource) -> bool:
    """Whether a file is surely no checkpoint: too small, or a page of text."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return path.stat().st_size < source.least_bytes or start.startswith(b"<")
