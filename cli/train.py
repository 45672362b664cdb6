"""``etsam-zarr train``: trains both stages from volumes with masks, or from a recipe that makes phantoms."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
from etsam_zarr_cli.portal_options import choice_options
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import where

from etsam_zarr.errors import InputNotFoundError
from etsam_zarr.model_config import BUNDLED_MODEL
from etsam_zarr.portal.address import Choice


@click.command("train")
@click.argument("volumes", nargs=-1, metavar="[VOLUMES]...")
@click.option(
    "--pair",
    "pairs",
    nargs=2,
    multiple=True,
    metavar="VOLUME MASK",
    help="A tomogram and its mask (OME-Zarr or MRC); may be repeated.",
)
@click.option(
    "--validate",
    "validation",
    nargs=2,
    multiple=True,
    metavar="VOLUME MASK",
    help="A pair that is never trained on, for the Dice of each epoch; may be repeated.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="CSV of pairs: the columns volume and mask, or those of ETSAM's dataset.csv (CryoET Data Portal).",
)
@where
@click.option("--truth-object", metavar="TEXT", help="With --manifest: the portal's masks where a row names none.")
@choice_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option(
    "--recipe",
    default="inference",
    show_default=True,
    help="etsam (as ETSAM was trained), inference (prompts as in a run; for small models), or a recipe file.",
)
@click.option(
    "--stage",
    type=click.Choice(["1", "2", "both"]),
    default="both",
    show_default=True,
    help="Stage 2 learns from the output of stage 1.",
)
@click.option("--model", help="Name or YAML of the model, instead of the recipe's.")
@click.option(
    "--init",
    "initial",
    metavar="etsam|demo-256|FILE",
    help="Start from ETSAM's fetched weights, the bundled ones (each stage from its own), or one checkpoint.",
)
@click.option(
    "--stage1-checkpoint", type=click.Path(path_type=Path), help="Stage 1's weights where only stage 2 is trained."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option("--steps-per-epoch", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Instead of the recipe's; lower to fine-tune."
)
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's.")
@click.option("--accumulate", type=click.IntRange(min=1), help="Forward passes per optimizer step.")
@click.option("--precision", type=click.Choice(["32-true", "bf16-mixed"]), help="Instead of the recipe's.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="How many GPUs.")
@click.option("--half", is_flag=True, help="Also store the results as float16, half the size: stage1-half.pt, ...")
@click.option("--tensorboard", is_flag=True, help="Write the log for TensorBoard, too: stage1/tensorboard, ...")
@click.option("--resume", is_flag=True, help="Go on with the training in the output folder.")
def command(
    volumes: tuple[str, ...],
    *,
    pairs: tuple[tuple[str, str], ...],
    validation: tuple[tuple[str, str], ...],
    manifest: Path | None,
    conditions: dict[str, str],
    truth_object: str | None,
    tomogram_id: int | None,
    tomogram_spacing: float | None,
    tomogram_processing: str | None,
    tomogram_default: bool,
    output: Path,
    recipe: str,
    stage: str,
    initial: str | None,
    stage1_checkpoint: Path | None,
    device: str,
    devices: int,
    half: bool,
    tensorboard: bool,
    resume: bool,
    **changes: object,
) -> None:
    """Train ETSAM's two stages.

    VOLUMES are OME-Zarr images that hold their truth as the label 'membranes'. The results are stage1.pt and
    stage2.pt in the output folder, in ETSAM's file format: 'etsam-zarr run' takes them as they are.
    """
    import dataclasses

    from etsam_zarr.training.pairs import Pair
    from etsam_zarr.training.settings import load_recipe
    from etsam_zarr.training.stages import TrainRequest, half_precision, train_stages
    from etsam_zarr.training.table import pairs_of_table

    loaded = load_recipe(recipe)
    given = {name: value for name, value in changes.items() if value is not None}
    settings = {number: dataclasses.replace(s, **given) for number, s in loaded.stages.items()}  # type: ignore[arg-type]
    stages = {"1": (1,), "2": (2,), "both": (1, 2)}[stage]
    listed = []
    if manifest is not None:
        choice = Choice(tomogram_id, tomogram_spacing, tomogram_processing, tomogram_default)
        with contextlib.closing(Progress()) as progress:
            listed = pairs_of_table(
                manifest, conditions=conditions, choice=choice, truth_object=truth_object, on_event=progress
            )
    request = TrainRequest(
        out=output,
        recipe=dataclasses.replace(loaded, stages=settings),
        pairs=[*(Pair(volume) for volume in volumes), *(Pair(*pair) for pair in pairs), *listed],
        validation=[Pair(*pair) for pair in validation],
        stages=stages,
        initial={} if initial is None else _checkpoints(initial, stages),
        stage1_checkpoint=stage1_checkpoint,
        resume=resume,
        accelerator=device,
        devices=devices,
        tensorboard=tensorboard,
    )
    with contextlib.closing(Progress()) as progress:
        results = train_stages(request, on_event=progress)
    for path in results.values():
        click.echo(str(path))
        if half:
            halved = path.with_name(f"{path.stem}-half.pt")
            half_precision(path, halved)
            click.echo(str(halved))


def _checkpoints(initial: str, stages: tuple[int, ...]) -> dict[int, Path]:
    """Return the checkpoint that each stage starts from."""
    from etsam_zarr.bundled import find_bundled_weights
    from etsam_zarr.weights import find_etsam_weights, weights_folder

    if initial == BUNDLED_MODEL:
        first, second = find_bundled_weights()
        return {1: first, 2: second}
    if initial == "etsam":
        fetched = find_etsam_weights()
        if fetched is None:
            raise InputNotFoundError(
                f"--init etsam starts from ETSAM's weights, which are not in {weights_folder()}. Get them with "
                "'etsam-zarr weights fetch'."
            )
        return {1: fetched[0], 2: fetched[1]}
    if not Path(initial).is_file():
        raise InputNotFoundError(
            f"--init {initial} is no file. Give a checkpoint in the file format of SAM 2, etsam, or {BUNDLED_MODEL}."
        )
    return dict.fromkeys(stages, Path(initial))
