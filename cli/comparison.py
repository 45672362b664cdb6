"""What ``evaluate`` does with each pair: open both sides, find out what they are, and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etsam_zarr_cli.result_options import region

from etsam_zarr.errors import SettingsError
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.geometry import Box

if TYPE_CHECKING:
    from etsam_zarr.evaluation.agreement import Evaluation
    from etsam_zarr.evaluation.comparison import EvaluationSettings
    from etsam_zarr.portal.table import TruthWish
    from etsam_zarr.results import Source
    from etsam_zarr.volume import Volume


@dataclass(frozen=True)
class Comparison:
    """What the command line asks to do with every pair."""

    thresholds: tuple[float, ...] | None
    roi: Box | None
    tolerance: float
    curve: bool
    label: str | None
    any_label: bool
    scratch: Path | None

    def evaluate(
        self, prediction: Path | str, truth: Path | str | TruthWish, row: Mapping[str, str], on_event: OnEvent
    ) -> Evaluation:
        """Compare one pair; ``row`` is its line of the manifest, or empty."""
        from etsam_zarr.evaluation.comparison import evaluate_mask, evaluate_scores
        from etsam_zarr.masks import BinaryMask, VolumeBox
        from etsam_zarr.remote.volumes import expect_only
        from etsam_zarr.results import Source
        from etsam_zarr.sources import open_volume

        given = Source.at(prediction, label=self.label) if isinstance(prediction, Path) else None
        if given is None and self.label is not None:
            raise SettingsError(f"--label goes with run stores, and {prediction} is an address. Leave it out.")
        name = str(prediction)
        scratch = (self.scratch or _beside(prediction)) / f".{Path(name).name}.curve"
        with _open_truth(truth, given, row, on_event) as true_volume:
            expect_only(true_volume, self.roi)
            true = BinaryMask(true_volume, name=true_volume.info.uri, any_label=self.any_label)
            if given is not None and given.store is not None and self.label is None:
                from etsam_zarr.ledger import Ledger
                from etsam_zarr.scores import final_scores

                store = given.require_logits()
                # What the mask of the run was made with last.
                mask_record = Ledger(store.path / "ledger").finished("mask") or store.record["settings"]
                settings = self._settings(float(mask_record["logit_threshold"]))
                return evaluate_scores(
                    final_scores(store), true, scratch=scratch, settings=settings, name=name, on_event=on_event
                )
            with given.open_mask() if given is not None else open_volume(prediction) as volume:
                expect_only(volume, self.roi)
                settings = self._settings(0.0)
                if volume.info.dtype.kind == "f":
                    return evaluate_scores(
                        VolumeBox(volume), true, scratch=scratch, settings=settings, name=name, on_event=on_event
                    )
                if self.thresholds is not None:
                    raise SettingsError(
                        f"{prediction} is a mask ({volume.info.dtype}), and --logit-threshold makes masks of scores. "
                        "Leave it out."
                    )
                mask = BinaryMask(volume, name=name, any_label=self.any_label)
                return evaluate_mask(mask, true, settings=settings, on_event=on_event)

    def _settings(self, own_threshold: float) -> EvaluationSettings:
        from etsam_zarr.evaluation.comparison import EvaluationSettings

        return EvaluationSettings(
            thresholds=self.thresholds or (own_threshold,), roi=self.roi, tolerance=self.tolerance, curve=self.curve
        )


def _beside(prediction: Path | str) -> Path:
    return prediction.parent if isinstance(prediction, Path) else Path()


def _open_truth(
    truth: Path | str | TruthWish, given: Source | None, row: Mapping[str, str], on_event: OnEvent
) -> Volume:
    from etsam_zarr.roi import RoiVolume
    from etsam_zarr.sources import open_volume

    if isinstance(truth, Path | str):
        volume = open_volume(truth)
    else:
        address, level = _on_portal(truth, given, row)
        volume = open_volume(address, level=level)
        on_event(Notice(f"The truth is {address}: {volume.info.uri}"))
    store = given.store if given is not None else None
    if store is None or store.record.get("roi") is None or volume.info.shape == store.shape:
        return volume
    # The run is of a region; the truth of the whole volume has it, too.
    on_event(Notice(f"The run is of the region {store.record['roi']} (z, y, x), so the truth is cut to it."))
    return RoiVolume(volume, region(store.record["roi"]))


def _on_portal(wish: TruthWish, given: Source | None, row: Mapping[str, str]) -> tuple[str, int]:
    """Return the address of the masks that the portal has of a prediction's run, and the level to read."""
    from etsam_zarr.portal.address import Choice
    from etsam_zarr.portal.table import Unresolved, run_of, run_of_ids, truth_address

    record = given.store.record if given is not None and given.store is not None else {}
    level = int(record.get("fingerprint", {}).get("level", 0))
    run = run_of_ids(record.get("portal", {}))
    if isinstance(run, Unresolved) and "dataset_id" in row:
        run = run_of(row)
    if isinstance(run, Unresolved):
        raise SettingsError(
            "--truth portal looks for the masks of the run that the prediction was made of, and "
            f"{'nothing' if given is None else given.path} says which: {run.reason}. Give the masks as "
            "portal:annotation/ID,ID, or a manifest with the columns dataset_id and run_id."
        )
    if run.choice.voxel_spacing is None and given is not None:
        spacing = _spacing_of(given)
        if spacing is not None:
            run = run.narrowed(Choice(voxel_spacing=spacing / 2**level))
    return str(truth_address(run, wish)), level


def _spacing_of(given: Source) -> float | None:
    """Return the edge of the prediction's voxels along x, in angstrom."""
    if given.store is not None:
        size = given.store.voxel_size
    else:
        with given.open_mask() as volume:
            size = volume.info.voxel_size
    return None if size is None else size[2]
