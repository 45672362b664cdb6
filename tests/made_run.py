"""A run store made without a model, for what works on finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from etsam_zarr.geometry import Shape3
from etsam_zarr.ledger import Ledger, SlabRecord
from etsam_zarr.maskpass import write_mask
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores

SHAPE = (24, 40, 36)


def make_run(folder: Path, *, shape: Shape3 = SHAPE, version: OmeVersion = "0.4") -> RunStore:
    """A finished run whose native logits are noise that knows something of membranes."""
    native = 16
    record: dict[str, Any] = {
        "shape": shape, "voxel_size": [10.0, 5.0, 5.0], "origin": [0.0, 100.0, 0.0], "ome_zarr": version, "name": "t",
        "source": "gone/t.mrc",
        "settings": {"prompted_slices": "etsam", "logit_threshold": -0.5, "sever_bridges": False},
        "prompted": {"1": [], "2": []}, "fingerprint": {},
    }  # fmt: skip
    store = RunStore.create(
        folder / "t.etsam.zarr", record, tiles=1, native_size=native, hidden_dim=4, prompted={1: 0, 2: 0}
    )
    logits = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(shape[0], native, native)), 1.5) * 20
    store.stage(2).logits[0] = logits.astype(np.float32)
    # The label's parent must be an image for viewers to accept the label.
    create_pyramid(
        store.path, shape=(12, 20, 18), dtype="uint8", voxel_size=(20.0, 10.0, 10.0), origin=(0.0, 0.0, 0.0),
        chunks=(12, 20, 18), version=version, name="t",
    )  # fmt: skip
    ledger = Ledger(store.path / "ledger")
    (block,) = store.blocks(2)
    ledger.add(block, SlabRecord(0, shape[0], (0,) * shape[0], (), 1.0))
    ledger.finish("stage2", {"seconds": 1.0})
    write_mask(store, final_scores(store), ledger, threshold=-0.5)
    return store
