"""The options that say who computes: this process, workers on this machine, or those of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam_zarr.config import Precision
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.plan import RunPlan

if TYPE_CHECKING:
    from distributed import Client
    from etsam_zarr_cli.run_options import Prepared

    from etsam_zarr.runtime import Runtime

_CLUSTER_PATIENCE_SECONDS = 600.0

WORKER_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--devices", metavar="LIST",
        help="Several devices of this machine, such as cuda:0,cuda:1 or cpu,cpu, or all GPUs: all. One worker process "
        "on each.",
    ),
    click.option(
        "--workers", type=click.IntRange(min=1), metavar="N",
        help="So many worker processes on this machine, on the first GPUs or, without GPUs, sharing the CPU.",
    ),
    click.option(
        "--scheduler", metavar="ADDRESS|FILE",
        help="Compute on a dask.distributed cluster: its scheduler's address (tcp://host:port) or scheduler file.",
    ),
    click.option(
        "--follow/--no-follow", default=None,
        help="With several workers, one tile and stream mode: let stage 2 follow stage 1 a slab behind, on another "
        "worker. [default: where stage 2's prompts allow it: zero (as in etsam-v2) and grid_zero]",
    ),
    click.option(
        "--block-timeout", type=click.FloatRange(min=1), metavar="SECONDS",
        help="With workers: restart one that finishes no slice for so long. [default: wait for ever]",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Team:
    """Who computes."""

    count: int
    """How many blocks are computed at the same time."""
    device: str
    """What a block is told to compute on; ``auto`` where that is still to be chosen."""
    devices: tuple[str, ...] = ()
    """Of worker processes on this machine, one for each; empty where there are none."""
    client: Client | None = None
    """Connected to a cluster that was there before."""
    precision: Precision | None = None
    """What the workers of that cluster compute fast."""
    follow: bool | None = None
    """Whether stage 2 shall follow stage 1 a slab behind; None where it can."""

    @property
    def here(self) -> bool:
        """Whether it is this process alone."""
        return not self.devices and self.client is None

    def follows(self, plan: RunPlan) -> bool:
        """Say whether stage 2 follows stage 1 a slab behind.

        Raises
        ------
        SettingsError
            It shall, and cannot.
        """
        obstacle = self._obstacle(plan)
        if self.follow and obstacle is not None:
            raise SettingsError(f"Stage 2 cannot follow stage 1 a slab behind, since {obstacle}. Leave out --follow.")
        return obstacle is None

    def _obstacle(self, plan: RunPlan) -> str | None:
        """Say why stage 2 does not follow stage 1, in words that go on after "since"; None if it does."""
        if self.follow is False:
            return "--no-follow is given"
        if plan.follow_obstacle is None and self.client is None and self.count < 2:
            return "that takes two workers, as --workers 2 or --devices with two starts them"
        return plan.follow_obstacle

    def line(self, plan: RunPlan) -> str:
        """Say who computes what at the same time, and why."""
        where = "a cluster" if self.client is not None else ", ".join(self.devices)
        who = f"workers    {self.count} on {where}: "
        tiles, windows = len(plan.tiles), len(plan.windows)
        if tiles > 1 and windows > 1:
            return f"{who}{tiles} tiles, each in {windows} windows, are independent and computed at the same time"
        if tiles > 1:
            return f"{who}{tiles} tiles are independent and computed at the same time"
        if windows > 1:
            return f"{who}{windows} windows are computed at the same time, then their seams are repaired"
        others = "--mode parallel, or --tiling tiles for large slices, gives them all work"
        if self.follows(plan):
            if self.count == 1:
                return f"{who}stage 2 follows stage 1 a slab behind as soon as there is a second worker"
            idle = f"; a third has nothing to do: {others}" if self.count > 2 else ""
            return (
                f"{who}stage 2 follows stage 1 a slab behind, since its prompt {plan.stages[1].prompt} needs no later "
                f"slice of stage 1{idle}"
            )
        one = "" if self.count == 1 else ", so one worker computes and the others stand by"
        return (
            f"{who}one tile in stream mode is one chain of slices{one}; stage 2 does not follow stage 1 a slab behind, "
            f"since {self._obstacle(plan)}; {others}"
        )

    @contextlib.contextmanager
    def runtime(self, prepared: Prepared, given: dict[str, Any], on_event: OnEvent) -> Iterator[Runtime | None]:
        """Start the workers, or look over those that are there; None for this process.

        Raises
        ------
        ClusterError
            They do not start, or cannot do the work.
        """
        if self.here:
            yield None
            return
        import torch

        from etsam_zarr.workers.cluster import dashboard_of, local_cluster
        from etsam_zarr.workers.facts import look_over
        from etsam_zarr.workers.runtime import DaskRuntime

        with contextlib.ExitStack() as stack:
            if self.client is None:
                threads = given["threads"] or max(1, torch.get_num_threads() // self.count)
                client = stack.enter_context(local_cluster(self.devices, threads=threads))
            else:
                client = self.client
                look_over(client, files=_files(prepared), device=given["device"])
            on_event(Notice(dashboard_of(client)))
            yield DaskRuntime(client, block_timeout=given["block_timeout"])


def team_of(given: dict[str, Any]) -> Team:
    """Return the team of this machine that the options ask for; start nothing.

    Raises
    ------
    SettingsError
        They contradict, or name a device that is not there.
    """
    if given["devices"] is None and given["workers"] is None:
        if given["block_timeout"] is not None and given["scheduler"] is None:
            raise SettingsError(
                "--block-timeout restarts workers, and this process is none. Give --workers, --devices or --scheduler "
                "as well."
            )
        return Team(1, given["device"], follow=given["follow"])
    from etsam_zarr.device import devices_for

    devices = devices_for(given["devices"], given["workers"], given["device"])
    if given["workers"] is None and len(devices) == 1:
        return Team(1, devices[0], follow=given["follow"])
    return Team(len(devices), devices[0], devices, follow=given["follow"])


@contextlib.contextmanager
def hired(given: dict[str, Any], on_event: OnEvent) -> Iterator[Team]:
    """Return the team that the options ask for, connected to its cluster if that is there already.

    Raises
    ------
    ClusterError
        There is no scheduler, no worker, or workers cannot do the work.
    """
    if given["scheduler"] is None:
        yield team_of(given)
        return
    if given["devices"] is not None or given["workers"] is not None:
        raise SettingsError("--scheduler has workers of its own. Leave --devices and --workers out.")
    from etsam_zarr.workers.cluster import existing_cluster, wait_for_worker
    from etsam_zarr.workers.facts import look_over

    with existing_cluster(given["scheduler"]) as client:
        wait_for_worker(client, seconds=_CLUSTER_PATIENCE_SECONDS, on_event=on_event)
        facts = look_over(client, files=(), device=given["device"])
        on_gpu = given["device"] != "cpu" and all(fact.gpu for fact in facts.values())
        fast = all(fact.bfloat16 for fact in facts.values())
        yield Team(
            len(facts), "cuda:0" if on_gpu else "cpu", client=client, precision="bfloat16" if fast else "float32",
            follow=given["follow"],
        )  # fmt: skip


def _files(prepared: Prepared) -> list[Path]:
    """Return what all workers must see: the volume, the weights, and where the run store will be."""
    from etsam_zarr.remote.address import is_remote

    uri = prepared.volume.info.uri
    files = [*([] if is_remote(uri) else [Path(uri)]), *(prepared.model.checkpoints or ())]
    destination = prepared.destination.absolute()
    return [*(path.absolute() for path in files), next(path for path in destination.parents if path.is_dir())]
