"""Copies a finished run store to S3, so that an interrupted copy goes on and a reader never takes half of it for whole.

A run writes its store on a local disk: going on after a kill rests on files that appear whole and in order, and on a
lease, neither of which S3 gives. What is finished is then copied, and checked.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from etsam_zarr.errors import OutputError, OutputExistsError, SettingsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.remote.address import RemoteAddress
from etsam_zarr.remote.s3_store import open_s3
from etsam_zarr.remote.trouble import Trouble
from etsam_zarr.remote.volumes import RemoteOptions

RECORD = "run.json"
_MARK = ".etsam-zarr-copying"
# Needed to go on with a run, not by those who read it.
_LOCAL_ONLY = ("state/", ".lease/")
_PARALLEL = 8

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Published:
    """What a copy did."""

    files: int
    copied: int
    """Of these, those that were not there already."""
    bytes_copied: int
    removed: int
    """Objects of an earlier copy of the same run that the store no longer has."""


def publish(
    store: Path, address: RemoteAddress, *, options: RemoteOptions | None = None, on_event: OnEvent = ignore
) -> Published:
    """Copy a finished run store to an address of the kind ``s3://``.

    1. See what is there: nothing, or an earlier copy of the same run, whole or begun. Anything else is left alone.
    2. Leave a mark that says which run is being copied.
    3. Copy what is missing or differs in length or MD5; the server checks each by its SHA-256.
    4. Copy ``run.json``, which makes a run store of it, and remove what an earlier copy had besides, and the mark.
    5. List what is there and compare all lengths.

    Raises
    ------
    OutputExistsError
        Something else lies at the address.
    OutputError
        It cannot be written, or is not complete in the end. The same call goes on.
    SettingsError
        The address is of another kind.
    """
    if address.scheme != "s3" or not address.path:
        raise SettingsError(
            f"The output is {address.shown}; a run store is written to a local path, or to s3://bucket/path."
        )
    begun = time.monotonic()
    options = options or RemoteOptions()
    opened = open_s3(address, endpoint=options.s3_endpoint, profile=options.s3_profile, writing=True)
    bucket = _Bucket(opened, address.shown)
    files = dict(_files(store))
    there = bucket.names()
    mine = _fingerprint((store / RECORD).read_bytes())
    _check_is_ours(bucket, there, mine, address)
    bucket.put(_MARK, json.dumps({"fingerprint": mine}).encode())
    on_event(Started("copy", total=len(files), unit="files"))

    def copy(name: str) -> int:
        content = files[name].read_bytes()
        known = there.get(name)
        fresh = known is None or known != (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
        if fresh:
            bucket.put(name, content)
        on_event(Advanced("copy"))
        return len(content) if fresh else -1

    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="copy") as threads:
        copied = list(threads.map(copy, (name for name in files if name != RECORD)))
    copied.append(copy(RECORD))
    surplus = [name for name in there if name not in files and name != _MARK]
    bucket.delete([*surplus, _MARK])
    _verify(bucket, files, address)
    on_event(Finished("copy", time.monotonic() - begun))
    done = [size for size in copied if size >= 0]
    return Published(len(files), len(done), sum(done), len(surplus))


def _files(store: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(store.rglob("*")):
        name = file.relative_to(store).as_posix()
        if file.is_file() and not name.startswith(_LOCAL_ONLY) and file.suffix != ".partial":
            yield name, file


def _fingerprint(record: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return what tells a run from others; None where there is none."""
    try:
        return json.loads(record)["fingerprint"]
    except (ValueError, KeyError, TypeError):
        return None


def _check_is_ours(bucket: _Bucket, there: Iterable[str], mine: Any, address: RemoteAddress) -> None:  # noqa: ANN401
    """Refuse to write into anything but a copy of the same run, whole or begun."""
    if not there:
        return
    marks = [name for name in (RECORD, _MARK) if name in there]
    if marks and all(_fingerprint(bucket.get(name)) == mine for name in marks):
        return
    raise OutputExistsError(
        f"There is something at {address.shown} already that is no copy of this run, so it is left alone. "
        "Give another -o."
    )


def _verify(bucket: _Bucket, files: dict[str, Path], address: RemoteAddress) -> None:
    there = bucket.names()
    wrong = [name for name, file in files.items() if there.get(name, (-1, ""))[0] != file.stat().st_size]
    if wrong or there.keys() - files.keys():
        names = ", ".join([*wrong, *(there.keys() - files.keys())][:3])
        raise OutputError(
            f"The copy at {address.shown} is not what was copied: {names} is missing, of another length, or too much. "
            "Another process may be writing there. Give the same command again."
        )


class _Bucket:
    """The few operations needed, with errors in our words."""

    def __init__(self, store: Any, shown: str) -> None:  # noqa: ANN401 - obstore is imported late
        self._store, self._shown = store, shown

    def names(self) -> dict[str, tuple[int, str]]:
        """Return length and entity tag of everything there, by name."""
        found = self._try(lambda: [entry for page in self._store.list() for entry in page])
        return {entry["path"]: (entry["size"], (entry["e_tag"] or "").strip('"')) for entry in found}

    def get(self, name: str) -> bytes:
        return self._try(lambda: bytes(self._store.get(name).bytes()))

    def put(self, name: str, content: bytes) -> None:
        # In one piece: the entity tag is then the MD5.
        self._try(lambda: self._store.put(name, content, use_multipart=False))

    def delete(self, names: list[str]) -> None:
        self._try(lambda: self._store.delete(names))

    def _try(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - obstore has no common class for them
            trouble = Trouble.of_text(type(error).__name__, str(error))
            missing = "NoSuchBucket" in str(error) or isinstance(error, FileNotFoundError)
            words = "there is no such bucket" if missing else trouble.words
            advice = (
                "Give credentials that may write there, by --s3-profile or the usual variables"
                if trouble.status in (401, 403)
                else "Check the address and the network"
            )
            raise OutputError(
                f"The run store cannot be copied to {self._shown}: {words}. {advice}, then give the same command "
                "again; the run itself is finished and kept on the local disk."
            ) from None
