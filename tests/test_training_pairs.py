"""Pairs are checked before anything is trained on them."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import portal_stub
import pytest
import training_tiny as tiny
from etsam_zarr_cli.main import main

from etsam_zarr.errors import InputError
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.training.pairs import Pair


def test_planes_are_normalised_and_binary(tmp_path: Path) -> None:
    volume = tiny.opened(tiny.write_pair(tmp_path), tmp_path)
    images, masks = volume.planes(Span(2, 5))
    assert len(images) == len(masks) == 3
    assert min(image.min() for image in images) >= 0
    assert max(image.max() for image in images) <= 1
    assert masks[0].dtype == np.bool_


def test_the_one_pass_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny.write_pair(tmp_path)
    facts = tiny.opened(pair, tmp_path).facts

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("etsam_zarr.training.pairs.IntensityMeter", refuse)
    assert tiny.opened(pair, tmp_path).facts == facts


def test_stage1_is_added_as_a_run_adds_it(tmp_path: Path) -> None:
    import zarr

    volume = tiny.opened(tiny.write_pair(tmp_path), tmp_path)
    plain = volume.input_planes(Span(3, 4))[0]
    logits = np.full((10, 16, 16), -5.0, np.float32)
    logits[3] = 5.0
    zarr.save_array(tmp_path / "logits.zarr", logits)
    volume.use_stage1(tmp_path / "logits.zarr", LogitBounds(-5.0, 5.0))
    assert volume.input_planes(Span(3, 4))[0] == pytest.approx(plain + 1)


def rewritten(pair: Pair, change: str) -> Pair:
    assert pair.mask is not None
    with mrcfile.open(pair.mask, permissive=True) as file:
        mask = file.data.copy()
    with mrcfile.new(pair.mask, mask[:-1] if change == "shape" else 0 * mask if change == "empty" else mask,
                     overwrite=True) as file:  # fmt: skip
        file.voxel_size = 20.0 if change == "voxel size" else 10.0
    return pair


MISTAKES = [("shape", "9 x 64 x 64"), ("voxel size", "20 x 20 x 20 A"), ("empty", "is empty")]


@pytest.mark.parametrize(("change", "says"), MISTAKES)
def test_a_mask_that_cannot_belong_is_refused(tmp_path: Path, change: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny.opened(rewritten(tiny.write_pair(tmp_path), change), tmp_path)


@pytest.mark.parametrize("option", ["--pair", "--validate"])
@pytest.mark.parametrize(("change", "says"), MISTAKES)
def test_the_command_refuses_it_before_training(
    option: str, change: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tiny.write_pair(tmp_path), rewritten(tiny.write_pair(tmp_path, seed=1), change)
    assert good.mask is not None
    assert bad.mask is not None
    out = tmp_path / "out"
    arguments = ["train", "-o", str(out), "--model", tiny.write_model(tmp_path), "--stage", "1"]
    arguments += ["--pair", good.volume, good.mask, option, bad.volume, bad.mask]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "mask1.mrc" in said
    assert "Traceback" not in said
    assert not list(out.rglob("*.pt"))


def test_pairs_of_the_portal_are_trained_on(portal: portal_stub.Stub, tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    run = portal_stub.run_record(77, "a-run", 10_000)
    with mrcfile.open(pair.volume, permissive=True) as volume, mrcfile.open(pair.mask, permissive=True) as mask:
        portal.add_tomogram(1, run, volume.data.copy())
        portal.add_mask(9001, 501, run, mask.data.copy())
    there = Pair("portal:77", "portal:annotation/501")
    here, remote = tiny.opened(pair, tmp_path), tiny.opened(there, tmp_path)
    for mine, theirs in zip(here.planes(Span(2, 5)), remote.planes(Span(2, 5)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    out = tmp_path / "out"
    arguments = ["train", "-o", str(out), "--model", tiny.write_model(tmp_path), "--stage", "1", "--epochs", "1"]
    assert main([*arguments, "--steps-per-epoch", "1", "--pair", there.volume, str(there.mask)]) == 0
    assert (out / "stage1.pt").is_file()

    # What the guide to training advises for more than a try.
    assert main(["convert", there.volume, str(tmp_path / "tomo.zarr")]) == 0
    assert main(["convert", str(there.mask), str(tmp_path / "mask.zarr")]) == 0
    copied = tiny.opened(Pair(str(tmp_path / "tomo.zarr"), str(tmp_path / "mask.zarr")), tmp_path)
    np.testing.assert_array_equal(copied.planes(Span(2, 5))[1], here.planes(Span(2, 5))[1])
