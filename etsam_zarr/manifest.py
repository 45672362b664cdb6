"""A list of pairs to evaluate: a CSV of any columns, and how paths are made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import InputError, InputNotFoundError, SettingsError
from etsam_zarr.sources import as_place


@dataclass(frozen=True)
class Pair:
    """One line of a manifest."""

    columns: dict[str, str]
    """What the line says, by column; written in front of the results."""
    prediction: Path | str | None
    """Run store, mask or scores; text where it is an address, None where the line has none."""
    truth: Path | str | None
    """Mask; text where it is an address, None where no pattern was given."""

    @property
    def name(self) -> str:
        """What to call it: the prediction, or what the line begins with."""
        return str(self.prediction) if self.prediction is not None else ", ".join([*self.columns.values()][:2])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV with a header as one dictionary a line.

    Raises
    ------
    InputError
        There is no such file, or it has no lines.
    """
    if not path.is_file():
        raise InputNotFoundError(f"There is no manifest at {path}. Give a CSV file with a header.")
    # utf-8-sig: spreadsheets put a byte-order mark in front.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(f"The manifest {path} has no lines below its header. List one a line.")
    return [{str(key): value or "" for key, value in row.items() if key is not None} for row in rows]


def read_manifest(
    path: Path,
    *,
    prediction: str = "{prediction}",
    truth: str | None = "{truth}",
    conditions: Mapping[str, str] | None = None,
) -> list[Pair]:
    """Read the pairs of a manifest.

    Parameters
    ----------
    path
        A CSV with a header. ETSAM's ``testset.csv`` has the columns ``dataset_id`` and ``run_id``.
    prediction, truth
        How the paths are made, with column names in braces, such as
        ``"predictions/{dataset_id}/{run_id}.etsam.zarr"``. Relative paths start at the manifest's folder. None for
        ``truth`` if it comes from elsewhere.
    conditions
        Only the lines with these values in these columns.

    Raises
    ------
    InputError
        There is no manifest, or it is empty or lacks a column.
    SettingsError
        A pattern is malformed.
    """
    pairs = []
    for columns in matching(read_rows(path), conditions or {}, path):
        predicted = _filled(prediction, columns, path)
        place = _placed(predicted, path) if predicted.strip() else None
        pairs.append(Pair(columns, place, None if truth is None else _placed(_filled(truth, columns, path), path)))
    return pairs


def matching(rows: Sequence[dict[str, str]], conditions: Mapping[str, str], path: Path) -> list[dict[str, str]]:
    """Return the rows of a manifest whose columns have the given values.

    Raises
    ------
    InputError
        A column is not there, or no row is left.
    """
    absent = [column for column in conditions if column not in rows[0]]
    if absent:
        raise InputError(
            f"The manifest {path} has no column {absent[0]!r}; its columns are: {', '.join(rows[0])}. Change the "
            "condition or the header."
        )
    left = [row for row in rows if all(row[column].strip() == value for column, value in conditions.items())]
    if not left:
        asked = " and ".join(f"{column}={value}" for column, value in conditions.items())
        raise InputError(f"None of the {len(rows)} lines of the manifest {path} has {asked}. Change the condition.")
    return left


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


def _placed(text: str, manifest: Path) -> Path | str:
    place = as_place(text)
    return manifest.parent / place if isinstance(place, Path) else place


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
