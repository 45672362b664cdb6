"""What users read names every command and option."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from etsam_zarr_cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def _params(command: click.Command) -> list[click.Parameter]:
    """Of a command and of its own commands."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(option for part in below for option in _params(part))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    command = _command(name)
    assert command.help
    assert len(command.help.split()) > 3
    for option in _params(command):
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help text"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_shows_every_command(name: str) -> None:
    assert re.search(rf"\betsam-zarr {name}\b", README.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_options_in_the_readme_exist(name: str) -> None:
    known = {spelling for option in _params(_command(name)) for spelling in (*option.opts, *option.secondary_opts)}
    for line in re.findall(rf"^\s*etsam-zarr {name}\b(.*)$", README.read_text(), flags=re.MULTILINE):
        used = set(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", line.split("#")[0]))
        assert used <= known | {"--help", "-h"}, f"README gives 'etsam-zarr {name}' options that it does not have"


def _shown(document: Path) -> list[list[str]]:
    """The words of each command of ours that a document shows, lines continued by a backslash joined."""
    text = document.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("#")[0].split()[1:] for line in lines if line.startswith("etsam-zarr ")]


@pytest.mark.parametrize("words", _shown(ROOT / "docs" / "training.md"), ids=" ".join)
def test_commands_in_the_guide_to_training_are_understood(words: list[str]) -> None:
    command = _command(words[0])
    if isinstance(command, click.Group):
        assert words[1] in command.commands
        return
    # Raises where an option or a choice does not exist.
    command.make_context(words[0], words[1:], resilient_parsing=False)
