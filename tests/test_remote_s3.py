"""Volumes in S3: public and private buckets of a server on localhost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from etsam_zarr_cli.main import main
from portal_store import write_portal_store
from s3_server import KEY, SECRET, client, s3_serving, upload

from etsam_zarr.errors import NoZarrError, RemoteError, SettingsError
from etsam_zarr.geometry import Span
from etsam_zarr.remote.store import RetryPolicy
from etsam_zarr.remote.volumes import RemoteOptions, supply_of
from etsam_zarr.sources import open_volume

SHAPE = (12, 40, 48)
FAST = RetryPolicy(retries=2, first_wait=0.01)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return tiny.texture(SHAPE)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Iterator[str]:
    folder = write_portal_store(tmp_path_factory.mktemp("s3") / "tomo.zarr", voxels, chunks=(4, 32, 32))
    with s3_serving() as address:
        upload(address, "open-data", folder, "10000/run 1/tomo.zarr", public=True)
        upload(address, "closed-data", folder, "tomo.zarr", public=False)
        yield address


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the machine of the tests has must not help, or be sent."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_public_bucket_without_credentials(endpoint: str, voxels: np.ndarray) -> None:
    options = RemoteOptions(s3_endpoint=endpoint, retry=FAST)
    with open_volume("s3://open-data/10000/run 1/tomo.zarr", remote=options) as volume:
        assert volume.info.uri == "s3://open-data/10000/run 1/tomo.zarr"
        np.testing.assert_array_equal(volume.read(Span(1, 11), Span(3, 40)), voxels[1:11, 3:40])
        supply = supply_of(volume)
        assert supply is not None
        need = supply.need((Span(0, 12), Span(0, 40), Span(0, 48)))
        assert (need.chunks, need.exact) == (3 * 2 * 2, True)
        assert need.known_bytes is not None
        assert 0 < need.known_bytes < need.most_bytes


def test_private_bucket_with_credentials_of_the_usual_places(
    endpoint: str, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = RemoteOptions(s3_endpoint=endpoint, retry=FAST)
    with pytest.raises(NoZarrError, match=r"403 \(forbidden\).*--s3-profile"):
        open_volume("s3://closed-data/tomo.zarr", remote=options)
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    named = RemoteOptions(s3_endpoint=endpoint, s3_profile="lab", retry=FAST)
    with open_volume("s3://closed-data/tomo.zarr", remote=named) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 12)), voxels)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with open_volume("s3://closed-data/tomo.zarr", remote=options) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 12)), voxels)


def test_what_cannot_be_opened(endpoint: str) -> None:
    options = RemoteOptions(s3_endpoint=endpoint, retry=FAST)
    with pytest.raises(NoZarrError, match=r"There is no bucket for s3://no-such-data/tomo.zarr"):
        open_volume("s3://no-such-data/tomo.zarr", remote=options)
    with pytest.raises(NoZarrError, match=r"There is no Zarr at s3://open-data/elsewhere.zarr"):
        open_volume("s3://open-data/elsewhere.zarr", remote=options)
    with pytest.raises(SettingsError, match="--s3-profile is 'nobody'"):
        open_volume("s3://open-data/a.zarr", remote=RemoteOptions(s3_endpoint=endpoint, s3_profile="nobody"))
    with pytest.raises(SettingsError, match="--s3-endpoint is 'minio'"):
        open_volume("s3://open-data/a.zarr", remote=RemoteOptions(s3_endpoint="minio"))


def test_the_portals_bucket_is_read_without_credentials_even_if_there_are_some(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed with the credentials of something else, requests to a public bucket are refused."""
    import obstore.store

    from etsam_zarr.remote.address import RemoteAddress
    from etsam_zarr.remote.volumes import open_store

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    made: list[obstore.store.S3Store] = []
    real = obstore.store.S3Store
    monkeypatch.setattr("obstore.store.S3Store", lambda *args, **given: made.append(given) or real(*args, **given))
    open_store(RemoteAddress.parse("s3://cryoet-data-portal-public/10000/tomo.zarr"))
    assert made[0]["config"]["skip_signature"] is True  # type: ignore[index]
    assert made[0]["config"]["region"] == "us-west-2"  # type: ignore[index]
    assert made[0]["credential_provider"] is None  # type: ignore[index]


def test_run_from_a_bucket_is_the_local_run(
    endpoint: str, voxels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = write_portal_store(tmp_path / "tomo.zarr", voxels, chunks=(4, 32, 32))
    assert main(["run", str(local), *tiny.OPTIONS]) == 0
    store = tmp_path / "s3.etsam.zarr"
    access = ["--s3-endpoint", endpoint]
    assert main(["run", "s3://open-data/10000/run 1/tomo.zarr", *tiny.OPTIONS, "-o", str(store), *access]) == 0
    tiny.assert_same_results(store, tmp_path / "tomo.etsam.zarr")
    assert "traffic" in capsys.readouterr().out


def test_the_region_of_a_bucket_is_asked_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    from etsam_zarr.remote.s3_store import _region

    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    client(endpoint).create_bucket(Bucket="in-ohio", CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    real = requests.head
    monkeypatch.setattr(
        requests, "head", lambda url, **given: real(url.replace("https://s3.amazonaws.com", endpoint), **given)
    )
    assert _region("in-ohio", None, None) == "us-east-2"
    with pytest.raises(RemoteError, match="There is no bucket nowhere-data at Amazon S3"):
        _region("nowhere-data", None, None)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert _region("in-ohio", None, None) == "eu-west-1"
