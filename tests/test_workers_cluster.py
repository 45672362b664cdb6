"""Workers of this machine and of clusters that are there already, and the look at them before any work is begun."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from dask_cluster import Cluster

from etsam_zarr.errors import ClusterError
from etsam_zarr.workers.cluster import existing_cluster, local_cluster
from etsam_zarr.workers.facts import look_over


def test_workers_that_would_compute_several_blocks_at_once_are_refused(tmp_path: Path) -> None:
    options = ("--nthreads", "2", "--no-nanny")
    with Cluster(tmp_path, options=options) as cluster, existing_cluster(str(cluster.file)) as client:
        client.wait_for_workers(1, timeout=120)
        with pytest.raises(ClusterError, match=r"has 2 threads.*--nthreads 1"):
            look_over(client, files=[])


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etsam_zarr.workers.facts._own_version", lambda: "99.0")
    says = r"etsam-zarr 99\.0, which runs here. Install the same"
    with local_cluster(["cpu"], threads=1) as client, pytest.raises(ClusterError, match=says):
        look_over(client, files=[])


def test_a_scheduler_that_goes_away_before_the_work(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, existing_cluster(str(cluster.file)) as client:
        client.wait_for_workers(1, timeout=120)
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        with pytest.raises(ClusterError, match=r"went away before any work was begun \(.+\)\. Start the cluster again"):
            look_over(client, files=[])


@pytest.mark.parametrize(
    ("where", "says"), [("tcp://127.0.0.1:9", "No scheduler answers at"), ("a.json", "There is no scheduler file")]
)
def test_no_scheduler(where: str, says: str) -> None:
    with pytest.raises(ClusterError, match=says), existing_cluster(where):
        pass


def test_workers_have_the_threads_they_are_given_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with local_cluster(["cpu"], threads=2) as client:
        found = client.run(lambda: dict(os.environ))
        assert client.submit(torch.get_num_threads).result() == 2
    (environment,) = found.values()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["OMP_NUM_THREADS"] == "1"
