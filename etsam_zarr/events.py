"""What a long pass tells its caller while it works: typed events, so that the library never prints.

A pass takes ``on_event``, a callable of one argument. The command line turns events into bars and lines;
tests collect them; the default ignores them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """A pass begins."""

    name: str
    """What it does, in the user's words: ``"stage 1"``, ``"mask"``, ``"convert"``."""
    total: int
    """How many units it has in all."""
    done: int = 0
    """How many of them were there already (a resumed pass starts above 0)."""
    unit: str = "slices"


@dataclass(frozen=True)
class Advanced:
    """``count`` more units of the pass ``name`` are done; 0 is a sign of life."""

    name: str
    count: int = 1


@dataclass(frozen=True)
class Finished:
    """A pass ended well."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Notice:
    """Something the user should know, in one sentence; ``warning`` says it may change the result."""

    message: str
    warning: bool = False


Event = Started | Advanced | Finished | Notice
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing: the default listener."""
