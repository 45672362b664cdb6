"""The settings of a run, and the named sets of them (profiles)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from etsam_zarr.errors import SettingsError

PromptMethod = Literal["zero", "grid", "grid_zero", "stage1_partial"]
NormalizeMethod = Literal["min_max_positive_values", "softplus_minmax", "percentile"]
PromptedSlices = Literal["etsam", "predict"]
Tiling = Literal["auto", "whole", "tiles", "quadrants"]
Precision = Literal["float32", "bfloat16"]

# ETSAM's command line calls it so.
PROMPT_ALIASES = {"etsam_stage1_partial": "stage1_partial"}
QUADRANTS_GRID_INTERVAL = 10
"""What ETSAM's split processing sets the grid interval to."""


def _check_choice(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{flag} is {value!r}, but must be one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, apart from volume, model and numerical precision.

    The defaults are those of the profile ``etsam-v1``, ETSAM as its publication describes it.

    Raises
    ------
    SettingsError
        A value is not one of those allowed, or two contradict.
    """

    normalize_method: NormalizeMethod = "min_max_positive_values"
    """How voxel values become the model's input, over the whole volume."""
    stage1_prompt: PromptMethod = "grid_zero"
    """What stage 1 is given as prompt masks, and on which slices."""
    stage2_prompt: PromptMethod = "stage1_partial"
    """What stage 2 is given as prompt masks, and on which slices."""
    grid_interval: int = 50
    """Distance of prompted slices, and of grid points within a slice, in slices and pixels."""
    stage1_logit_threshold: float = 0.0
    """Stage 1 logits above it make the prompt masks of ``stage1_partial``."""
    logit_threshold: float = -0.5
    """Stage 2 logits above it are membrane."""
    prompted_slices: PromptedSlices = "etsam"
    """What prompted slices show: the prompt itself as ETSAM does, or a prediction made backwards."""
    tiling: Tiling = "auto"
    """What the model sees as one image: the ``whole`` slice, resized; overlapping ``tiles`` of exactly the image size;
    ``quadrants`` as ETSAM's split processing. ``auto`` takes tiles where a slice is larger than the image."""
    overlap: float = 0.125
    """How much tiles overlap at least: below 1 a fraction of the image size, else voxels."""
    sever_bridges: bool = False
    """Whether post-processing also cuts short bridges between parallel membranes."""

    def __post_init__(self) -> None:
        _check_choice("--normalize-method", self.normalize_method, get_args(NormalizeMethod))
        _check_choice("--stage1-prompt", self.stage1_prompt, get_args(PromptMethod))
        _check_choice("--stage2-prompt", self.stage2_prompt, get_args(PromptMethod))
        _check_choice("--prompted-slices", self.prompted_slices, get_args(PromptedSlices))
        _check_choice("--tiling", self.tiling, get_args(Tiling))
        if self.stage1_prompt == "stage1_partial":
            raise SettingsError(
                "The prompt stage1_partial is made from the result of stage 1 and cannot prompt stage 1 itself. "
                "Give --stage1-prompt zero, grid or grid_zero."
            )
        if self.grid_interval < 1:
            raise SettingsError(
                f"The grid interval is {self.grid_interval}, but it must be at least 1. "
                "Give --grid-interval a positive number of slices (ETSAM uses 50)."
            )
        if not 0 <= self.overlap < float("inf"):
            raise SettingsError(
                f"--overlap is {self.overlap:g}, but it must be at least 0: below 1 a fraction of the image size, else "
                "voxels."
            )

    def of_logits(self) -> dict[str, Any]:
        """Return the settings on which stored logits depend, by name.

        The final threshold and the post-processing are not among them: they can be changed afterwards. A tiling
        ``auto`` must have been resolved, which takes the volume (:meth:`etsam_zarr.plan.RunPlan.settled`).
        """
        names = [
            "normalize_method",
            "stage1_prompt",
            "stage2_prompt",
            "grid_interval",
            "prompted_slices",
            "tiling",
        ]
        if self.stage2_prompt == "stage1_partial":
            names.append("stage1_logit_threshold")
        if self.tiling in ("auto", "tiles"):
            names.append("overlap")
        return {name: getattr(self, name) for name in names}


PROFILES: dict[str, Settings] = {
    "etsam-v1": Settings(),
    "etsam-v2": Settings(stage2_prompt="zero", stage1_logit_threshold=-0.25, logit_threshold=-0.25, sever_bridges=True),
}
DEFAULT_PROFILE = "etsam-v1"


def resolve_settings(
    profile: str | None = None,
    *,
    model_settings: Settings | None = None,
    **given: Any,  # noqa: ANN401
) -> Settings:
    """Combine what the user gave, the profile, and the model's own settings, in this order of precedence.

    Parameters
    ----------
    profile
        A name in :data:`PROFILES`, or None.
    model_settings
        Settings that belong to a model; they count only where no profile is named.
    given
        Single settings by name; those that are None count as not given. With the tiling ``quadrants`` the grid
        interval is then 10, as ETSAM sets it.

    Raises
    ------
    SettingsError
        The profile is unknown or a setting is not allowed.
    """
    if profile is None:
        base = model_settings or PROFILES[DEFAULT_PROFILE]
    elif profile in PROFILES:
        base = PROFILES[profile]
    else:
        raise SettingsError(f"There is no profile {profile!r}. Choose one of {', '.join(PROFILES)}.")
    changes = {name: value for name, value in given.items() if value is not None}
    for name in ("stage1_prompt", "stage2_prompt"):
        if name in changes:
            changes[name] = PROMPT_ALIASES.get(changes[name], changes[name])
    if changes.get("tiling") == "quadrants":
        changes.setdefault("grid_interval", QUADRANTS_GRID_INTERVAL)
    return dataclasses.replace(base, **changes)
