"""Reading MRC files, with the odd headers that are met in the wild."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrc_files import voxels_of, write_raw_mrc

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.mrc.read import MrcVolume
from etsam_zarr.volume import Array

IMOD = 1146047817
DTYPES = ("int8", "int16", "uint16", "float16", "float32")


def whole(path: Path) -> Array:
    with MrcVolume(path, name="x") as volume:
        return volume.read(Span(0, volume.info.shape[0]))


def opened(path: Path) -> MrcVolume:
    return MrcVolume(path, name="x")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_every_numeric_mode_in_both_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    # dmax is left at 0, as some writers do, so that int8 stays signed.
    voxels = voxels_of(dtype)
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, order=order, fields={80: ("f", 0.0)})
    with opened(path) as volume:
        read = volume.read(Span(0, 4))
        assert volume.info.dtype == np.dtype(dtype)
        assert volume.info.dtype.isnative
        assert volume.info.shape == (4, 5, 6)
        assert volume.info.voxel_size == (10.0, 10.0, 10.0)
    np.testing.assert_array_equal(read, voxels)
    assert read.dtype.isnative


@settings(deadline=None)
@given(data=st.data())
def test_any_box_equals_the_same_box_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(*[st.integers(2, 7)] * 3))
    dtype = data.draw(st.sampled_from(DTYPES))
    voxels = voxels_of(dtype, shape)
    path = write_raw_mrc(tmp_path_factory.mktemp("box") / "a.mrc", voxels, fields={80: ("f", 0.0)})
    spans = []
    for size in shape:
        start = data.draw(st.integers(0, size))
        spans.append(Span(start, data.draw(st.integers(start, size))))
    with opened(path) as volume:
        read = volume.read(*spans)
    np.testing.assert_array_equal(read, voxels[tuple(span.as_slice() for span in spans)])
    read[...] = 0  # the caller may change it


@pytest.mark.parametrize("columns", [6, 7])
def test_unpacks_4_bit_voxels_low_half_first_and_rows_from_whole_bytes(tmp_path: Path, columns: int) -> None:
    voxels = np.random.default_rng(1).integers(0, 16, (3, 4, columns), dtype=np.uint8)
    padded = np.pad(voxels, [(0, 0), (0, 0), (0, columns % 2)])
    payload = (padded[..., 0::2] | padded[..., 1::2] << 4).tobytes()
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, mode=101, payload=payload)
    np.testing.assert_array_equal(whole(path), voxels)
    with opened(path) as volume:
        assert volume.info.dtype == np.uint8
        box = volume.read(Span(1, 3), Span(2, 4), Span(1, 4))
    np.testing.assert_array_equal(box, voxels[1:3, 2:4, 1:4])


@pytest.mark.parametrize("order", ["<", ">"])
def test_old_header_without_map_and_stamp_is_read_in_the_byte_order_that_makes_sense(
    tmp_path: Path, order: str
) -> None:
    voxels = voxels_of("int16", (3, 4, 256))
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, order=order, map_id=b"\0\0\0\0", stamp=b"\0\0\0\0")
    np.testing.assert_array_equal(whole(path), voxels)


def test_where_both_byte_orders_make_sense_the_file_size_decides(tmp_path: Path) -> None:
    # 256 read in the wrong order is 65536, and mode 0 is 0 in both.
    voxels = voxels_of("int8", (256, 2, 256))[:, :1].repeat(256, axis=1)
    path = write_raw_mrc(
        tmp_path / "a.mrc", voxels, order=">", map_id=b"\0\0\0\0", stamp=b"\0\0\0\0",
        fields={64: ("i", 0), 68: ("i", 0), 72: ("i", 0), 80: ("f", 0.0)},
    )  # fmt: skip
    with opened(path) as volume:
        assert volume.info.shape == (256, 256, 256)


def test_wrong_machine_stamp_is_overruled_and_said(tmp_path: Path) -> None:
    voxels = voxels_of("int16")
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, order=">", stamp=b"\x44\x44\0\0")
    np.testing.assert_array_equal(whole(path), voxels)
    with opened(path) as volume:
        assert any("machine stamp" in sentence for sentence in volume.info.warnings)


@pytest.mark.parametrize("size", [80, 4096 + 37, 131072])
def test_extended_header_of_any_size_and_kind_is_skipped(tmp_path: Path, size: int) -> None:
    voxels = voxels_of("float32")
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, extended=b"\x5a" * size)
    np.testing.assert_array_equal(whole(path), voxels)


def test_bytes_with_a_maximum_above_127_are_unsigned(tmp_path: Path) -> None:
    voxels = voxels_of("uint8")
    path = write_raw_mrc(tmp_path / "a.mrc", voxels)
    np.testing.assert_array_equal(whole(path), voxels)
    with opened(path) as volume:
        assert volume.info.dtype == np.uint8
        assert any("unsigned" in sentence for sentence in volume.info.warnings)


@pytest.mark.parametrize(("flags", "dtype"), [(1, "int8"), (0, "uint8")])
def test_imods_flags_say_whether_bytes_are_signed(tmp_path: Path, flags: int, dtype: str) -> None:
    voxels = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, fields={152: ("i", IMOD), 156: ("i", flags)})
    with opened(path) as volume:
        assert volume.info.dtype == np.dtype(dtype)


def test_stale_imod_flags_do_not_turn_negative_bytes_into_large_ones(tmp_path: Path) -> None:
    voxels = np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 6)
    path = write_raw_mrc(tmp_path / "a.mrc", voxels, fields={152: ("i", IMOD), 156: ("i", 0)})
    np.testing.assert_array_equal(whole(path), voxels)


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ({196: ("f", 7.0), 200: ("f", 8.0), 204: ("f", 9.0)}, (9.0, 8.0, 7.0)),
        ({196: ("f", -7.0), 152: ("i", IMOD), 156: ("i", 1)}, (0.0, 0.0, 7.0)),
        ({196: ("f", 7.0), 152: ("i", IMOD), 156: ("i", 1 | 4)}, (0.0, 0.0, 7.0)),
        ({16: ("i", 3), 24: ("i", -2)}, (-20.0, 0.0, 30.0)),
        ({16: ("i", 3), 196: ("f", 30.0)}, (0.0, 0.0, 30.0)),
        ({196: ("f", float("nan"))}, (0.0, 0.0, 0.0)),
    ],
    ids=["standard", "imod", "imod-standard-sign", "nstart", "both-count-once", "nan"],
)
def test_origin(tmp_path: Path, fields: dict, origin: tuple[float, float, float]) -> None:
    with opened(write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"), fields=fields)) as volume:
        assert volume.info.origin == origin


@pytest.mark.parametrize(
    ("cell", "fields", "expected", "said"),
    [
        ((0.0, 0.0, 0.0), {}, None, "no voxel size"),
        ((6.0, 5.0, 4.0), {}, (1.0, 1.0, 1.0), "exactly 1 A"),
        ((60.0, 50.0, 40.0), {36: ("i", 1)}, (10.0, 10.0, 10.0), "mz"),
        ((60.0, 50.0, 0.0), {}, (10.0, 10.0, 10.0), "taken from x"),
        ((60.0, 50.0, 4000.0), {}, (1000.0, 10.0, 10.0), "1000 A thick"),
        ((60.0, 50.0, 40.0), {28: ("i", 0)}, None, "no voxel size"),
        ((60.0, 50.0, 80.0), {}, (20.0, 10.0, 10.0), None),
        ((float("nan"), 50.0, 80.0), {}, None, "no voxel size"),
    ],
)
def test_voxel_size(tmp_path: Path, cell: tuple, fields: dict, expected: tuple | None, said: str | None) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"), cell=cell, fields=fields)
    with opened(path) as volume:
        assert volume.info.voxel_size == expected
        if said is None:
            assert volume.info.warnings == ()
        else:
            assert any(said in sentence for sentence in volume.info.warnings)
    with MrcVolume(path, name="x", voxel_size=(3.0, 2.0, 1.5)) as volume:
        assert volume.info.voxel_size == (3.0, 2.0, 1.5)
        assert volume.info.warnings == ()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 3, 2), (2, 3, 1), (3, 1, 2), (0, 0, 0)])
def test_axis_order_of_the_header_is_followed(tmp_path: Path, order: tuple[int, int, int]) -> None:
    stored = voxels_of("int16", (3, 4, 5))
    fields = {64 + 4 * i: ("i", axis) for i, axis in enumerate(order)}
    path = write_raw_mrc(tmp_path / "a.mrc", stored, fields=fields)
    columns, rows, sections = order if any(order) else (1, 2, 3)
    # Put x, y, z of the volume where the header says columns, rows and sections lie.
    position = {sections: 0, rows: 1, columns: 2}
    expected = stored.transpose(position[3], position[2], position[1])
    with opened(path) as volume:
        assert volume.info.shape == expected.shape
        np.testing.assert_array_equal(volume.read(Span(0, expected.shape[0])), expected)
        np.testing.assert_array_equal(volume.read(Span(1, 3), Span(0, 2), Span(1, 3)), expected[1:3, 0:2, 1:3])


def test_truncated_file_says_expected_and_found_bytes(tmp_path: Path) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("float32"))
    full = path.stat().st_size
    os.truncate(path, full - 1)
    with pytest.raises(InputError, match=rf"truncated.*{full} bytes.*holds {full - 1}"):
        opened(path)
    os.truncate(path, 100)
    with pytest.raises(InputError, match=r"100 bytes.*1024"):
        opened(path)


def test_file_shortened_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("float32"))
    with opened(path) as volume:
        os.truncate(path, 1100)
        with pytest.raises(InputError, match="ended at byte 1100"):
            volume.read(Span(0, 4))


def test_surplus_bytes_are_ignored_and_said(tmp_path: Path) -> None:
    voxels = voxels_of("int16")
    path = write_raw_mrc(tmp_path / "a.mrc", voxels)
    with path.open("ab") as file:
        file.write(b"12345")
    np.testing.assert_array_equal(whole(path), voxels)
    with opened(path) as volume:
        assert any("5 bytes" in sentence for sentence in volume.info.warnings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({12: ("i", 4)}, "complex"),
        ({12: ("i", 3)}, "complex"),
        ({12: ("i", 16)}, "picture"),
        ({12: ("i", 7)}, "mode 7"),
        ({8: ("i", 1)}, "an image, not a volume"),
        ({88: ("i", 401), 36: ("i", 2)}, "stack of 2 volumes"),
        ({0: ("i", -5)}, "not an MRC"),
        ({92: ("i", -5)}, "not an MRC"),
        ({64: ("i", 2)}, "mapc"),
        ({152: ("i", IMOD), 156: ("i", 16), 12: ("i", 0)}, "4-bit"),
    ],
)
def test_unusable_headers_are_refused_with_the_reason(tmp_path: Path, fields: dict, said: str) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"), fields=fields)
    with pytest.raises(InputError, match=said) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_digest_depends_on_header_size_and_voxels_but_not_on_the_path(tmp_path: Path) -> None:
    voxels = voxels_of("float32", (4, 64, 64))
    first = write_raw_mrc(tmp_path / "a.mrc", voxels)
    same = write_raw_mrc(tmp_path / "b.mrc", voxels)
    voxels[2, 3, 4] += 1
    other = write_raw_mrc(tmp_path / "c.mrc", voxels)
    longer = write_raw_mrc(tmp_path / "d.mrc", voxels_of("float32", (4, 64, 64)))
    with longer.open("ab") as file:
        file.write(b"\0")
    digests = [opened(path).digest() for path in (first, same, other, longer)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_reads_from_several_threads_at_once(tmp_path: Path) -> None:
    voxels = voxels_of("int16", (16, 32, 32))
    failures: list[int] = []
    with opened(write_raw_mrc(tmp_path / "a.mrc", voxels)) as volume:

        def check(seed: int) -> None:
            starts = np.random.default_rng(seed).integers(0, 15, 50).tolist()
            failures.extend(z for z in starts if not np.array_equal(volume.read(Span(z, z + 2)), voxels[z : z + 2]))

        threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "dtype", "voxel_size", "origin"),
    [
        ("etspy_HAADF", "int16", (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        ("isbi2012_raw_u16", "uint16", (500.0, 40.0, 40.0), (0.0, 0.0, 0.0)),
        ("isbi2012_membrane", "int8", (500.0, 40.0, 40.0), (0.0, 0.0, 0.0)),
        ("pyto_new-head_int16", "int16", (4.0, 4.0, 4.0), (90.0, 964.0, 944.0)),
        ("tardis_mrc3D", "uint8", (23.2, 23.2, 23.2), (-4640.0, 0.0, 0.0)),
    ],
)
def test_real_files_give_the_bytes_that_mrcfile_gives(
    real_data: Path, name: str, dtype: str, voxel_size: tuple, origin: tuple
) -> None:
    path = real_data / f"{name}.mrc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(mrcfile.mmap(path, permissive=True).data)
    with opened(path) as volume:
        assert volume.info.dtype == np.dtype(dtype)
        assert volume.info.voxel_size == pytest.approx(voxel_size, abs=1e-3)
        assert volume.info.origin == origin
        read = volume.read(Span(0, volume.info.shape[0]))
    # tardis_mrc3D holds unsigned bytes, which mrcfile gives as signed ones: the stored bytes are compared.
    np.testing.assert_array_equal(read, expected.view(dtype))


_READ_ALL = """
import sys
from pathlib import Path
from etsam_zarr.geometry import Span, cut
from etsam_zarr.mrc.read import MrcVolume
volume = MrcVolume(Path(sys.argv[1]), name="x")
volume.read(Span(0, 4))
before = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
for z in cut(Span(0, volume.info.shape[0]), 4):
    volume.read(z)
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in other units elsewhere")
def test_reading_slab_by_slab_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", np.zeros((2, 512, 512), np.float32))
    with path.open("r+b") as file:  # a sparse file of 400 MiB takes no disk
        file.seek(8)
        file.write((400).to_bytes(4, "little"))
        file.truncate(1024 + 400 * 512 * 512 * 4)
    result = subprocess.run([sys.executable, "-c", _READ_ALL, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 40 * 1024  # kB; a memory map would add 400 MB
