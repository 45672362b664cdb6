"""The settings of a training run, the two recipes, and how a recipe file changes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from etsam_zarr.config import NormalizeMethod
from etsam_zarr.errors import InputNotFoundError, SettingsError

Recipe = Literal["etsam", "inference"]
TrainPrecision = Literal["32-true", "bf16-mixed"]
Keep = Literal["best", "last"]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise SettingsError(f"{name} is {value}; it takes at least {least}.")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a clip; every slice of a clip is changed alike unless said otherwise."""

    flip_x: bool = True
    flip_y: bool = False
    reverse: bool = False
    """Also walk clips from the last slice to the first."""
    degrees: float = 25.0
    shear: float = 20.0
    """Degrees."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Least and greatest enlargement."""
    warped: float = 1.0
    """Share of clips that are turned, sheared and zoomed. Interpolation smooths their noise, and they lose the
    direction of the missing wedge; the others are only flipped, so that both are as a run sees them."""
    brightness: float = 0.1
    contrast: float = 0.03
    degraded_slices: float = 0.0
    """Share of slices that are drowned in noise of their own spectrum, so that memory has to help."""


@dataclass(frozen=True)
class PhantomSet:
    """Phantoms that a recipe makes for itself; each draws its own conditions from ``seed`` and its number."""

    count: int
    seed: int
    shape: tuple[int, int, int] = (64, 256, 256)
    snr: tuple[float, float] = (0.05, 1.0)
    """Least and greatest signal-to-noise ratio, drawn on a logarithmic scale."""
    voxel_size: tuple[float, float] = (9.0, 12.0)
    tilt_range: tuple[float, float] = (50.0, 65.0)
    defocus: tuple[float, float] = (1.5, 5.0)
    thickness: tuple[float, float] = (36.0, 44.0)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the result of a training run, apart from the data.

    Raises
    ------
    SettingsError
        A value is out of range.
    """

    recipe: Recipe = "inference"
    """``etsam``: prompts drawn from the truth with correction clicks; ``inference``: prompts as in a run."""
    model: str = "demo-256"
    seed: int = 0
    epochs: int = 10
    steps_per_epoch: int = 100
    clip_slices: int = 8
    lead_slices: int = 0
    """Slices of ``inference`` that are walked before each clip and not learned from, so that the clip's slices read
    memories like those in the midst of a run: as many of them, and as far from the truth."""
    clips: int = 1
    """Clips in one forward pass of one device."""
    accumulate: int = 1
    """Forward passes per step of the optimizer."""
    learning_rate: float = 4e-4
    vision_learning_rate: float | None = None
    """Of the image encoder; None is the same."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer of the image encoder's trunk to the one before it."""
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    warmup_steps: int = 50
    final_learning_rate: float = 0.1
    """Share of the learning rate that is left at the end of the cosine."""
    precision: TrainPrecision = "32-true"
    normalize_method: NormalizeMethod = "percentile"
    grid_interval: int = 50
    empty_prompts: float = 0.3
    """Share of clips of ``inference`` prompted with an empty mask instead of the grid or stage 1's masks."""
    far_prompts: float = 0.5
    """Share of clips of ``inference`` that pretend that the prompted slice is up to 500 slices further
    away."""
    truth_in_memory: float = 0.0
    """Share of clips whose memory holds the truth in place of predictions: it is worth reading from the start."""
    drop_skips: float = 0.0
    """Share of clips whose decoder sees no high-resolution features."""
    weight_averaging: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is validated and kept; 0 keeps
    the latest weights. The average over many steps does without their noise (Polyak and Juditsky 1992)."""
    keep: Keep = "best"
    """``best``: the result is what had the best validation Dice; ``last``: the weights at the end, when the learning
    rate has come down, for validation volumes too few to choose by."""
    start_from_stage1: bool = False
    """Whether stage 2 starts from stage 1's weights; otherwise from scratch or the checkpoint that is
    given."""
    focal_weight: float = 0.0
    bce_weight: float = 1.0
    dice_weight: float = 1.0
    iou_weight: float = 0.05
    object_score_weight: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "clips", "accumulate", "grid_interval"):
            _at_least(name, getattr(self, name), 1)
        _at_least("clip_slices", self.clip_slices, 2)
        _at_least("lead_slices", self.lead_slices, 0)
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it takes a number above 0.")
        if not 0 <= self.weight_averaging < 1:
            raise SettingsError(f"weight_averaging is {self.weight_averaging}; it takes a number from 0 to below 1.")
        kinds_of = {"recipe": Recipe, "precision": TrainPrecision, "normalize_method": NormalizeMethod, "keep": Keep}
        for name, kinds in kinds_of.items():
            if getattr(self, name) not in get_args(kinds):
                raise SettingsError(f"{name} is {getattr(self, name)!r}; it takes {', '.join(get_args(kinds))}.")

    @property
    def steps(self) -> int:
        """Steps of the optimizer in all."""
        return self.epochs * self.steps_per_epoch


RECIPES: dict[str, TrainSettings] = {
    # As ETSAM was trained (its published training configuration): from SAM 2.1 B+, 4 GPUs of 80 GB, one
    # clip each.
    "etsam": TrainSettings(
        recipe="etsam",
        model="sam2.1_hiera_b+",
        epochs=2000,
        steps_per_epoch=100,
        clip_slices=22,
        learning_rate=5e-6,
        vision_learning_rate=3e-6,
        layer_decay=0.9,
        weight_decay=0.1,
        gradient_clip=0.1,
        warmup_steps=0,
        precision="bf16-mixed",
        normalize_method="min_max_positive_values",
        focal_weight=20.0,
        bce_weight=0.0,
        iou_weight=1.0,
        object_score_weight=1.0,
    ),
    # Scaled down for the small model: the walk of a run (prompt, then slice after slice) is what is trained.
    "inference": TrainSettings(
        augmentation=Augmentation(
            flip_y=True, reverse=True, degrees=180.0, shear=10.0, zoom=(0.8, 1.25), contrast=0.2, degraded_slices=0.2
        ),
    ),
}


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the data it asks for, by stage."""

    stages: Mapping[int, TrainSettings]
    phantoms: Mapping[int, PhantomSet]
    """Training phantoms by stage; empty where the user gives volumes."""
    validation: PhantomSet | None = None


def load_recipe(recipe: str) -> RecipeFile:
    """Return a built-in recipe by name, or read a recipe file.

    A recipe file is YAML: ``base`` names a built-in recipe; ``settings`` changes values of
    :class:`TrainSettings` for both stages, ``stage1`` and ``stage2`` for one; ``phantoms``, with
    ``stage1``, ``stage2`` and ``validation``, describe a :class:`PhantomSet` each.

    Raises
    ------
    InputNotFoundError
        It is neither a name nor a file.
    SettingsError
        The file has unknown or impossible entries.
    """
    if recipe in RECIPES:
        return RecipeFile({1: RECIPES[recipe], 2: RECIPES[recipe]}, {})
    path = Path(recipe)
    if not path.is_file():
        raise InputNotFoundError(
            f"There is no recipe {recipe!r}: give one of {', '.join(RECIPES)}, or the path of a recipe file."
        )
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"The recipe {path} cannot be read as YAML: {error}.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"The recipe {path} is empty. See the recipes that come with the package.")
    unknown = set(content) - {"base", "settings", "stage1", "stage2", "phantoms"}
    if unknown or content.get("base", "inference") not in RECIPES:
        raise SettingsError(
            f"The recipe {path} has the entry {', '.join(sorted(unknown)) or 'base: ' + str(content['base'])}; it "
            f"takes base ({', '.join(RECIPES)}), settings, stage1, stage2 and phantoms."
        )
    base = RECIPES[content.get("base", "inference")]
    shared = _changed(base, content.get("settings") or {}, path)
    phantoms = content.get("phantoms") or {}
    sets = {name: _phantom_set(values, path) for name, values in phantoms.items()}
    return RecipeFile(
        {stage: _changed(shared, content.get(f"stage{stage}") or {}, path) for stage in (1, 2)},
        {stage: sets[f"stage{stage}"] for stage in (1, 2) if f"stage{stage}" in sets},
        sets.get("validation"),
    )


def _changed(settings: TrainSettings, changes: Mapping[str, Any], path: Path) -> TrainSettings:
    changes = dict(changes)
    if "augmentation" in changes:
        nested: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes["augmentation"].items()}
        _refuse_unknown(nested, Augmentation, path)
        changes["augmentation"] = dataclasses.replace(settings.augmentation, **nested)
    _refuse_unknown(changes, TrainSettings, path)
    return dataclasses.replace(settings, **changes)


def _phantom_set(values: Mapping[str, Any], path: Path) -> PhantomSet:
    _refuse_unknown(values, PhantomSet, path)
    converted: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return PhantomSet(**converted)


def _refuse_unknown(values: Mapping[str, Any], kind: type, path: Path) -> None:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(
            f"The recipe {path} sets {', '.join(unknown)}, which {kind.__name__} does not have. It has "
            f"{', '.join(sorted(known))}."
        )
