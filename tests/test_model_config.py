"""Model configurations: what is read from them, and that none of them can run code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from etsam_zarr import model_config
from etsam_zarr.errors import ModelError
from etsam_zarr.model_config import BUNDLED_FOLDER, SAM2_NAMES, known_models, read_model_config

Tree = dict[str, Any]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Callable[[Tree], object]], str]:
    """Makes a config file from the seeded model's, changed by a function of its ``model`` section."""

    def write(edit: Callable[[Tree], object]) -> str:
        content = yaml.safe_load((BUNDLED_FOLDER / "seeded-256.yaml").read_text())
        edit(content["model"])
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "trunk_channels"),
    [("sam2.1_hiera_t", 96), ("sam2.1_hiera_s", 96), ("sam2.1_hiera_b+", 112), ("sam2.1_hiera_l", 144)],
)
def test_configurations_of_the_sam2_package_are_known_by_name(name: str, trunk_channels: int) -> None:
    config = read_model_config(name)
    assert config.trunk_channels == trunk_channels
    assert (config.image_size, config.native_size, config.memory_tokens) == (1024, 256, 4096)
    assert (config.memory_dim, config.hidden_dim) == (64, 256)
    assert (config.recent_memories, config.recent_pointers, config.max_conditioning) == (6, 15, -1)
    assert config.tree["non_overlap_masks"] is False


def test_every_name_that_is_offered_can_be_read() -> None:
    assert set(SAM2_NAMES) | {"seeded-256"} <= set(known_models())
    digests = {read_model_config(name).digest for name in known_models()}
    assert len(digests) == len(known_models())


def test_numbers_come_from_the_file(edited: Callable[..., str]) -> None:
    def edit(model: Tree) -> None:
        model.update(image_size=512, num_maskmem=4, max_obj_ptrs_in_encoder=8, max_cond_frames_in_attn=3)

    config = read_model_config(edited(edit))
    assert (config.image_size, config.native_size, config.memory_tokens) == (512, 128, 1024)
    assert (config.recent_memories, config.recent_pointers, config.max_conditioning) == (3, 7, 3)
    assert config.digest != read_model_config("seeded-256").digest


def test_the_digest_depends_on_the_content_and_not_on_the_path(edited: Callable[..., str]) -> None:
    assert read_model_config(edited(lambda model: None)).digest == read_model_config("seeded-256").digest


def test_plain_interpolations_are_resolved(edited: Callable[..., str]) -> None:
    config = read_model_config(edited(lambda model: model["memory_encoder"].update(out_dim="${model.num_maskmem}")))
    assert config.memory_dim == 7


# Each would have a file written, or did when only the prefix "sam2." was asked for.
_ATTACKS: dict[str, Tree | str] = {
    "outside": {"_target_": "torch.save", "obj": 1, "f": "MARK"},
    "through a module that sam2 imports": {"_target_": "sam2.utils.misc.torch.save", "obj": 1, "f": "MARK"},
    "likewise, in the model's part": {"_target_": "sam2.modeling.sam2_base.torch.save", "obj": 1, "f": "MARK"},
    "os": {"_target_": "sam2.utils.misc.os.open", "path": "MARK", "flags": 66},
    "shell": {"_target_": "sam2.utils.misc.os.system", "command": "touch MARK"},
    "method of a class": {
        "_target_": "sam2.modeling.sam2_base.SAM2Base.__init__.__globals__.__getitem__",
        "key": "torch",
    },
    "a function of sam2": {"_target_": "sam2.build_sam._load_checkpoint", "model": None, "ckpt_path": "MARK"},
    "a path instead of a name": {"_target_": "sam2.modeling.../../../x.MemoryEncoder"},
    "no text": {"_target_": ["torch.save"]},
    "interpolated target": {"_target_": "${oc.decode:torch.save}", "obj": 1, "f": "MARK"},
    "target interpolated later": {"_target_": r"sam2.\${oc.decode:utils.misc.torch.save}", "obj": 1, "f": "MARK"},
    "node interpolated later": r"\${oc.create:{_target_:torch.save,obj:1,f:MARK}}",
    "partial": {"_target_": "sam2.modeling.memory_encoder.MaskDownSampler", "_partial_": True},
    "positional arguments": {"_target_": "sam2.modeling.backbones.hieradet.Hiera", "_args_": [96, 1, "MARK"]},
    "unpickled weights": {"_target_": "sam2.modeling.backbones.hieradet.Hiera", "weights_path": "MARK"},
}


@pytest.mark.parametrize("attack", _ATTACKS.values(), ids=_ATTACKS.keys())
def test_a_config_cannot_run_code(attack: Tree | str, edited: Callable[..., str], tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def edit(model: Tree) -> None:
        # In a list within a mapping: hydra builds such nodes too.
        text = yaml.safe_dump(attack).replace("MARK", str(mark))
        model["memory_encoder"]["fuser"]["more"] = [{"deep": yaml.safe_load(text)}]

    with pytest.raises(ModelError, match="arbitrary code"):
        read_model_config(edited(edit))
    assert not mark.exists()


def test_a_refusal_names_what_is_refused_and_says_what_to_do(edited: Callable[..., str]) -> None:
    def edit(model: Tree) -> None:
        model["memory_encoder"]["_target_"] = "os.system"

    with pytest.raises(ModelError, match=r"edited\.yaml names 'os\.system' as a _target_.*sam2\.modeling.*Remove it"):
        read_model_config(edited(edit))


def test_every_class_that_is_allowed_is_a_part_of_a_network() -> None:
    folder = model_config._sam2_folder()
    allowed = []
    for path in (folder / "modeling").rglob("*.py"):
        module = importlib.import_module(".".join(("sam2", *path.relative_to(folder).with_suffix("").parts)))
        allowed += [
            value for name, value in vars(module).items() if model_config._is_model_class(f"{module.__name__}.{name}")
        ]
    assert len(allowed) > 15
    assert all(issubclass(found, torch.nn.Module) for found in allowed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no section 'model'"),
        (b"- a\n- b\n", "has no section 'model'"),
        (b"model: [1, 2]", "has no section 'model'"),
        (b"model: {a: [", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"model: {a: '${missing}'}", "cannot be read as YAML.*missing"),
        (b"model: {}", "lacks a usable value for 'image_size'"),
        (b"model: {image_size: 1000}", "image_size, which is 1000 but must be a multiple of 32"),
        (b"model: {image_size: 256, memory_encoder: {out_dim: 1}, image_encoder: {neck: {d_model: 1}, trunk: 3}}",
         "lacks a usable value"),
    ],
)  # fmt: skip
def test_what_is_no_config_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model_config(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no model 'sam3'.*seeded-256.*sam2\.1_hiera_b\+"):
        read_model_config("sam3")


def test_a_name_cannot_leave_the_folder_of_bundled_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        read_model_config("../models/seeded-256")
