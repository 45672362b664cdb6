"""Many runs, one after the other: what is done is skipped, what fails does not stop the rest, a table tells."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.batch_items import BatchItem
from etsam_zarr.errors import EtsamZarrError, InputError
from etsam_zarr.events import Notice, OnEvent, ignore
from etsam_zarr.runstore import SUFFIX, RunStore
from etsam_zarr.status import read_status

SUMMARY = "summary"

State = Literal["finished", "present", "skipped", "failed", "open"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchResult:
    """What came of one line."""

    name: str
    source: str
    state: State
    """``finished`` now, ``present`` from before, ``skipped`` since it names no input, ``failed``, or still ``open``."""
    prediction: str = ""
    """The run store, relative to the folder of the summary."""
    seconds: float = 0.0
    voxels: int | None = None
    """Of the mask."""
    share: float | None = None
    """Of the volume that the mask takes."""
    error: str = ""
    """Why it failed or was skipped."""
    settings: str = ""
    """Digest of source and options; a result with another one is looked at again."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    voxels: int
    share: float


def run_batch(
    items: Sequence[BatchItem],
    run_one: Callable[[BatchItem, Path], Outcome],
    *,
    folder: Path,
    options: Mapping[str, Any],
    on_event: OnEvent = ignore,
) -> list[BatchResult]:
    """Run every item into a run store of its own, and write ``summary.csv`` and ``summary.json`` after each.

    1. Items that an earlier batch finished with the same options are not touched, not even their input.
    2. All others are given to ``run_one``, which goes on with a run store that is there.
    3. What fails is noted, whatever it is, and the next one is begun.

    Parameters
    ----------
    items
        As :func:`etsam_zarr.batch_items.read_items` gives them.
    run_one
        Makes or finishes the run store at a path.
    folder
        Where the run stores and the summary go.
    options
        What the results depend on besides the inputs; values are compared as text.
    on_event
        Listener for progress.

    Raises
    ------
    OutputError
        The summary cannot be written.
    """
    with disk_errors("making the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    before = _earlier(folder)
    results = [_untouched(item, options, before.get(item.name), folder) for item in items]
    _write(folder, items, results)
    for number, (item, result) in enumerate(zip(items, results, strict=True)):
        if result.state == "skipped":
            on_event(Notice(f"{number + 1} of {len(items)}: {item.name} is skipped: {item.reason}."))
        elif result.state == "present":
            on_event(Notice(f"{number + 1} of {len(items)}: {item.name} is finished already."))
        else:
            on_event(Notice(f"{number + 1} of {len(items)}: {item.name}, {item.source}"))
            results[number] = _run(item, result, run_one, folder)
            if results[number].state == "failed":
                on_event(Notice(f"{item.name} failed: {results[number].error}", warning=True))
            _write(folder, items, results)
    return results


def _untouched(item: BatchItem, options: Mapping[str, Any], before: BatchResult | None, folder: Path) -> BatchResult:
    """Return an item's state before the batch: skipped, present or open."""
    digest = hashlib.sha256(
        json.dumps([item.source, sorted((name, str(value)) for name, value in options.items())]).encode()
    ).hexdigest()[:16]
    if not item.source:
        return BatchResult(item.name, item.source, "skipped", error=item.reason)
    store = f"{item.name}{SUFFIX}"
    if before is not None and before.settings == digest and _is_finished(folder / store):
        return replace(before, state="present")
    return BatchResult(item.name, item.source, "open", store, settings=digest)


def _is_finished(store: Path) -> bool:
    try:
        return RunStore.is_store(store) and read_status(store).finished
    except (EtsamZarrError, OSError):
        # Looked at again, and then explained.
        return False


def _run(
    item: BatchItem, result: BatchResult, run_one: Callable[[BatchItem, Path], Outcome], folder: Path
) -> BatchResult:
    begun = time.monotonic()
    try:
        outcome = run_one(item, folder / result.prediction)
    except EtsamZarrError as error:
        return replace(result, state="failed", error=str(error), seconds=time.monotonic() - begun)
    except Exception as error:
        # Whatever it is, it must not cost the other tomograms of a night.
        _logger.warning("%s failed", item.name, exc_info=True)
        what = str(error).partition("\n")[0]
        return replace(
            result, state="failed", error=f"{type(error).__name__}: {what}", seconds=time.monotonic() - begun
        )
    return replace(
        result, state="finished", voxels=outcome.voxels, share=outcome.share, seconds=time.monotonic() - begun
    )


def _earlier(folder: Path) -> dict[str, BatchResult]:
    """Return what an earlier batch in this folder finished, by name."""
    try:
        records = json.loads((folder / f"{SUMMARY}.json").read_bytes())["results"]
        results = [BatchResult(**{key: record[key] for key in BatchResult.__annotations__}) for record in records]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The summary of an earlier batch, {folder / SUMMARY}.json, cannot be read ({error}). Delete it: run "
            "stores that are finished are recognised without it."
        ) from error
    return {result.name: result for result in results if result.state in ("finished", "present")}


def _write(folder: Path, items: Sequence[BatchItem], results: Sequence[BatchResult]) -> None:
    records = [asdict(result) for result in results]
    counts = {state: sum(result.state == state for result in results) for state in get_args(State)}
    write_atomically(folder / f"{SUMMARY}.json", json.dumps({"counts": counts, "results": records}, indent=1).encode())
    # The manifest's own columns first, so that evaluate --manifest and others find what they know.
    own = list(dict.fromkeys(name for item in items for name in item.columns))
    made = ["name", "source", "state", "prediction", "seconds", "voxels", "share", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*(name for name in own if name not in made), *made], lineterminator="\n")
    writer.writeheader()
    for item, record in zip(items, records, strict=True):
        writer.writerow({**item.columns, **{name: "" if record[name] is None else record[name] for name in made}})
    write_atomically(folder / f"{SUMMARY}.csv", text.getvalue().encode())
