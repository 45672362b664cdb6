"""Run stores copied to S3: whole or not readable, resumable, and never over something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import zarr
from conftest import FinishedRun
from etsam_zarr_cli.main import main
from s3_server import KEY, SECRET, client, s3_serving

from etsam_zarr.errors import OutputError, OutputExistsError, SettingsError
from etsam_zarr.publish import publish
from etsam_zarr.remote.address import RemoteAddress
from etsam_zarr.remote.volumes import RemoteOptions
from etsam_zarr.runstore import RunStore
from etsam_zarr.sources import open_volume

PLACE = "s3://results/team/t.etsam.zarr"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with s3_serving() as address:
        client(address).create_bucket(Bucket="results")
        yield address


def copy(store: RunStore, endpoint: str, place: str = PLACE) -> tuple[int, int]:
    done = publish(store.path, RemoteAddress.parse(place), options=RemoteOptions(s3_endpoint=endpoint))
    return done.copied, done.removed


def names(endpoint: str) -> set[str]:
    listed = client(endpoint).list_objects_v2(Bucket="results").get("Contents", ())
    return {entry["Key"].removeprefix("team/t.etsam.zarr/") for entry in listed}


def test_a_copy_holds_what_readers_need_and_reads_the_same(run_store: RunStore, endpoint: str) -> None:
    copied, removed = copy(run_store, endpoint)
    assert (copied, removed) == (len(names(endpoint)), 0)
    assert not any(name.startswith((".lease", "state/", ".etsam")) for name in names(endpoint))
    label = run_store.path / "labels" / "membranes"
    options = RemoteOptions(s3_endpoint=endpoint)
    with open_volume(f"{PLACE}/labels/membranes", remote=options) as there, open_volume(label) as here:
        span = tiny.Span(0, here.info.shape[0])
        np.testing.assert_array_equal(there.read(span), here.read(span))


def test_copying_again_copies_what_changed_and_removes_what_is_gone(run_store: RunStore, endpoint: str) -> None:
    copy(run_store, endpoint)
    assert copy(run_store, endpoint) == (0, 0)
    chunk = next(path for path in (run_store.path / "stages" / "2" / "logits").rglob("*") if path.name.isdigit())
    while chunk.is_dir():
        chunk = next(path for path in chunk.iterdir() if path.name[-1].isdigit())
    chunk.unlink()
    (run_store.path / "labels" / ".zattrs").write_text('{"labels": ["membranes"], "more": 1}')
    assert copy(run_store, endpoint) == (1, 1)


def test_an_interrupted_copy_is_no_run_store_and_goes_on(
    run_store: RunStore, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etsam_zarr.publish import _Bucket

    real, puts = _Bucket.put, 0

    def failing(bucket: _Bucket, name: str, content: bytes) -> None:
        nonlocal puts
        puts += 1
        if puts > 5:
            raise OutputError("the network is gone")
        real(bucket, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(_Bucket, "put", failing)
        with pytest.raises(OutputError, match="gone"):
            copy(run_store, endpoint)
    begun = names(endpoint)
    assert len(begun) == 5
    assert "run.json" not in begun
    copied, _ = copy(run_store, endpoint)
    assert copied == len(names(endpoint)) - 4  # the fifth was the mark, which goes


def test_other_things_are_left_alone(run_store: RunStore, endpoint: str) -> None:
    copy(run_store, endpoint)
    run_store.revise(fingerprint={"another": "run"})
    before = names(endpoint)
    with pytest.raises(OutputExistsError, match="left alone"):
        copy(run_store, endpoint)
    assert names(endpoint) == before
    client(endpoint).put_object(Bucket="results", Key="notes/a.txt", Body=b"mine")
    with pytest.raises(OutputExistsError, match="left alone"):
        copy(run_store, endpoint, "s3://results/notes")


def test_what_cannot_be_written_says_why(run_store: RunStore, endpoint: str) -> None:
    with pytest.raises(OutputError, match="there is no such bucket"):
        copy(run_store, endpoint, "s3://nowhere/t.etsam.zarr")
    with pytest.raises(SettingsError, match="local path, or to s3"):
        copy(run_store, endpoint, "https://host/t.etsam.zarr")


def test_run_with_an_output_in_s3(
    finished_run: FinishedRun, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = ["run", str(finished_run.source), *tiny.OPTIONS, "-o", PLACE, "--s3-endpoint", endpoint]
    assert main(command) == 0
    assert f"run store  {PLACE}" in capsys.readouterr().out
    tiny.assert_same_results(tmp_path / "t.etsam.zarr", finished_run.store)
    mask = zarr.open_array(finished_run.store / "labels" / "membranes" / "0", mode="r")
    with open_volume(f"{PLACE}/labels/membranes", remote=RemoteOptions(s3_endpoint=endpoint)) as volume:
        np.testing.assert_array_equal(volume.read(tiny.Span(0, mask.shape[0])), mask[...])
    assert main(command) == 0
    assert "0 of" in capsys.readouterr().err
    assert json.loads((tmp_path / "t.etsam.zarr" / "run.json").read_text())["source"] == str(finished_run.source)
