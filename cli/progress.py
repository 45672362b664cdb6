"""Draws the library's events on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import click
from etsam_zarr_cli.amounts import duration_text, rate_text
from tqdm import tqdm

from etsam_zarr.events import Advanced, Event, Finished, Notice, Started

# Without a terminal (a batch system's log file) one line per pass every so often is what people can read.
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """A listener for events; use it as ``on_event`` and close it at the end."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bars: dict[str, tqdm[None]] = {}
        self._plain: dict[str, _PlainCounter] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started():
                self._start(event)
            case Advanced() if self._terminal:
                bar = self._bars[event.name]
                # Slices that a worker computes again after another one died are told of twice.
                bar.update(min(event.count, bar.total - bar.n))
            case Advanced():
                self._plain[event.name].advance(event.count)
            case Finished():
                self._finish(event)
            case Notice():
                prefix = "Warning: " if event.warning else ""
                tqdm.write(f"{prefix}{event.message}", file=sys.stderr)

    def _start(self, event: Started) -> None:
        if self._terminal:
            if event.name in self._bars:
                self._bars.pop(event.name).close()  # a pass that is begun again
            self._bars[event.name] = tqdm(
                desc=event.name, total=event.total, initial=event.done, unit=f" {event.unit}", file=sys.stderr
            )
        else:
            self._plain[event.name] = _PlainCounter(event)

    def _finish(self, event: Finished) -> None:
        if self._terminal:
            self._bars.pop(event.name).close()
        else:
            self._plain.pop(event.name).finish(event.seconds)

    def close(self) -> None:
        """Close bars that an error left open."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


class _PlainCounter:
    def __init__(self, event: Started) -> None:
        self._event = event
        self._done = event.done
        self._begun = self._said = time.monotonic()
        resumed = f", {event.done} already done" if event.done else ""
        self._say(f"{event.total} {event.unit}{resumed}")

    def advance(self, count: int) -> None:
        self._done = min(self._done + count, self._event.total)
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES or self._done == self._event.done:
            return
        self._said = now
        rate = (self._done - self._event.done) / (now - self._begun)
        left = duration_text((self._event.total - self._done) / rate)
        self._say(f"{self._done}/{self._event.total} {self._event.unit}, {rate_text(rate)}/s, {left} left")

    def finish(self, seconds: float) -> None:
        computed = self._done - self._event.done
        rate = f", {rate_text(computed / seconds)} {self._event.unit}/s" if computed and seconds > 0 else ""
        self._say(f"done in {duration_text(seconds)}{rate}")

    def _say(self, text: str) -> None:
        click.echo(f"{self._event.name}: {text}", err=True)
