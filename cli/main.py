"""Entry point: finds the command, runs it, and turns what goes wrong into a message and an exit code.

Exit codes: 0 done; 1 an error that the message explains; 2 the command line itself is wrong; 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click

from etsam_zarr.errors import EtsamZarrError

# Each command lives in the module of its name and is imported only when asked for: `--help` stays fast.
COMMANDS = (
    "convert",
    "run",
    "plan",
    "status",
    "threshold",
    "postprocess",
    "label",
    "evaluate",
    "preview",
    "view",
    "export",
    "demo",
    "phantom",
    "weights",
    "train",
    "batch",
    "portal",
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which users meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its ``command``."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"etsam_zarr_cli.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="etsam-zarr")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is going on.")
def cli(verbose: bool) -> None:
    """Segment membranes in cryo-electron tomograms of any size with ETSAM, chunk by chunk."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="etsam-zarr", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "Interrupted. What was finished is on disk; give the same command again to go on from there.", err=True
        )
        return 130
    except EtsamZarrError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
