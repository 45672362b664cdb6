"""Blockwise labelling against scipy and dask-image, with any block size, killed and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from etsam_zarr.components.find import LabelSettings, find_components
from etsam_zarr.components.labelling import Labelling
from etsam_zarr.errors import InputError, OutputExistsError, SettingsError
from etsam_zarr.events import Event, Notice, Started
from etsam_zarr.masks import BinaryMask

Array = npt.NDArray[Any]
RANKS = {6: 1, 18: 2, 26: 3}


def by_first_voxel(labels: Array) -> Array:
    """Number labels by their first voxels in raster order, written without the code under test."""
    ids, first = np.unique(labels.ravel(), return_index=True)
    order = [i for i in np.argsort(first) if ids[i] != 0]
    renumbered = np.zeros_like(labels, dtype=np.int64)
    for new, i in enumerate(order, start=1):
        renumbered[labels == ids[i]] = new
    return renumbered


def reference(mask: Array, connectivity: int) -> Array:
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, RANKS[connectivity]))
    return by_first_voxel(labels)


def empty_array(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str = "uint32") -> zarr.Array:
    return zarr.create_array(folder / "out.zarr", shape=shape, chunks=chunks, dtype=dtype, fill_value=0, overwrite=True)


def labelled(mask: Array, folder: Path, options: LabelSettings) -> tuple[Array, Labelling]:
    found = find_components(BinaryMask(mask), folder / "scratch", source_id="a", settings=options)
    out = empty_array(folder, mask.shape, found.block)
    found.write(out, np.ones(len(found.table), bool))
    return np.asarray(out[:]), found


# Sparse, middling and dense masks: few, many and one large component.
masks = st.tuples(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    st.sampled_from([0.05, 0.2, 0.5, 0.9]),
    st.integers(0),
).map(lambda drawn: np.random.default_rng(drawn[2]).random(drawn[0]) < drawn[1])
blocks = st.tuples(*[st.integers(1, 10)] * 3)


@given(
    mask=masks,
    block=blocks,
    connectivity=st.sampled_from([6, 18, 26]),
    kernel=st.sampled_from(["scipy", "auto"]),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_scipy_for_any_block_size(
    mask: Array,
    block: tuple[int, int, int],
    connectivity: int,
    kernel: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ids and all statistics. The reference numbers by first voxel, so ids are free of the block size."""
    folder = tmp_path_factory.mktemp("label")
    options = LabelSettings(connectivity, block=block, workers=1, kernel=kernel)
    got, found = labelled(mask, folder, options)
    want = reference(mask, connectivity)
    np.testing.assert_array_equal(got, want)

    table = found.table
    assert len(table) == want.max()
    np.testing.assert_array_equal(table.voxels, np.bincount(want.ravel(), minlength=1)[1:])
    for row, box in enumerate(ndimage.find_objects(want)):
        assert table.lower[row].tolist() == [s.start for s in box]
        assert table.upper[row].tolist() == [s.stop for s in box]
        assert table.slices[row] == box[0].stop - box[0].start
    centres = ndimage.center_of_mass(want > 0, want, np.arange(1, len(table) + 1)) if len(table) else np.empty((0, 3))
    np.testing.assert_allclose(table.centroids, centres, rtol=1e-12, atol=1e-12)
    border = np.ones(mask.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert set(np.flatnonzero(table.touches_border) + 1) == set(np.unique(want[border])) - {0}


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("step", [(1, 1, 1), (1, -1, 1), (1, -1, -1), (1, 1, -1), (0, 1, 1), (0, 1, -1), (1, 0, -1)])
def test_masks_that_touch_only_where_blocks_meet(connectivity: int, step: tuple[int, int, int], tmp_path: Path) -> None:
    """Two voxels, on either side of the corner or edge that eight (four) blocks share."""
    mask = np.zeros((8, 8, 8), bool)
    here = tuple(3 if s >= 0 else 4 for s in step)
    there = tuple(p + s for p, s in zip(here, step, strict=True))
    mask[here] = mask[there] = True
    got, _ = labelled(mask, tmp_path, LabelSettings(connectivity, block=(4, 4, 4), workers=1))
    np.testing.assert_array_equal(got, reference(mask, connectivity))
    assert got.max() == (1 if sum(map(abs, step)) <= RANKS[connectivity] else 2)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_equals_dask_image(connectivity: int, tmp_path: Path) -> None:
    """The public function on a chunked dask array, against blocks of another size."""
    import dask.array
    from dask_image.ndmeasure import label

    mask = np.random.default_rng(5).random((20, 22, 24)) < 0.15
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    theirs, count = label(dask.array.from_array(mask, chunks=(10, 22, 24)), structure=structure)
    got, found = labelled(mask, tmp_path, LabelSettings(connectivity, block=(7, 8, 9), workers=2))
    np.testing.assert_array_equal(got, by_first_voxel(theirs.compute(scheduler="synchronous")))
    assert len(found.table) == int(count)


@pytest.mark.parametrize("kernel", ["auto", "scipy", "cc3d", "dask-image"])
def test_kernels_agree(kernel: Any, tmp_path: Path) -> None:
    if kernel == "cc3d":
        pytest.importorskip("cc3d")
    mask = np.random.default_rng(6).random((20, 22, 24)) < 0.15
    got, _ = labelled(mask, tmp_path, LabelSettings(26, kernel=kernel))
    np.testing.assert_array_equal(got, reference(mask, 26))


def test_threads_change_nothing(tmp_path: Path) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(7).standard_normal((40, 60, 60)), 2) > 0.05
    got, _ = labelled(mask, tmp_path, LabelSettings(26, block=(8, 16, 16), workers=4))
    np.testing.assert_array_equal(got, reference(mask, 26))


def test_filters_are_decided_before_the_pass_that_writes(tmp_path: Path) -> None:
    mask = np.random.default_rng(8).random((24, 24, 24)) < 0.12
    want = reference(mask, 26)
    sizes = np.bincount(want.ravel())
    found = find_components(BinaryMask(mask), tmp_path / "s", source_id="a", settings=LabelSettings(block=(8, 8, 8)))
    keep = found.table.passing(min_voxels=10, min_slices=3)
    out = empty_array(tmp_path, mask.shape, (8, 8, 8))
    # What lay there before must not shine through.
    out[:] = 7
    found.write(out, keep)
    spans = [box[0].stop - box[0].start for box in ndimage.find_objects(want)]
    kept = [i + 1 for i, span in enumerate(spans) if span >= 3 and sizes[i + 1] >= 10]
    assert 0 < len(kept) < want.max()
    expected = np.zeros_like(want)
    for new, old in enumerate(kept, start=1):
        expected[want == old] = new
    np.testing.assert_array_equal(out[:], expected)

    found.write(out, keep, as_mask=True)
    np.testing.assert_array_equal(out[:], expected > 0)
    table = found.table.select(keep)
    np.testing.assert_array_equal(table.voxels, np.bincount(expected.ravel())[1:])


def test_empty_mask_has_no_components(tmp_path: Path) -> None:
    got, found = labelled(np.zeros((5, 6, 7), bool), tmp_path, LabelSettings(block=(4, 4, 4)))
    assert len(found.table) == 0
    assert not got.any()


def test_scratch_of_another_mask_is_not_used(tmp_path: Path) -> None:
    a = np.random.default_rng(1).random((9, 9, 9)) < 0.2
    b = np.random.default_rng(2).random((9, 9, 9)) < 0.2
    options = LabelSettings(block=(4, 4, 4), workers=1)
    find_components(BinaryMask(a), tmp_path / "s", source_id="a", settings=options)
    found = find_components(BinaryMask(b), tmp_path / "s", source_id="b", settings=options)
    assert len(found.table) == reference(b, 26).max()


def test_finished_blocks_are_not_labelled_again(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((9, 9, 9)) < 0.2
    options = LabelSettings(block=(4, 4, 4), workers=1)
    find_components(BinaryMask(mask), tmp_path / "s", source_id="a", settings=options)
    events: list[Event] = []
    find_components(BinaryMask(mask), tmp_path / "s", source_id="a", settings=options, on_event=events.append)
    assert any(isinstance(event, Notice) for event in events)
    assert [event.done for event in events if isinstance(event, Started)] == [27]


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("dear")
    with pytest.raises(OutputExistsError, match="--scratch"):
        find_components(BinaryMask(np.ones((2, 2, 2))), tmp_path / "s", source_id="a")
    assert (tmp_path / "s" / "thesis.tex").read_text() == "dear"


def test_scores_are_refused(tmp_path: Path) -> None:
    scores = np.linspace(-3, 3, 27, dtype=np.float32).reshape(3, 3, 3)
    with pytest.raises(InputError, match=r"not a binary mask.*threshold"):
        find_components(BinaryMask(scores), tmp_path / "s", source_id="a")


def test_more_components_than_the_type_holds(tmp_path: Path) -> None:
    mask = np.zeros((3, 40, 40), bool)
    mask[1, ::2, ::2] = True
    found = find_components(BinaryMask(mask), tmp_path / "s", source_id="a", settings=LabelSettings(block=(3, 8, 8)))
    assert len(found.table) == 400
    out = empty_array(tmp_path, mask.shape, (3, 8, 8), "uint8")
    with pytest.raises(SettingsError, match="400 components, uint8 numbers at most 255"):
        found.write(out, np.ones(400, bool))
    found.write(out, np.ones(400, bool), as_mask=True)
    np.testing.assert_array_equal(out[:], mask)


def test_more_pieces_in_a_block_than_16_bits_hold(tmp_path: Path) -> None:
    mask = np.zeros((2, 300, 1000), bool)
    mask[0, ::2, ::2] = True
    got, found = labelled(mask, tmp_path, LabelSettings(block=(2, 300, 1000), kernel="scipy"))
    assert len(found.table) == 75_000
    np.testing.assert_array_equal(got[mask], np.arange(1, 75_001))


def test_chunks_shared_by_blocks_are_refused(tmp_path: Path) -> None:
    mask = np.ones((8, 8, 8), bool)
    found = find_components(BinaryMask(mask), tmp_path / "s", source_id="a", settings=LabelSettings(block=(4, 4, 4)))
    with pytest.raises(SettingsError, match="share a chunk"):
        found.write(empty_array(tmp_path, mask.shape, (3, 4, 4)), np.ones(1, bool))


def test_unknown_connectivity(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="6, 18 or 26"):
        find_components(BinaryMask(np.ones((2, 2, 2))), tmp_path, source_id="a", settings=LabelSettings(8))


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np, zarr
    from etsam_zarr.components.find import LabelSettings, find_components
    from etsam_zarr.events import Advanced
    from etsam_zarr.masks import BinaryMask

    folder, kill_in, kill_after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    seen = 0

    def listener(event):
        global seen
        if isinstance(event, Advanced) and event.name == kill_in:
            seen += 1
            if seen == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    mask = np.load(folder / "mask.npy")
    found = find_components(BinaryMask(mask), folder / "scratch", source_id="m",
                            settings=LabelSettings(block=(8, 8, 8), workers=1), on_event=listener)
    out = zarr.open_array(folder / "out.zarr", mode="r+")
    found.write(out, found.table.passing(min_voxels=3), on_event=listener)
    found.discard()
"""


@pytest.mark.parametrize(("kill_in", "kill_after"), [("label", 5), ("write components", 3)])
def test_killed_and_run_again(kill_in: str, kill_after: int, tmp_path: Path) -> None:
    mask = np.random.default_rng(3).random((24, 16, 16)) < 0.12
    np.save(tmp_path / "mask.npy", mask)
    out = empty_array(tmp_path, mask.shape, (8, 8, 8))
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, kill_in, str(kill_after)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "scratch").exists()
    subprocess.run([*command, "", "0"], env=environment, check=True)
    assert not (tmp_path / "scratch").exists()

    want = reference(mask, 26)
    keep = np.flatnonzero(np.bincount(want.ravel())[1:] >= 3) + 1
    lookup = np.zeros(want.max() + 1, int)
    lookup[keep] = np.arange(1, keep.size + 1)
    np.testing.assert_array_equal(out[:], lookup[want])
    assert dict(out.attrs) == {}
