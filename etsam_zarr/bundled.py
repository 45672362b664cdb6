"""The bundled demonstration model: the files of its two stages, their checksums, and the settings that belong to it.

The weights lie beside the config in the package, in half precision and ETSAM's file format, with a list of checksums
as ``sha256sum`` writes it. docs/model-card.md says how they were trained, what they score and what they are not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from etsam_zarr.atomic import write_atomically
from etsam_zarr.config import Settings
from etsam_zarr.errors import ModelError
from etsam_zarr.model_config import BUNDLED_FOLDER, BUNDLED_MODEL

BUNDLED_SETTINGS = Settings(
    # The model is trained on volumes whose intensities are clipped to the 0.1 and 99.9 percentile: ETSAM's
    # min_max_positive_values would throw the dark membranes of a volume with mean 0 away.
    normalize_method="percentile",
    stage1_prompt="grid_zero",
    stage2_prompt="stage1_partial",
    grid_interval=50,
    stage1_logit_threshold=0.0,
    logit_threshold=0.0,
)
"""What the model was trained for; it counts where neither a flag nor a profile says otherwise."""
CHECKSUMS = f"{BUNDLED_MODEL}.sha256"
MOST_BYTES = 12_000_000
"""The package is to stay small: no stage's file may be larger."""


def bundled_paths(*, folder: Path = BUNDLED_FOLDER) -> tuple[Path, Path]:
    """Return where the weights of stage 1 and 2 lie, or would lie."""
    return folder / f"{BUNDLED_MODEL}-stage1.pt", folder / f"{BUNDLED_MODEL}-stage2.pt"


def find_bundled_weights(*, folder: Path = BUNDLED_FOLDER) -> tuple[Path, Path]:
    """Return the paths of both stages' weights, their checksums compared (11 MB each: a few hundredths of a second).

    Raises
    ------
    ModelError
        A file is missing or is not what was released.
    """
    paths = bundled_paths(folder=folder)
    states = bundled_state(folder=folder)
    for path in paths:
        if states[path] != "whole":
            raise ModelError(
                f"The bundled model {BUNDLED_MODEL} is {states[path]} in this installation: see {path}. Install "
                "etsam-zarr again, or train the model with 'etsam-zarr train' and the recipe "
                f"benchmarks/recipes/{BUNDLED_MODEL}.yaml of the source repository."
            )
    return paths


def bundled_state(*, folder: Path = BUNDLED_FOLDER) -> dict[Path, str]:
    """Say of each stage's file whether it is whole, damaged or absent."""
    expected = _read_checksums(folder)
    states = {}
    for path in bundled_paths(folder=folder):
        if not path.is_file():
            states[path] = "absent"
        else:
            states[path] = "whole" if expected.get(path.name) == _sha256(path) else "damaged"
    return states


def record_checksums(*, folder: Path = BUNDLED_FOLDER) -> Path:
    """Write the checksums of both stages' files beside them, as ``sha256sum`` would; return the list's path.

    Raises
    ------
    ModelError
        A file is too large for the package.
    """
    lines = []
    for path in bundled_paths(folder=folder):
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ModelError(
                f"{path} has {size / 1e6:.1f} MB, and a bundled stage may have {MOST_BYTES / 1e6:.0f} MB. Store it in "
                "half precision, or bundle a smaller model."
            )
        lines.append(f"{_sha256(path)}  {path.name}\n")
    write_atomically(folder / CHECKSUMS, "".join(lines).encode())
    return folder / CHECKSUMS


def _read_checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
