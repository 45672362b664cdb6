"""What users read names every command and option."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from etsam_zarr_cli.main import COMMANDS, cli

README = Path(__file__).parents[1] / "README.md"


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
