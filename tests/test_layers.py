"""The layers of docs/design.md, read from there: imports point down, and the entrance is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "etsam_zarr"
PATHS = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.stem != "__init__"
}
MODULES = sorted(PATHS)


def _layers() -> list[list[str]]:
    """The modules of each row of the table under the heading "Layers", lowest first."""
    section = (ROOT / "docs" / "design.md").read_text().split("\n## Layers\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\|([^|]+)\|([^|]+)\|$", section, flags=re.MULTILINE)
    return [[name.strip(" `") for name in modules.split(",")] for _, modules in rows[2:]]


def _imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _own(path: Path) -> set[str]:
    """The modules of the library among what a file imports."""
    names = [name.removeprefix("etsam_zarr.").split(".") for name in _imported(path) if name.startswith("etsam_zarr.")]
    return {".".join(name[:parts]) for name in names for parts in (1, 2)} & set(MODULES)


def test_packages_hold_nothing_themselves_and_are_all_installed() -> None:
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for path in LIBRARY.rglob("__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, f"{path} has more than its docstring"
        found.add(".".join(path.parent.relative_to(ROOT).parts))
    assert found | {"etsam_zarr_cli"} == set(installed)


def test_every_module_is_in_the_table_exactly_once() -> None:
    listed = [module for layer in _layers() for module in layer]
    assert sorted(listed) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_or_sideways(module: str) -> None:
    level = {name: number for number, layer in enumerate(_layers()) for name in layer}
    upwards = {name for name in _own(PATHS[module]) if level.get(name, -1) > level.get(module, 99)}
    assert not upwards, f"{module} imports from a layer above its own"


def test_no_imports_run_in_a_circle() -> None:
    # Raises CycleError with the circle.
    list(TopologicalSorter({module: _own(PATHS[module]) for module in MODULES}).static_order())


def test_the_library_does_not_know_its_command_line() -> None:
    for module in MODULES:
        packages = {name.split(".")[0] for name in _imported(PATHS[module])}
        assert not packages & {"etsam_zarr_cli", "click", "tqdm"}, module


def test_sam2_is_imported_in_one_place_and_in_training() -> None:
    importers = {
        name
        for name, path in (*PATHS.items(), *((f"cli.{path.stem}", path) for path in (ROOT / "cli").glob("*.py")))
        if any(name.split(".")[0] == "sam2" for name in _imported(path))
    }
    assert "sam.predictor" in importers
    assert all(name == "sam.predictor" or name.startswith("training.") for name in importers), importers


@pytest.mark.parametrize("entrance", ["import etsam_zarr", "import etsam_zarr_cli.main"])
def test_the_entrance_is_light(entrance: str) -> None:
    code = f"{entrance}; import sys; print(*({{'torch', 'dask', 'sam2', 'zarr'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_imports_neither_torch_nor_sam2() -> None:
    code = (
        "from etsam_zarr_cli.main import main; import sys; code = main(['run', '--help']); "
        "print('imported:', *({'torch', 'dask', 'sam2'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


def _defined(module: str) -> set[str]:
    """The names that a module defines at its top level."""
    found = set()
    for node in ast.parse(PATHS[module].read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_documents_name_code_that_is_there(document: Path) -> None:
    text = document.read_text()
    named = re.findall(rf"`({'|'.join(map(re.escape, MODULES))})\.(?!py`)([A-Za-z_]+)`", text)
    imported = re.findall(r"^\s*from etsam_zarr\.([a-z0-9_.]+) import ([\w, ]+)$", text, flags=re.MULTILINE)
    for module, names in (*named, *imported):
        assert module in MODULES, f"{document.name} imports from {module}"
        assert {name.strip() for name in names.split(",")} <= _defined(module), f"{document.name}: {module}.{names}"
    for before, file in re.findall(r"(\S+) `((?:[a-z_]+/)*[a-z_]+\.py)`", text):
        elsewhere = before in ("as", "(ETSAM's")  # the reader's ("save this as"), or of another project
        assert elsewhere or (ROOT / file).exists() or (LIBRARY / file).exists(), f"{document.name} names {file}"
