"""What the workers of a cluster say of themselves, and whether they can do the work; asked before any is begun."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam_zarr.errors import ClusterError
from etsam_zarr.workers.cluster import answering

if TYPE_CHECKING:
    from distributed import Client

_PACKAGE = "etsam-zarr"


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker process says of itself."""

    host: str
    threads: int
    """Of dask: how many jobs it would compute at once."""
    gpu: str | None
    """Identity of the first GPU that it sees."""
    bfloat16: bool
    """Whether its device computes bfloat16 fast."""
    missing: tuple[str, ...]
    """Which of the files asked for it cannot see."""


def look_over(client: Client, *, files: Sequence[Path], device: str = "auto") -> dict[str, WorkerFacts]:
    """Ask all workers whether they can do the work, before any is begun.

    Parameters
    ----------
    files
        What all of them must see under the same path.
    device
        ``"auto"``, ``"cpu"`` or a GPU: whether it matters what GPUs they see.

    Returns
    -------
    What they say, by address.

    Raises
    ------
    ClusterError
        A worker has another version of this package or none, does not see the files, or computes several jobs at once;
        or some have GPUs and others not; or the scheduler went away.
    """
    version = _own_version()
    with answering():
        found = client.run(metadata.version, _PACKAGE, on_error="return")
    other = sorted(f"{address} ({_version(answer)})" for address, answer in found.items() if answer != version)
    if other:
        raise ClusterError(
            f"The workers {', '.join(other)} do not have {_PACKAGE} {version}, which runs here. Install the same "
            "version in the workers' environment, or start them from this one."
        )
    with answering():
        facts: dict[str, WorkerFacts] = client.run(describe_worker, tuple(str(path) for path in files), device)
    for address, fact in sorted(facts.items()):
        if fact.missing:
            raise ClusterError(
                f"The worker {address} on {fact.host} does not see {', '.join(fact.missing)}. Workers read the volume "
                "and write the run store themselves: put both where all machines have them under the same path."
            )
        if fact.threads != 1:
            raise ClusterError(
                f"The worker {address} has {fact.threads} threads, so that it would compute several blocks at once "
                "with one model. Start workers with --nthreads 1 (dask-jobqueue: cores=1), one per device."
            )
    gpus = Counter(fact.gpu for fact in facts.values())
    if device == "auto" and None in gpus and len(gpus) > 1:
        raise ClusterError(
            f"{gpus[None]} of {len(facts)} workers see no GPU, the others do, and results of the two differ in the "
            "last bits. Give --device cpu, or stop the workers without a GPU."
        )
    shared = [gpu for gpu, count in gpus.items() if gpu is not None and count > 1]
    if shared and device != "cpu":
        raise ClusterError(
            f"{gpus[shared[0]]} workers see the same first GPU ({shared[0]}). Start each worker with a "
            "CUDA_VISIBLE_DEVICES of its own."
        )
    return facts


def describe_worker(files: tuple[str, ...], device: str, dask_worker: Any = None) -> WorkerFacts:  # noqa: ANN401
    """Describe the process that calls; dask.distributed passes itself as ``dask_worker``."""
    import socket

    import torch

    from etsam_zarr.device import choose_precision

    missing = tuple(path for path in files if not Path(path).exists())
    gpu = str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None
    where = torch.device("cpu" if gpu is None or device == "cpu" else "cuda:0")
    fast = choose_precision("auto", where) == "bfloat16"
    return WorkerFacts(socket.gethostname(), dask_worker.state.nthreads, gpu, fast, missing)


def _own_version() -> str:
    return metadata.version(_PACKAGE)


def _version(answer: object) -> str:
    return answer if isinstance(answer, str) else "does not have it"
