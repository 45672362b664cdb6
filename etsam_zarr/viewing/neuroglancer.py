"""Links that make neuroglancer show a run that is served over HTTP."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from etsam_zarr.maskpass import MEMBRANE_COLOUR
from etsam_zarr.results import COMPONENTS
from etsam_zarr.runstore import RunStore
from etsam_zarr.viewing.layers import contrast_of, current_labels, spacing

VIEWER = "https://neuroglancer-demo.appspot.com/"
"""Google's public instance. It is a page only: what it shows goes from this machine to the browser, nowhere else."""

_METRES_PER_ANGSTROM = 1e-10


def source_url(address: str, version: str) -> str:
    """Return how neuroglancer names an OME-Zarr image at an address.

    Since 2025 it is the address of the folder followed by the format (neuroglancer, src/datasource/zarr/index.rst);
    the older form with the format in front is not used.

    >>> source_url("http://127.0.0.1:9000", "0.4")
    'http://127.0.0.1:9000/|zarr2:'
    """
    return f"{address.rstrip('/')}/|{'zarr3' if version == '0.5' else 'zarr2'}:"


def neuroglancer_state(store: RunStore, address: str) -> dict[str, Any]:
    """Return the state of a viewer with the run's overview and labels in it, as JSON values.

    Parameters
    ----------
    store
        The run.
    address
        Where its folder is served.

    Raises
    ------
    RunStoreError
        An array's metadata are damaged.
    """
    version = store.record["ome_zarr"]
    image: dict[str, Any] = {"type": "image", "name": "tomogram", "source": source_url(address, version)}
    contrast = contrast_of(store)
    if contrast is not None:
        image["shaderControls"] = {"normalized": {"range": list(contrast)}}
    layers = [image]
    names = current_labels(store)
    for name in names:
        layer: dict[str, Any] = {
            "type": "segmentation",
            "name": name,
            "source": source_url(f"{address.rstrip('/')}/labels/{name}", version),
            "visible": name == names[-1],
        }
        if name != COMPONENTS:
            # Of a mask, its one value; of components none is named, and neuroglancer shows them all.
            red, green, blue, _ = MEMBRANE_COLOUR
            layer |= {"segments": ["1"], "segmentColors": {"1": f"#{red:02x}{green:02x}{blue:02x}"}}
        layers.append(layer)
    size, origin = spacing(store)
    unit, scale = ("m", _METRES_PER_ANGSTROM) if store.voxel_size else ("", 1.0)
    # x first: neuroglancer's first panel spans the first two dimensions, and the arrays are z, y, x.
    axes = list(reversed(list(zip("zyx", size, origin, store.shape, strict=True))))
    return {
        "dimensions": {name: [step * scale, unit] for name, step, _, _ in axes},
        "position": [start / step + count / 2 for _, step, start, count in axes],
        "layers": layers,
        "selectedLayer": {"visible": True, "layer": names[-1] if names else "tomogram"},
        "layout": "4panel",
    }


def neuroglancer_link(state: dict[str, Any]) -> str:
    """Return the address of neuroglancer in that state."""
    return f"{VIEWER}#!{quote(json.dumps(state, separators=(',', ':')), safe='/:,')}"
