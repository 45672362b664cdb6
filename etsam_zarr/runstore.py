"""The run store: one directory that holds everything a run computed, and a record of what it is.

``run.json`` says what was asked for; ``stages/1`` and ``stages/2`` hold the model's native logits; ``labels`` the
masks; ``0``, ``1``, ... a reduced copy of the tomogram, so that viewers open the store as an OME-Zarr image;
``ledger`` what is done; ``state`` what is needed to go on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import zarr

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import FingerprintError, OutputExistsError, RunStoreError
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.lease import Fence, Lease
from etsam_zarr.ledger import Block
from etsam_zarr.stage_arrays import (
    LOGIT_CHUNK_DEPTH,
    STAGES,
    Stage,
    StageArrays,
    StageSizes,
    create_stage_arrays,
    open_stage_arrays,
)

SUFFIX = ".etsam.zarr"
LAYOUT = 2
"""Number of the layout below; a store of another one is refused."""

_JOURNAL = "repair"


class RunStore:
    """A run on disk. Make one with :meth:`create`, find one with :meth:`open`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(
        cls, path: Path, record: Mapping[str, Any], *, tiles: int, native_size: int, hidden_dim: int,
        prompted: Mapping[Stage, int], windows: Sequence[Span] | None = None,
    ) -> RunStore:  # fmt: skip
        """Make a store with empty arrays; it appears at ``path`` whole or not at all.

        Parameters
        ----------
        record
            What ``run.json`` shall say: JSON values, with ``shape``, ``ome_zarr`` and ``fingerprint`` among them.
        tiles, native_size, hidden_dim, prompted
            Sizes of the arrays; ``prompted`` counts the prompted slices of each stage, 0 where the backward
            prediction is not asked for.
        windows
            The windows in which the depth is computed; None is one. With several there are arrays for repairs.

        Raises
        ------
        OutputExistsError
            Something lies at ``path``.
        OutputError
            The disk is full or the folder cannot be written.
        """
        if path.exists():
            raise OutputExistsError(f"There is something at {path} already. Give --overwrite or another -o.")
        partial = path.with_name(f"{path.name}.partial")
        version: Literal[2, 3] = 3 if record["ome_zarr"] == "0.5" else 2
        depth = int(record["shape"][0])
        with disk_errors("creating the run store", path):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            root = zarr.create_group(partial, zarr_format=version)
            windows = windows or (Span(0, depth),)
            for stage in STAGES:
                for name in (f"stages/{stage}", f"stages/{stage}/{_JOURNAL}")[: 1 if len(windows) == 1 else 2]:
                    sizes = StageSizes(tiles, depth, native_size, hidden_dim, prompted[stage])
                    create_stage_arrays(root.create_group(name), sizes)
            layout = {"layout": LAYOUT, "tiles": tiles, "windows": [[span.start, span.stop] for span in windows]}
            write_atomically(partial / "run.json", _json({**layout, **record}))
            partial.rename(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Open an existing store.

        Raises
        ------
        RunStoreError
            There is none at ``path``, or it cannot be read.
        """
        try:
            record = json.loads((path / "run.json").read_bytes())
            if not isinstance(record, dict):
                raise ValueError(f"it holds a {type(record).__name__}")
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "is no run store (it has no run.json)" if path.exists() else "does not exist"
            raise RunStoreError(
                f"{path} {what}. Give the path of a store that 'etsam-zarr run' made (usually *{SUFFIX})."
            ) from error
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"The run store {path} is damaged: run.json cannot be read ({error}). Delete the store, "
                "or give another -o, and run again."
            ) from error
        if record.get("layout") != LAYOUT:
            raise RunStoreError(
                f"The run store {path} has layout {record.get('layout')}, this version reads layout {LAYOUT}. Use the "
                "version that made it, or delete the store and run again."
            )
        return cls(path, record)

    @staticmethod
    def is_store(path: Path) -> bool:
        """Say whether a run store lies at ``path``."""
        return (path / "run.json").is_file()

    def revise(self, **changes: Any) -> None:  # noqa: ANN401 - JSON values
        """Replace entries of ``run.json`` on which nothing computed depends.

        Raises
        ------
        OutputError
            The store cannot be written.
        """
        record = {**self.record, **changes}
        write_atomically(self.path / "run.json", _json(record))
        self.record = record

    def remove(self) -> None:
        """Delete the whole store from disk; at its own path it is gone at once, also if this is interrupted."""
        doomed = self.path.with_name(f"{self.path.name}.deleted")
        with disk_errors("deleting the run store", self.path):
            if doomed.exists():
                shutil.rmtree(doomed)
            self.path.rename(doomed)
            shutil.rmtree(doomed)

    @property
    def shape(self) -> Shape3:
        """Shape of the volume, z, y, x."""
        z, y, x = self.record["shape"]
        return z, y, x

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Edge lengths of a voxel in angstrom, z, y, x, if known."""
        size = self.record["voxel_size"]
        return None if size is None else (size[0], size[1], size[2])

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel (0, 0, 0) in angstrom, z, y, x."""
        z, y, x = self.record["origin"]
        return z, y, x

    def blocks(self, stage: Stage) -> tuple[Block, ...]:
        """Return the blocks of a stage, tile by tile, window by window."""
        windows = [Span(start, stop) for start, stop in self.record["windows"]]
        return tuple(
            Block(stage, tile, window, span)
            for tile in range(self.record["tiles"])
            for window, span in enumerate(windows)
        )

    def stage(self, stage: Stage) -> StageArrays:
        """Return the arrays of a stage.

        Raises
        ------
        RunStoreError
            Their metadata are damaged.
        """
        return open_stage_arrays(self._stage_folder(stage))

    def journal(self, stage: Stage) -> StageArrays:
        """Return the arrays that take the slices of repairs until these have ended; same shapes.

        Raises
        ------
        RunStoreError
            Their metadata are damaged, or the stage is finished, so that they are gone.
        """
        return open_stage_arrays(self._stage_folder(stage) / _JOURNAL)

    def _stage_folder(self, stage: Stage) -> Path:
        return self.path / "stages" / str(stage)

    def forget_slices(self, stage: Stage, tile: int, z: Span, *, journal: bool = False) -> None:
        """Delete the chunks of a stage of a tile that begin within ``z``, which must end with a window.

        Nothing notes them as finished, and what a power failure left of them could not be added to.
        """
        keys = "c" if self.record["ome_zarr"] == "0.5" else "."
        folder = self._stage_folder(stage) / _JOURNAL if journal else self._stage_folder(stage)
        for name in ("logits", "object_score", "object_pointer"):
            for chunk in (folder / name / keys / str(tile)).glob("[0-9]*"):
                # A name may go on after a dot: a chunk that was being written when the process was killed.
                if not z.start <= int(chunk.name.split(".")[0]) * LOGIT_CHUNK_DEPTH < z.stop:
                    continue
                if chunk.is_dir():
                    shutil.rmtree(chunk)
                else:
                    chunk.unlink(missing_ok=True)

    def conditioning_file(self, stage: Stage, tile: int) -> Path:
        """Return where the prompted slices' outputs of a stage of a tile are kept."""
        return self.path / "state" / f"stage{stage}" / f"tile{tile:05d}" / "conditioning.safetensors"

    def recent_file(self, block: Block, generation: int, z: int) -> Path:
        """Return where the state is kept from which slice ``z`` can be computed.

        That of a window's end, and of the end of a repair that ran so far, stays until the stage is finished.
        """
        folder = self.conditioning_file(block.stage, block.tile).parent
        return folder / f"window{block.window:05d}" / f"generation{generation:03d}" / f"recent-{z:07d}.safetensors"

    def clear_state(self, stage: Stage) -> None:
        """Delete what only an unfinished stage needs: its states and the arrays for repairs."""
        for folder in (self.path / "state" / f"stage{stage}", self._stage_folder(stage) / _JOURNAL):
            if folder.exists():
                with disk_errors("deleting what is needed no more", folder):
                    doomed = folder.with_name(f".{folder.name}.deleted")
                    shutil.rmtree(doomed, ignore_errors=True)
                    folder.rename(doomed)
                    shutil.rmtree(doomed)

    def check_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Compare with the fingerprint of the run that is asked for.

        Raises
        ------
        FingerprintError
            They differ; the message names each setting with both values.
        """
        mine: dict[str, Any] = self.record["fingerprint"]
        theirs = json.loads(_json(fingerprint))
        differing = [
            f"{name} ({_short(mine.get(name))} there, {_short(theirs.get(name))} now)"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]
        if differing:
            raise FingerprintError(
                f"The run store {self.path} was made with other settings: {'; '.join(differing)}. Give the settings of "
                "the store to go on with it, another -o to keep it, or --overwrite to delete it and start again."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[Fence]:
        """Hold the store for writing; yields what workers check before they write.

        Raises
        ------
        RunStoreError
            Another process is writing the store, on this machine or on another one.
        """
        with Lease(self.path) as lease:
            yield lease.fence


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _short(value: object) -> str:
    if value is None:
        return "not used"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"
