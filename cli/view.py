"""``etsam-zarr view``: a run in napari, or in neuroglancer."""

from __future__ import annotations

import threading
import webbrowser
from typing import TYPE_CHECKING, Any

import click
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH

from etsam_zarr.errors import SettingsError
from etsam_zarr.runstore import RunStore

if TYPE_CHECKING:
    from pathlib import Path

    from etsam_zarr.viewing.layers import ViewLayer


@click.command()
@click.argument("store", metavar="RUN", type=PATH)
@click.option("--neuroglancer", is_flag=True, help="Serve RUN on this machine and print a link to neuroglancer.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True,
    help="Port for --neuroglancer; 0 takes a free one.",
)  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open the link in the browser.")
def command(store: Path, neuroglancer: bool, port: int, open_browser: bool) -> None:
    """Show tomogram, scores, membranes and components of the run store RUN in napari.

    With --neuroglancer they are served to a browser on this machine until Ctrl-C; pages in that browser can read the
    run meanwhile.
    """
    run = RunStore.open(store)
    if neuroglancer:
        _serve(run, port=port, open_browser=open_browser)
        return
    if port or open_browser:
        raise click.UsageError("--port and --open go with --neuroglancer.")
    from etsam_zarr.viewing.layers import view_layers

    try:
        import napari

        # Without Qt napari can be imported, but has no window.
        viewer = napari.Viewer(title=f"etsam-zarr: {run.record['name']}", axis_labels=("z", "y", "x"))
    except ImportError as error:
        raise SettingsError(
            f"Showing a run needs napari with Qt, which is not installed ({error}). Install it "
            '(pip install "etsam-zarr[view]"), or look at the run in the browser with --neuroglancer.'
        ) from error
    show(viewer, view_layers(run, on_event=Progress()), angstrom=run.voxel_size is not None)
    napari.run()


def show(viewer: Any, layers: list[ViewLayer], *, angstrom: bool) -> None:  # noqa: ANN401 - napari may be absent
    """Add the layers to a napari viewer, or to its model."""
    for layer in layers:
        several = len(layer.data) > 1
        place: dict[str, Any] = {
            "name": layer.name, "scale": layer.scale, "translate": layer.translate, "visible": layer.visible,
            "multiscale": several, "units": ("angstrom" if angstrom else "pixel",) * 3,
        }  # fmt: skip
        data = list(layer.data) if several else layer.data[0]
        if layer.kind == "labels":
            viewer.add_labels(data, opacity=0.6, **place)
        else:
            # Native scores are coarser than the slices: drawn bilinearly, as the model's own upsampling does.
            drawn = {"colormap": "magma", "interpolation2d": "linear"} if layer.name == "scores" else {}
            viewer.add_image(data, contrast_limits=layer.contrast, **drawn, **place)
    viewer.scale_bar.visible = angstrom


def _serve(run: RunStore, *, port: int, open_browser: bool) -> None:
    from etsam_zarr.viewing.neuroglancer import neuroglancer_link, neuroglancer_state
    from etsam_zarr.viewing.server import RunServer

    with RunServer(run.path, port=port).running() as server:
        link = neuroglancer_link(neuroglancer_state(run, server.address))
        click.echo(f"serving  {run.path} at {server.address}/ until Ctrl-C")
        click.echo(f"link     {link}")
        if open_browser:
            webbrowser.open(link)
        try:
            wait_for_interrupt()
        except KeyboardInterrupt:
            # How it is meant to end, so no error.
            click.echo("stopped")


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C raises KeyboardInterrupt."""
    threading.Event().wait()
