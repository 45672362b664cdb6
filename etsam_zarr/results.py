"""What a command works on: the scores and labels of a run store, or plain files in their stead."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from etsam_zarr.errors import RunStoreError, SettingsError
from etsam_zarr.label_output import LabelOutput, OutputFacts
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import MEMBRANES, mask_chunks
from etsam_zarr.ome.attributes import OmeVersion, Rgba
from etsam_zarr.runstore import RunStore
from etsam_zarr.sources import open_volume
from etsam_zarr.status import stage_status
from etsam_zarr.volume import Volume

PROCESSED = "membranes_processed"
COMPONENTS = "components"


@dataclass(frozen=True)
class Source:
    """A mask or scores to work on."""

    path: Path
    store: RunStore | None
    """The run store at the path, if it is one."""
    label: str | None = None
    """Which label of the store was opened."""

    @classmethod
    def at(cls, path: Path, *, label: str | None = None) -> Source:
        """Say what lies at a path.

        Raises
        ------
        SettingsError
            A label is asked for and there is no run store.
        """
        store = RunStore.open(path) if RunStore.is_store(path) else None
        if store is None and label is not None:
            raise SettingsError(f"--label goes with run stores, and {path} is none. Leave it out, or give a run store.")
        return cls(path, store, label)

    def open_mask(self) -> Volume:
        """Open the mask: the label of a run store (``membranes`` unless another was named), or the file.

        Raises
        ------
        RunStoreError
            The run has no such label, or its mask is not finished.
        InputError
            The file cannot be read.
        """
        return open_volume(self.mask_place())

    def latest_label(self) -> str | None:
        """Return the label to work on where none is named: the processed mask if it was made from the present mask.

        None for files.
        """
        if self.store is None:
            return None
        ledger = Ledger(self.store.path / "ledger")
        processed = ledger.finished(PROCESSED)
        there = (self.store.path / "labels" / PROCESSED).is_dir()
        return PROCESSED if there and processed == {"made_from": ledger.finished("mask")} else MEMBRANES

    def note_processed(self) -> None:
        """Note in a run that its processed mask was made from the present mask."""
        if self.store is not None:
            ledger = Ledger(self.store.path / "ledger")
            ledger.finish(PROCESSED, {"made_from": ledger.finished("mask")})

    def locked(self) -> contextlib.AbstractContextManager[object]:
        """Hold the run store for writing, as :meth:`RunStore.locked` does; nothing to hold for files."""
        return contextlib.nullcontext() if self.store is None else self.store.locked()

    def mask_place(self) -> Path:
        """Return where the mask lies, as :meth:`open_mask` has it, raising the same errors for runs."""
        if self.store is None:
            return self.path
        label = self.label or MEMBRANES
        place = self.store.path / "labels" / label
        unfinished = label == MEMBRANES and Ledger(self.store.path / "ledger").finished("mask") is None
        if unfinished or not place.is_dir():
            others = sorted(path.name for path in (self.store.path / "labels").glob("[!.]*/"))
            raise RunStoreError(
                f"The run {self.path} has no finished label {label!r}; it has: {', '.join(others) or 'none'}. "
                "Name another with --label, or give the run command again if the run is not finished."
            )
        return place

    def content_id(self, volume: Volume) -> str:
        """Return what tells this mask from another one, also from an earlier one at the same path."""
        stored = Path(volume.info.uri)
        if not stored.exists():
            return volume.digest()
        facts = stored.stat()
        return f"{volume.digest()} {facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"

    def require_logits(self) -> RunStore:
        """Return the run store, whose logits are all there.

        Raises
        ------
        RunStoreError
            It is no run store, or the run is not finished.
        """
        store = self.store or RunStore.open(self.path)
        status = stage_status(store, 2)
        if not status.finished:
            raise RunStoreError(
                f"The run {self.path} is not finished: stage 2 has {status.count}. Give its "
                "run command again; it goes on where it was."
            )
        return store

    def output(
        self,
        place: Path | None,
        label: str,
        *,
        like: Volume | RunStore,
        colours: Mapping[int, Rgba] | None = None,
        overwrite: bool = False,
    ) -> LabelOutput:
        """Return where a result goes: a path that was given, or a label of the run store.

        Parameters
        ----------
        place
            The path, or None.
        label
            Name of the label.
        like
            What the result has its shape and voxel size from.
        colours
            Of a label's values.
        overwrite
            Replace what is there.

        Raises
        ------
        SettingsError
            There is neither.
        OutputExistsError
            Something is there.
        """
        info = like.info if isinstance(like, Volume) else like
        version: OmeVersion = "0.4" if self.store is None else self.store.record["ome_zarr"]
        facts = OutputFacts(info.shape, info.voxel_size, info.origin, mask_chunks(info.shape), version)
        if place is not None:
            return LabelOutput(place, facts, overwrite=overwrite)
        if self.store is None:
            raise SettingsError(f"{self.path} is not a run store: say with -o where the result is to go.")
        return LabelOutput(
            self.store.path / "labels" / label, facts, image=self.store.path, colours=colours, overwrite=overwrite
        )


def label_colours(count: int) -> dict[int, Rgba]:
    """Return colours for the first ids, far apart in hue; viewers choose for the rest.

    >>> label_colours(2)
    {1: (255, 64, 64, 255), 2: (64, 120, 255, 255)}
    """
    import colorsys

    golden = 0.6180339887498949
    colours: dict[int, Rgba] = {}
    for number in range(1, min(count, 256) + 1):
        red, green, blue = colorsys.hsv_to_rgb((number - 1) * golden % 1, 0.75, 1)
        colours[number] = (round(red * 255), round(green * 255), round(blue * 255), 255)
    return colours
