"""A list of pairs to evaluate: a CSV of any columns, and how paths are made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import InputError, InputNotFoundError, SettingsError


@dataclass(frozen=True)
class Pair:
    """One line of a manifest."""

    columns: dict[str, str]
    """What the line says, by column; written in front of the results."""
    prediction: Path
    """Run store, mask or scores."""
    truth: Path
    """Mask."""


def read_manifest(path: Path, *, prediction: str = "{prediction}", truth: str = "{truth}") -> list[Pair]:
    """Read the pairs of a manifest.

    Parameters
    ----------
    path
        A CSV with a header. ETSAM's ``testset.csv`` has the columns ``dataset_id`` and ``run_id``.
    prediction, truth
        How the paths are made, with column names in braces, such as
        ``"predictions/{dataset_id}/{run_id}.etsam.zarr"``. Relative paths start at the manifest's folder.

    Raises
    ------
    InputError
        There is no manifest, or it is empty or lacks a column.
    SettingsError
        A pattern is malformed.
    """
    if not path.is_file():
        raise InputNotFoundError(f"There is no manifest at {path}. Give a CSV file with a header.")
    # utf-8-sig: spreadsheets put a byte-order mark in front.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(f"The manifest {path} has no lines below its header. List one pair a line.")
    pairs = []
    for row in rows:
        columns = {str(key): value or "" for key, value in row.items() if key is not None}
        pairs.append(Pair(columns, *(path.parent / _filled(p, columns, path) for p in (prediction, truth))))
    return pairs


def write_results(path: Path, pairs: Sequence[Pair], results: Sequence[dict[str, float | str]]) -> None:
    """Write a CSV: each pair's columns, then its results; a cell that a pair has no value for stays empty.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    rows = [{**pair.columns, **result} for pair, result in zip(pairs, results, strict=True)]
    # The order in which names first appear, over all rows: a pair that failed has fewer.
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _filled(pattern: str, columns: dict[str, str], path: Path) -> str:
    try:
        return pattern.format_map(columns)
    except KeyError as error:
        raise InputError(
            f"The manifest {path} has no column {error}, which the path {pattern!r} needs. Its columns are: "
            f"{', '.join(columns)}. Change the pattern or the header."
        ) from error
    except (ValueError, IndexError, AttributeError) as error:
        raise SettingsError(
            f"The path pattern {pattern!r} is malformed ({error}). Put column names in braces: '{{run_id}}/mask.mrc'."
        ) from error
