"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real tomograms; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ETSAM_ZARR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real tomograms at {folder}: set ETSAM_ZARR_TEST_DATA to a folder that holds them")
    return folder
