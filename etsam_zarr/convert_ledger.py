"""How far a conversion is: a small file in the folder in the making, with which a killed one goes on.

It says how many layers are done, for which source and settings; only a conversion of the same is gone on with.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import OutputExistsError
from etsam_zarr.events import Notice, OnEvent

LEDGER = ".etsam-zarr-convert.json"
"""The file's name."""


@dataclass
class ConvertLedger:
    """How far the conversion is, on disk."""

    path: Path
    """Its file."""
    task: dict[str, Any]
    """What must be equal, as JSON gives it back, for a partial result to be worth going on with."""
    layers: int = 0
    """How many are done."""

    @classmethod
    def resume(cls, partial: Path, task: dict[str, Any], on_event: OnEvent) -> ConvertLedger:
        """Return the ledger of a begun conversion of the same task; clear away any other.

        Parameters
        ----------
        partial
            The folder in the making; may be missing.
        task
            What is to be done.
        on_event
            Told if it starts from the beginning although something was there.

        Raises
        ------
        OutputExistsError
            The folder holds something that no conversion made.
        OutputError
            The folder cannot be written.
        """
        ledger = cls(partial / LEDGER, task)
        if not partial.exists():
            return ledger
        if not ledger.path.exists() and any(LEDGER not in entry.name for entry in partial.iterdir()):
            raise OutputExistsError(
                f"{partial} is needed for unfinished work, but holds something else. Move it away, or choose another "
                "destination."
            )
        begun = ledger._stored_layers()
        with disk_errors("going on with a conversion", partial):
            if begun is not None:
                ledger.layers = begun
                # What a killed process was just writing. After a failure in this very process, zarr may still be
                # finishing chunks that were under way: those rename their file while this looks at it.
                for leftover in partial.rglob("*.partial"):
                    leftover.unlink(missing_ok=True)
            else:
                on_event(Notice(f"{partial.name} holds nothing to go on with; starting from the beginning."))
                shutil.rmtree(partial)
        return ledger

    def finish(self, layers: int) -> None:
        """Note that so many layers are done.

        Raises
        ------
        OutputError
            The ledger cannot be written.
        """
        self.layers = layers
        self.save()

    def save(self) -> None:
        """Write the ledger, whole or not at all; makes the folder.

        Raises
        ------
        OutputError
            The ledger cannot be written.
        """
        write_atomically(self.path, json.dumps({"layers": self.layers, "task": self.task}).encode())

    def _stored_layers(self) -> int | None:
        """Return how many layers of this very task are done; None for another task, or none at all."""
        try:
            stored = json.loads(self.path.read_bytes())
            layers = int(stored["layers"])
            return layers if layers > 0 and stored["task"] == self.task else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
