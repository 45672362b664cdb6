"""Puts a trained small model into the package, in half precision and with checksums.

    python benchmarks/install_bundled.py demo-training/stage1.pt demo-training/stage2.pt

Takes what ``etsam-zarr train`` writes, in any precision; refuses weights that the config of the bundled model cannot
take. After it: run the tests, benchmarks/bundled_model.py, and commit the package's folder ``models``.
"""

from __future__ import annotations

from pathlib import Path

import click

from etsam_zarr.bundled import bundled_paths, find_bundled_weights, record_checksums
from etsam_zarr.model_config import BUNDLED_MODEL, read_model_config


@click.command(context_settings={"show_default": True})
@click.argument("stage1", type=click.Path(path_type=Path))
@click.argument("stage2", type=click.Path(path_type=Path))
def main(stage1: Path, stage2: Path) -> None:
    """Install the checkpoints STAGE1 and STAGE2."""
    from etsam_zarr.checkpoint import read_checkpoint
    from etsam_zarr.sam.predictor import build_predictor
    from etsam_zarr.training.stages import half_precision

    config = read_model_config(BUNDLED_MODEL)
    for trained, place in zip((stage1, stage2), bundled_paths(), strict=True):
        # Says which weight differs where it is another model's.
        build_predictor(config, read_checkpoint(trained), origin=str(trained))
        half_precision(trained, place)
    print(record_checksums())
    for path in find_bundled_weights():
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
