"""Model configurations in sam2's YAML format: which there are, what they say, and that they are harmless.

Reading one imports neither torch nor sam2, so that planning is quick.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam_zarr.errors import ModelError, in_one_line

SAM2_NAMES = {
    "sam2.1_hiera_t": "sam2.1/sam2.1_hiera_t.yaml",
    "sam2.1_hiera_s": "sam2.1/sam2.1_hiera_s.yaml",
    "sam2.1_hiera_b+": "sam2.1/sam2.1_hiera_b+.yaml",
    "sam2.1_hiera_l": "sam2.1/sam2.1_hiera_l.yaml",
}
"""Configurations that sam2 brings, by the names used here."""
BUNDLED_FOLDER = Path(__file__).parent / "models"
SEEDED_MODEL = "seeded-256"
"""Untrained, for tests and benchmarks."""
BUNDLED_MODEL = "demo-256"
"""Trained on simulated tomograms; its weights are part of the package."""
ETSAM_MODEL = "sam2.1_hiera_b+"
"""The configuration that ETSAM's published weights belong to."""

PREDICTOR = "sam2.sam2_video_predictor.SAM2VideoPredictor"
# The image encoder's coarsest features are 32 times smaller than the image.
_IMAGE_SIZE_UNIT = 32


@dataclass(frozen=True)
class ModelConfig:
    """A checked model configuration, and the numbers that planning needs from it."""

    name: str
    """The name or path it was asked for by."""
    tree: dict[str, Any]
    """The content of the ``model`` section, all interpolations resolved."""
    image_size: int
    """Edge of the square image that the model sees, in pixels."""
    memory_dim: int
    """Channels of a memory feature."""
    hidden_dim: int
    """Channels of the image embedding, and of an object pointer."""
    trunk_channels: int
    """Channels of the image encoder's first stage, which sets its memory."""
    backbone_stride: int
    """Image pixels per embedding cell."""
    recent_memories: int
    """How many previous slices' memories one slice reads."""
    recent_pointers: int
    """How many previous slices' object pointers one slice reads."""
    max_conditioning: int
    """How many prompted slices one slice reads at most; -1 is all."""
    digest: str
    """SHA-256 of the configuration's content."""

    @property
    def native_size(self) -> int:
        """Edge of the logits that the decoder makes, in pixels: a quarter of the image."""
        return self.image_size // 4

    @property
    def memory_tokens(self) -> int:
        """Tokens of one slice's memory."""
        return (self.image_size // self.backbone_stride) ** 2


def read_model_config(model: str) -> ModelConfig:
    """Read a configuration by bundled name or by the path of a YAML file in sam2's format.

    Raises
    ------
    ModelError
        There is no such name or file, it is not such a configuration, or it names a class outside sam2.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _config_path(model)
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        reason = in_one_line(error)
        raise ModelError(
            f"The model config {path} cannot be read as YAML: {reason}. Give a config in sam2's own format."
        ) from error
    tree = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(tree, dict):
        raise ModelError(
            f"The model config {path} has no section 'model'. Give a config in sam2's own format, for example a copy "
            f"of {SAM2_NAMES['sam2.1_hiera_t']} from the sam2 package."
        )
    tree = {str(key): value for key, value in tree.items()}
    _refuse_code(tree, path)
    tree["_target_"] = PREDICTOR
    tree["non_overlap_masks"] = False
    try:
        return ModelConfig(
            name=model,
            tree=tree,
            image_size=_image_size(tree["image_size"]),
            memory_dim=int(tree["memory_encoder"]["out_dim"]),
            hidden_dim=int(tree["image_encoder"]["neck"]["d_model"]),
            trunk_channels=int(tree["image_encoder"]["trunk"].get("embed_dim", 96)),
            backbone_stride=int(tree.get("backbone_stride", 16)),
            recent_memories=int(tree.get("num_maskmem", 7)) - 1,
            recent_pointers=int(tree.get("max_obj_ptrs_in_encoder", 16)) - 1,
            max_conditioning=int(tree.get("max_cond_frames_in_attn", -1)),
            digest=hashlib.sha256(repr(sorted(_flat(tree))).encode()).hexdigest(),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"The model config {path} lacks a usable value for {error}. Give a complete config in sam2's format."
        ) from error


def known_models() -> tuple[str, ...]:
    """Return the names that ``--model`` takes besides paths."""
    return (*sorted(path.stem for path in BUNDLED_FOLDER.glob("*.yaml")), *SAM2_NAMES)


def _image_size(value: object) -> int:
    if not isinstance(value, int) or value < _IMAGE_SIZE_UNIT or value % _IMAGE_SIZE_UNIT:
        raise ValueError(f"image_size, which is {value!r} but must be a multiple of {_IMAGE_SIZE_UNIT}")
    return value


def _config_path(model: str) -> Path:
    if model in SAM2_NAMES:
        return _sam2_folder() / "configs" / SAM2_NAMES[model]
    bundled = BUNDLED_FOLDER / f"{model}.yaml"
    if bundled.parent == BUNDLED_FOLDER and bundled.is_file():
        return bundled
    path = Path(model)
    if not path.is_file():
        raise ModelError(
            f"There is no model {model!r}: it is neither a file nor one of {', '.join(known_models())}. "
            "Give --model one of these names or the path of a YAML config."
        )
    return path


def _sam2_folder() -> Path:
    """Find the package sam2 without importing it."""
    spec = importlib.util.find_spec("sam2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("The package sam2 is not installed. Install etsam-zarr with its dependencies.")
    return Path(spec.submodule_search_locations[0])


def _refuse_code(node: object, path: Path) -> None:
    """Refuse all by which a config file could have code run or files read when the model is built from it.

    That is a ``_target_`` other than a class of sam2's model; hydra's other keys (``_args_`` passes arguments past
    the names that are looked at here); ``weights_path``, which sam2 unpickles; and text that hydra would take for an
    interpolation, and so for another ``_target_``, when it reads the resolved tree once more.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                if not (isinstance(value, str) and (value == PREDICTOR or _is_model_class(value))):
                    raise ModelError(
                        f"The model config {path} names {value!r} as a _target_, but only classes of sam2's model (in "
                        "sam2.modeling) are allowed, because building any other could run arbitrary code. Remove it."
                    )
            elif key == "weights_path" or (isinstance(key, str) and key.startswith("_") and key.endswith("_")):
                raise ModelError(
                    f"The model config {path} holds the key {key}, which is not allowed, because it could run "
                    "arbitrary code. Remove it; weights are given with --stage1-checkpoint and --stage2-checkpoint."
                )
            _refuse_code(value, path)
    elif isinstance(node, list):
        for value in node:
            _refuse_code(value, path)
    elif isinstance(node, str) and "${" in node:
        raise ModelError(
            f"The model config {path} holds the text {node!r}, an interpolation inside of another or behind a "
            "backslash, which is not allowed, because it could run arbitrary code. Write its value there."
        )


@functools.cache
def _is_model_class(target: str) -> bool:
    """Say whether a dotted name is that of a class that a file of ``sam2.modeling`` defines; import nothing.

    The beginning of the name alone says little: ``sam2.modeling.sam2_base.torch.save`` is no part of sam2.
    """
    *module, name = target.split(".")
    if module[:2] != ["sam2", "modeling"] or not all(part.isidentifier() for part in module):
        return False
    source = _sam2_folder().joinpath(*module[1:-1], f"{module[-1]}.py")
    if not source.is_file():
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.parse(source.read_bytes()).body)


def _flat(node: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [item for key, value in node.items() for item in _flat(value, f"{prefix}.{key}")]
    return [(prefix, repr(node))]
