"""The demo, whole: every command that it shows runs, and its figures and pictures are there."""

from __future__ import annotations

import re
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from etsam_zarr_cli.main import main
from PIL import Image


@pytest.mark.usefixtures("bundled_model")
def test_a_demo_ends_with_scores_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", str(folder), "--shape", "10,256,256", "--snr", "1"]) == 0
    told = capsys.readouterr().out
    header, scores = re.search(r"( +dice +iou +precision +recall)\n +above 0 +(.*)\n", told).groups()  # type: ignore[union-attr]
    assert header.split() == ["dice", "iou", "precision", "recall"]
    assert float(scores.split()[0]) > 0.4
    with Image.open(folder / "membranes.png") as picture:
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert (colours == (255, 176, 0)).all(axis=2).any(), "outlines"
    assert ((colours[..., 2] - colours[..., 0]) > 60).sum() > 1000, "truth"
    with mrcfile.open(folder / "membranes.mrc") as mask:
        assert mask.data.shape == (10, 256, 256)
        assert 0 < mask.data.mean() < 0.5

    assert main(["demo", str(folder)]) == 0
    again = capsys.readouterr().out
    assert "is there from an earlier demo" in again
    assert scores in again, "the same tomogram, model and result"
