"""Which model a run uses, and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from etsam_zarr import modelspec
from etsam_zarr.bundled import BUNDLED_SETTINGS
from etsam_zarr.config import resolve_settings
from etsam_zarr.errors import ModelError
from etsam_zarr.modelspec import ModelSpec, choose_model, fingerprint_of
from etsam_zarr.weights import ETSAM_FILES

BUNDLED = (Path("models/one.pt"), Path("models/two.pt"))


@pytest.fixture
def bundled_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the bundled weights lie at ``BUNDLED``; nothing is loaded by choosing."""
    monkeypatch.setattr(modelspec, "find_bundled_weights", lambda: BUNDLED)
    monkeypatch.setattr(modelspec, "bundled_paths", lambda: BUNDLED)


def _saved(path: Path, predictor: Any, *, change: float = 0.0) -> Path:
    state = {name: value.clone() for name, value in predictor.state_dict().items()}
    state["no_mem_embed"] += change
    torch.save({"model": state}, path)
    return path


@pytest.mark.usefixtures("bundled_paths", "no_etsam_weights")
def test_the_bundled_model_stands_in_for_weights_that_are_not_here() -> None:
    spec = choose_model()
    assert (spec.config.name, spec.checkpoints, spec.settings) == ("demo-256", BUNDLED, BUNDLED_SETTINGS)
    assert spec.stands_in
    assert spec.bundled
    named = choose_model("demo-256")
    assert named.checkpoints == BUNDLED
    assert not named.stands_in, "it was asked for"


@pytest.mark.usefixtures("bundled_paths")
def test_etsams_weights_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETSAM_ZARR_WEIGHTS", str(tmp_path))
    paths = tuple(tmp_path / name for name in ETSAM_FILES)
    for path in paths:
        path.write_bytes(b"PK" + bytes(2 << 20))
    spec = choose_model()
    assert (spec.config.name, spec.checkpoints, spec.settings) == ("sam2.1_hiera_b+", paths, None)
    assert not spec.stands_in
    assert choose_model("demo-256").checkpoints == BUNDLED
    own = tmp_path / "fine-tuned.pt"
    assert choose_model(stage1_checkpoint=own).checkpoints == (own, paths[1])


@pytest.mark.usefixtures("bundled_paths", "no_etsam_weights")
def test_etsams_model_by_name_says_where_its_weights_are() -> None:
    with pytest.raises(ModelError, match=r"no weights for the model sam2\.1_hiera_b\+.*zenodo.*--stage1-checkpoint"):
        choose_model("sam2.1_hiera_b+")


@pytest.mark.usefixtures("bundled_paths")
def test_fine_tuned_weights_keep_the_bundled_models_settings(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    both = choose_model("demo-256", stage1_checkpoint=one, stage2_checkpoint=two)
    first = choose_model("demo-256", stage1_checkpoint=one)
    second = choose_model("demo-256", stage2_checkpoint=two)
    assert both.checkpoints == (one, two)
    assert first.checkpoints == (one, BUNDLED[1])
    assert second.checkpoints == (BUNDLED[0], two)
    for spec in (both, first, second):
        assert spec.settings == BUNDLED_SETTINGS
        assert not spec.bundled
    assert resolve_settings(model_settings=both.settings).normalize_method == "percentile"


@pytest.mark.usefixtures("bundled_paths", "no_etsam_weights")
@pytest.mark.parametrize("model", [None, "sam2.1_hiera_b+", "seeded-256"])
@pytest.mark.parametrize("stage", [1, 2])
def test_one_checkpoint_alone_is_refused(stage: int, model: str | None, tmp_path: Path) -> None:
    given: dict[str, Any] = {f"stage{stage}_checkpoint": tmp_path / "a.pt"}
    with pytest.raises(ModelError, match=f"Give --stage{3 - stage}-checkpoint as well"):
        choose_model(model, **given)


def test_the_seeded_model_says_that_it_is_untrained(seeded_spec: ModelSpec, tmp_path: Path) -> None:
    assert seeded_spec.untrained
    given = choose_model("seeded-256", stage1_checkpoint=tmp_path / "a", stage2_checkpoint=tmp_path / "b")
    assert not given.untrained


def test_the_stages_of_the_seeded_model_differ_and_are_always_the_same(seeded_spec: ModelSpec) -> None:
    predictor = seeded_spec.build("cpu")

    def weights(stage: Any) -> torch.Tensor:
        seeded_spec.load(predictor, stage)
        return torch.cat([value.flatten().clone() for value in predictor.state_dict().values()])

    first, second = weights(1), weights(2)
    assert not torch.equal(first, second)
    assert torch.equal(weights(1), first)
    assert seeded_spec.weight_bytes() == 4 * first.numel()


def test_checkpoints_are_loaded_by_stage_and_identified_by_content(seeded_predictor: Any, tmp_path: Path) -> None:
    one = _saved(tmp_path / "one.pt", seeded_predictor)
    two = _saved(tmp_path / "two.pt", seeded_predictor, change=0.5)
    spec = choose_model("seeded-256", stage1_checkpoint=one, stage2_checkpoint=two)
    predictor = spec.build("cpu")
    before = seeded_predictor.state_dict()["no_mem_embed"]
    for stage, expected in ((1, before), (2, before + 0.5)):
        spec.load(predictor, stage)  # type: ignore[arg-type]
        assert torch.equal(predictor.state_dict()["no_mem_embed"], expected)

    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(one.read_bytes())
    same = choose_model("seeded-256", stage1_checkpoint=moved, stage2_checkpoint=two)
    swapped = choose_model("seeded-256", stage1_checkpoint=two, stage2_checkpoint=one)
    assert fingerprint_of(spec) == fingerprint_of(same)
    assert fingerprint_of(spec) != fingerprint_of(swapped)


def test_a_checkpoint_of_another_model_names_file_and_weight(seeded_predictor: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"model": {"backbone.weight": torch.zeros(3)}}, path)
    spec = choose_model("seeded-256", stage1_checkpoint=path, stage2_checkpoint=path)
    first = next(iter(seeded_predictor.state_dict()))
    with pytest.raises(ModelError, match=rf"other\.pt does not belong to this model: {first} is missing"):
        spec.load(seeded_predictor, 1)
