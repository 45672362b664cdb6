"""Training: it learns, it resumes to the same bits, and its results load in a run."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import training_tiny as tiny
import yaml
from etsam_zarr_cli.main import main

from etsam_zarr.checkpoint import read_checkpoint
from etsam_zarr.errors import DoesNotFitError, FingerprintError, ModelError, OutputExistsError
from etsam_zarr.events import Advanced, Event, Notice
from etsam_zarr.sam.predictor import build_predictor
from etsam_zarr.training.clips import Clip, ClipSampler
from etsam_zarr.training.loop import KEPT, LOG, TrainJob, train
from etsam_zarr.training.model import build_clip_model
from etsam_zarr.training.predict import Score
from etsam_zarr.training.progress import LAST
from etsam_zarr.training.settings import PhantomSet, load_recipe
from etsam_zarr.training.stages import phantom_settings


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    volume = tiny.opened(tiny.write_pair(tmp_path), tmp_path)
    return TrainJob(
        stage=1, config=tiny.config(tmp_path), settings=tiny.settings(), volumes=[volume], validation=[volume],
        folder=tmp_path / "out", minutes_between_checkpoints=0.0,
    )  # fmt: skip


def test_one_clip_is_learnt_by_heart(job: TrainJob) -> None:
    model = build_clip_model(job.config, job.settings).train()
    clip = ClipSampler(job.volumes, job.settings, stage=1, image_size=64).draw(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    dice = []
    for step in range(60):
        losses = model(clip, seed=step)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        dice.append(float(losses["dice"].detach()))
    assert dice[0] > 0.6
    assert min(dice[-5:]) < 0.25


def test_a_closed_gate_lets_gradients_pass_and_learns_to_open(job: TrainJob) -> None:
    model = build_clip_model(job.config, job.settings).train()
    clip = ClipSampler(job.volumes, job.settings, stage=1, image_size=64).draw(0)
    bias = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    with torch.no_grad():
        bias.fill_(-20.0)
    losses = model(clip, seed=0)
    losses["total"].backward()
    assert float(model.image_encoder.trunk.patch_embed.proj.weight.grad.abs().max()) > 1e-6
    assert float(bias.grad) < 0, "more is better"
    assert float(losses["bce"].detach()) < 5


def test_memory_is_trained(job: TrainJob) -> None:
    model = build_clip_model(job.config, job.settings).train()
    clip = ClipSampler(job.volumes, job.settings, stage=1, image_size=64).draw(0)
    model(clip, seed=0)["total"].backward()
    for module in (model.memory_encoder, model.memory_attention, model.obj_ptr_proj):
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0


def test_a_lead_is_remembered_and_not_learned_from(job: TrainJob) -> None:
    model = build_clip_model(job.config, dataclasses.replace(job.settings, lead_slices=2)).eval()
    sampler = ClipSampler(job.volumes, model.train_settings, stage=1, image_size=64)
    clip = next(clip for clip in map(sampler.draw, range(20)) if clip.lead == 2)
    clip.images.requires_grad_()
    loss = model(clip, seed=0)["total"]
    loss.backward()
    assert clip.images.grad is not None
    learns = clip.images.grad.abs().amax(dim=(1, 2, 3, 4)) > 0
    assert learns.tolist() == [True, False, False, True, True, True]
    other_lead = clip.images.detach().clone()
    other_lead[1:3] = other_lead[1:3].flip(-1)
    other = Clip(other_lead, clip.masks, clip.slices, clip.prompts, lead=2)
    with torch.no_grad():
        assert float(model(other, seed=0)["total"]) != pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("weight_averaging", [0.0, 0.5])
def test_resume_ends_as_if_never_interrupted(job: TrainJob, tmp_path: Path, weight_averaging: float) -> None:
    settings = dataclasses.replace(job.settings, weight_averaging=weight_averaging)
    job = dataclasses.replace(job, settings=settings)
    whole = dataclasses.replace(job, folder=tmp_path / "whole")
    train(whole)

    class Interruption(Exception):
        pass

    for saved in (1, 2, 3):  # within an epoch, (after the resume) at its end, and in the next one
        seen = 0

        def stop(event: Event) -> None:
            nonlocal seen
            if isinstance(event, Advanced):
                seen += 1
                if seen > 1:
                    raise Interruption

        with pytest.raises(Interruption):
            train(job, resume=saved > 1, on_event=stop)
        assert torch.load(job.folder / LAST, weights_only=True)["progress"]["step"] == saved
    train(job, resume=True)

    first, second = (torch.load(folder / LAST, weights_only=True) for folder in (whole.folder, job.folder))
    assert first["progress"] == second["progress"]
    assert first["progress"]["step"] == 4
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert bool(first["average"]) == bool(weight_averaging)
    for name, value in first["average"].items():
        assert torch.equal(value, second["average"][name]), name
    kept = read_checkpoint(job.folder / KEPT)
    assert all(torch.equal(value, kept[name]) for name, value in read_checkpoint(whole.folder / KEPT).items())
    logs = []
    for folder in (whole.folder, job.folder):
        with (folder / LOG).open(newline="") as file:
            logs.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    assert [row["epoch"] for row in logs[0]] == ["1", "2"]
    assert 0 <= float(logs[0][-1]["dice"]) <= 1


@pytest.mark.parametrize(("keep", "validated"), [("best", True), ("last", True), ("best", False)])
def test_what_is_kept(job: TrainJob, monkeypatch: pytest.MonkeyPatch, keep: str, validated: bool) -> None:
    """Of three epochs, the second with the best score."""
    scores = iter((0.2, 0.6, 0.4))
    monkeypatch.setattr("etsam_zarr.training.loop.evaluate", lambda *_, **__: Score(next(scores), 0.5, 0.5))
    settings = tiny.settings(epochs=3, weight_averaging=0.5, keep=keep)
    job = dataclasses.replace(job, settings=settings, validation=job.validation if validated else [])
    averages = []

    def note(event: Event) -> None:
        if isinstance(event, Notice) and event.message.startswith("Epoch"):
            averages.append(read_checkpoint(job.folder / KEPT))

    result = read_checkpoint(train(job, on_event=note))
    expected = averages[1] if (keep, validated) == ("best", True) else averages[2]
    at_the_end = torch.load(job.folder / LAST, weights_only=True)["average"]
    same_as_at_the_end = all(torch.equal(value, at_the_end[f"module.{name}"]) for name, value in result.items())
    assert all(torch.equal(value, expected[name]) for name, value in result.items())
    assert same_as_at_the_end == ((keep, validated) != ("best", True))


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    program = "import sys; from etsam_zarr_cli.main import main; sys.exit(main())"
    arguments = [sys.executable, "-c", program, "train", "--model", tiny.write_model(tmp_path), "--stage", "1"]
    arguments += ["--pair", pair.volume, pair.mask, "--epochs", "6", "--steps-per-epoch", "2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen([*arguments, "-o", str(killed)], stderr=subprocess.DEVNULL) as process:
        while not (killed / "stage1" / LAST).exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.kill()
    step = torch.load(killed / "stage1" / LAST, weights_only=True)["progress"]["step"]
    assert 2 <= step < 12
    for out, more in ((killed, ["--resume"]), (whole, [])):
        subprocess.run([*arguments, "-o", str(out), *more], check=True, capture_output=True)
    first, second = (read_checkpoint(out / "stage1.pt") for out in (killed, whole))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_bfloat16_trains_too(job: TrainJob) -> None:
    settings = tiny.settings(precision="bf16-mixed", epochs=1, steps_per_epoch=2)
    train(dataclasses.replace(job, settings=settings, validation=[]))
    with (job.folder / LOG).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 < float(row["loss_total"]) < 3


def test_a_training_is_neither_overwritten_nor_mixed(job: TrainJob, tmp_path: Path) -> None:
    short = dataclasses.replace(job, settings=tiny.settings(epochs=1, steps_per_epoch=1), validation=[])
    assert train(short) == job.folder / KEPT
    with pytest.raises(OutputExistsError, match="--resume"):
        train(short)
    with pytest.raises(FingerprintError, match="other data, settings"):
        train(dataclasses.replace(short, settings=tiny.settings(epochs=1, seed=3)), resume=True)
    (job.folder / LAST).write_bytes((job.folder / LAST).read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be read"):
        train(short, resume=True)


def test_the_recipe_of_etsam_trains(job: TrainJob) -> None:
    """Prompts drawn from the truth, correction clicks, and sam2's own losses."""
    settings = tiny.settings(
        recipe="etsam", clip_slices=3, bce_weight=0.0, focal_weight=20.0, layer_decay=0.9, vision_learning_rate=1e-4
    )
    model = build_clip_model(job.config, settings).train()
    sampler = ClipSampler(job.volumes, settings, stage=1, image_size=64)
    for key in range(3):
        losses = model(sampler.draw(key), seed=key)
        assert torch.isfinite(losses["total"])
        losses["total"].backward()
    repeated = model(sampler.draw(2), seed=2)
    assert torch.equal(repeated["total"], losses["total"])
    train(dataclasses.replace(job, settings=dataclasses.replace(settings, epochs=1, steps_per_epoch=1, accumulate=2)))


def test_command_trains_both_stages_and_a_run_loads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = tiny.write_pair(tmp_path)
    recipe = {
        "base": "inference",
        "settings": {"model": tiny.write_model(tmp_path), "steps_per_epoch": 2, "epochs": 1, "clip_slices": 3,
                     "grid_interval": 4, "warmup_steps": 1},
        "stage2": {"start_from_stage1": True},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    arguments = ["train", "--recipe", str(path), "-o", str(out)]
    assert main(arguments) == 1
    assert "nothing to train on" in capsys.readouterr().err
    assert pair.mask is not None
    arguments += ["--pair", pair.volume, pair.mask, "--validate", pair.volume, pair.mask]
    assert main(arguments) == 0
    assert capsys.readouterr().out.split() == [str(out / "stage1.pt"), str(out / "stage2.pt")]
    assert main(arguments) == 1
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--half"]) == 0
    config = tiny.config(tmp_path)
    for stage in (1, 2):
        checkpoint = out / f"stage{stage}.pt"
        assert set(torch.load(checkpoint, weights_only=True)) == {"model"}
        build_predictor(config, read_checkpoint(checkpoint), origin=str(checkpoint))
        halved = out / f"stage{stage}-half.pt"
        build_predictor(config, read_checkpoint(halved), origin=str(halved))
        assert halved.stat().st_size < 0.6 * checkpoint.stat().st_size
    assert (out / "stage1" / KEPT).exists()


def test_training_starts_from_named_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from etsam_zarr.bundled import bundled_paths, record_checksums
    from etsam_zarr.weights import ETSAM_FILES

    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    common = ["train", "--model", tiny.write_model(tmp_path), "--pair", pair.volume, pair.mask, "--epochs", "1"]
    common += ["--steps-per-epoch", "1"]
    monkeypatch.setenv("ETSAM_ZARR_WEIGHTS", str(tmp_path / "weights"))
    for wrong, says in (("etsam", "weights fetch"), ("nothing.pt", "is no file")):
        assert main([*common, "-o", str(tmp_path / "out"), "--init", wrong]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    # Each stage starts from weights of its own; a step of nearly no size leaves them as they were.
    (tmp_path / "weights").mkdir()
    starts = []
    for stage in (1, 2):
        weights = build_clip_model(tiny.config(tmp_path), tiny.settings(seed=stage)).state_dict()
        starts.append(weights)
        for path in (tmp_path / "weights" / ETSAM_FILES[stage - 1], bundled_paths(folder=tmp_path)[stage - 1]):
            torch.save({"model": weights, "padding": torch.zeros(1 << 18)}, path)
    record_checksums(folder=tmp_path)
    monkeypatch.setattr("etsam_zarr.bundled.find_bundled_weights", lambda: bundled_paths(folder=tmp_path))
    recipe = tmp_path / "still.yaml"
    recipe.write_text("settings: {learning_rate: 1.0e-30, grid_interval: 4, clip_slices: 3}\n")
    for name in ("etsam", "demo-256"):
        out = tmp_path / name
        assert main([*common, "-o", str(out), "--recipe", str(recipe), "--init", name]) == 0
        for stage, start in enumerate(starts, start=1):
            for key, value in read_checkpoint(out / f"stage{stage}.pt").items():
                assert torch.allclose(value, start[key], rtol=0, atol=1e-25), (name, stage, key)


def test_stage_2_alone_needs_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    arguments = ["train", "-o", str(tmp_path / "out"), "--model", tiny.write_model(tmp_path), "--stage", "2"]
    assert main([*arguments, "--pair", pair.volume, pair.mask]) == 1
    assert "--stage1-checkpoint" in capsys.readouterr().err


def test_several_devices_train_one_stage_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    assert main(["train", "-o", str(tmp_path / "out"), "--devices", "2", "--pair", pair.volume, pair.mask]) == 1
    assert "--stage 1" in capsys.readouterr().err


def test_a_full_disk_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["train", "-o", str(tmp_path / "out"), str(tmp_path / "volume.zarr")]) == 1
    assert "GB free" in capsys.readouterr().err
    assert issubclass(DoesNotFitError, MemoryError)


def test_phantoms_of_a_set_differ_and_repeat() -> None:
    phantoms = PhantomSet(count=3, seed=5)
    drawn = [phantom_settings(phantoms, number) for number in range(3)]
    assert drawn == [phantom_settings(phantoms, number) for number in range(3)]
    assert len({(s.seed, s.snr, s.voxel_size) for s in drawn}) == 3
    assert all(0.05 <= s.snr <= 1.0 for s in drawn)


def test_the_recipe_of_the_bundled_model_can_be_read() -> None:
    recipe = load_recipe(str(Path(__file__).parents[1] / "benchmarks" / "recipes" / "demo-256.yaml"))
    assert recipe.stages[1].model == recipe.stages[2].model == "demo-256"
    seeds = {recipe.phantoms[1].seed, recipe.phantoms[2].seed, recipe.validation.seed if recipe.validation else 0}
    assert len(seeds) == 3


@pytest.mark.slow
def test_two_minutes_of_training_improve_dice(tmp_path: Path) -> None:
    """The small model, from scratch, on two phantoms; judged on a third."""
    from etsam_zarr.phantom.store import write_phantom
    from etsam_zarr.phantom.volume import PhantomSettings
    from etsam_zarr.training.pairs import Pair
    from etsam_zarr.training.predict import evaluate

    volumes = [
        tiny.opened(
            Pair(str(write_phantom(tmp_path / f"{seed}.zarr", PhantomSettings((32, 256, 256), seed)))), tmp_path
        )
        for seed in (0, 1, 4)
    ]
    settings = tiny.settings(
        model="demo-256", steps_per_epoch=80, epochs=1, learning_rate=4e-4, warmup_steps=20, grid_interval=50
    )
    from etsam_zarr.model_config import read_model_config

    config = read_model_config("demo-256")
    job = TrainJob(1, config, settings, volumes[:2], volumes[2:], tmp_path / "out")
    fresh = build_clip_model(config, settings).state_dict()
    before = evaluate(config, fresh, volumes[2:], settings, stage=1)
    after = evaluate(config, read_checkpoint(train(job)), volumes[2:], settings, stage=1)
    assert after.dice > before.dice + 0.15


def test_a_checkpoint_that_cannot_be_written_ends_the_training_clearly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk; what was written before stays, and the same command with --resume goes on."""
    import resource

    pair = tiny.write_pair(tmp_path)
    assert pair.mask is not None
    out = tmp_path / "out"
    arguments = ["train", "-o", str(out), "--model", tiny.write_model(tmp_path), "--stage", "1", "--epochs", "1"]
    arguments += ["--steps-per-epoch", "1", "--pair", pair.volume, pair.mask]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        assert main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "kept.pt" in said
    assert "give the" in said
    assert not list((out / "stage1").glob("*.pt"))
    assert main([*arguments, "--resume"]) == 0
