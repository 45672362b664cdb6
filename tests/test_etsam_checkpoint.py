"""A checkpoint shaped like ETSAM's runs: SAM 2.1 B+ at 1024, values drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from etsam_zarr_cli.main import main
from tiny import texture, write_tomogram

from etsam_zarr.model_config import ETSAM_MODEL, read_model_config
from etsam_zarr.sam.predictor import build_predictor


@pytest.mark.slow
def test_two_slices_at_1024(tmp_path: Path) -> None:
    checkpoints = []
    for stage in (1, 2):
        predictor = build_predictor(read_model_config(ETSAM_MODEL), None, seed=stage)
        path = tmp_path / f"etsam_stage{stage}_v1.pt"
        torch.save({"model": predictor.state_dict()}, path)
        checkpoints += [f"--stage{stage}-checkpoint", str(path)]
        assert 300e6 < path.stat().st_size < 350e6
        del predictor
    source = write_tomogram(tmp_path / "tomo.mrc", texture((2, 60, 70)))
    assert main(["run", str(source), "--model", ETSAM_MODEL, *checkpoints, "--precision", "float32"]) == 0
    for stage in (1, 2):
        logits = np.asarray(zarr.open_array(tmp_path / f"tomo.etsam.zarr/stages/{stage}/logits", mode="r"))
        assert logits.shape == (1, 2, 256, 256)
        assert np.isfinite(logits).all()
        assert np.ptp(logits[0, 1]) > 0
