"""What the machine gives to a run: device, precision, threads, and whether it suffices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from etsam_zarr_cli.run_options import Prepared
from etsam_zarr_cli.traffic import cached_bytes, room
from etsam_zarr_cli.worker_options import Team

from etsam_zarr.config import PROFILES, Precision
from etsam_zarr.device import choose_device, choose_precision
from etsam_zarr.memory import Projection, project
from etsam_zarr.remote.volumes import supply_of

# What is squeezed; tiles never are.
_IMAGES = {"whole": "A slice", "quadrants": "A quadrant"}


@dataclass(frozen=True)
class Resources:
    """The device and precision chosen, and the projection for them."""

    device: torch.device
    precision: Precision
    device_free: int | None
    """Free bytes on a device with memory of its own."""
    projection: Projection
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, prepared: Prepared, given: dict[str, Any], team: Team) -> Resources:
        """Choose for a prepared run; sets PyTorch's number of threads."""
        if given["threads"] is not None:
            torch.set_num_threads(given["threads"])
        # A cluster's devices are not those of this machine.
        device = choose_device(team.device) if team.client is None else torch.device(team.device)
        wanted = team.precision if given["precision"] == "auto" and team.precision else given["precision"]
        precision = choose_precision(wanted, device)
        projection = project(
            prepared.plan, prepared.model.config, prepared.volume.info, weights=prepared.model.weight_bytes(),
            on_host=device.type == "cpu", half=precision == "bfloat16",
        )  # fmt: skip
        if prepared.need is not None:
            memory, disk = room(prepared.need, prepared.remote.cache)
            disk = max(0, disk - cached_bytes(supply_of(prepared.volume)))
            projection = replace(projection, host=projection.host + memory, disk=projection.disk + disk)
        if team.devices and device.type == "cpu":
            projection = replace(projection, host=projection.host * team.count)
        free = None
        if device.type != "cpu" and team.client is None:
            free = min(int(torch.cuda.mem_get_info(name)[0]) for name in team.devices or (device,))
        warnings = [*prepared.volume.info.warnings, *_replaced(prepared, given["profile"])]
        if prepared.plan.squeezed > 1:
            warnings.append(
                f"{_IMAGES[prepared.plan.grid.tiling]} is {prepared.plan.squeezed:.1f} times larger than the model's "
                "image and is squeezed into it, as ETSAM does: thin membranes may vanish. With --tiling tiles none is."
            )
        return cls(device, precision, free, projection, tuple(warnings))


def _replaced(prepared: Prepared, profile: str | None) -> list[str]:
    """Warn where a profile takes the place of settings that a model was trained for."""
    own = prepared.model.settings
    if own is None or profile is None:
        return []
    theirs = PROFILES[profile].of_logits()
    changed = {name: value for name, value in own.of_logits().items() if theirs.get(name, value) != value}
    if not changed:
        return []
    listed = ", ".join(f"{name} is {theirs[name]} instead of {value}" for name, value in changed.items())
    return [
        f"The profile {profile} replaces settings that {prepared.model.config.name} was trained for: {listed}. "
        "Leave out --profile to have the model's own."
    ]
