"""Everything this package raises on purpose.

Each message says what went wrong, the value found, the limit, and the remedy, in one paragraph.

::

    EtsamZarrError
    ├── InputError (ValueError)            a volume that cannot be read or used
    │   ├── InputNotFoundError (FileNotFoundError)
    │   ├── NoZarrError                    a folder or address without Zarr metadata
    │   └── RemoteError                    a remote address that cannot be reached or read
    ├── SettingsError (ValueError)         a setting out of range, or two that contradict
    ├── ModelError (ValueError)            a model config or checkpoint that cannot be used
    ├── DoesNotFitError (MemoryError)      the plan needs more memory or disk than there is
    ├── OutputError (OSError)              a destination that cannot be written
    │   └── OutputExistsError (FileExistsError)
    ├── ClusterError (RuntimeError)        workers that cannot be started, reached or used
    ├── BlocksFailedError (RuntimeError)   some blocks failed, all others were computed
    ├── DeviceMemoryError (RuntimeError)   memory ran out while computing
    ├── UnexpectedError (RuntimeError)     what a library, or a mistake in this one, raised in a worker process
    └── RunStoreError (ValueError)         a run store that is damaged, absent or of another configuration
        ├── FingerprintError
        └── LeaseLostError                 another run took the store over, or the run that sent the work has ended
"""

from __future__ import annotations


class EtsamZarrError(Exception):
    """Base of all errors of this package; the command line prints its message and exits with 1."""


class InputError(EtsamZarrError, ValueError):
    """The input volume cannot be read or used."""


class InputNotFoundError(InputError, FileNotFoundError):
    """There is nothing at the given path."""


class NoZarrError(InputError):
    """A folder or address holds no Zarr metadata."""


class RemoteError(InputError):
    """What lies at a remote address cannot be reached or read; the message holds no credentials."""


class SettingsError(EtsamZarrError, ValueError):
    """A setting is out of range, or contradicts another one."""


class ModelError(EtsamZarrError, ValueError):
    """A model configuration or checkpoint cannot be used."""


class DoesNotFitError(EtsamZarrError, MemoryError):
    """What is planned needs more memory or disk than there is; nothing has been started."""


class OutputError(EtsamZarrError, OSError):
    """The destination cannot be written (disk full, no permission)."""


class OutputExistsError(OutputError, FileExistsError):
    """Something lies at the destination already and nobody asked to overwrite it."""


class RunStoreError(EtsamZarrError, ValueError):
    """There is no run store at the path, or it is damaged."""


class FingerprintError(RunStoreError):
    """The run store was made with other settings, another model or another volume."""


class LeaseLostError(RunStoreError):
    """The run that this process works for has ended, or another one took its store over: it must not write."""


class ClusterError(EtsamZarrError, RuntimeError):
    """Workers cannot be started, reached or used."""


class BlocksFailedError(EtsamZarrError, RuntimeError):
    """Some blocks of a run failed; the message names each and why. All others were computed and are kept."""


class DeviceMemoryError(EtsamZarrError, RuntimeError):
    """The device ran out of memory, also with as little as could be tried."""


class UnexpectedError(EtsamZarrError, RuntimeError):
    """A worker process raised something that is not of this package."""


def in_one_line(error: BaseException) -> str:
    """Return what an error of another library says as part of a sentence: some of them say it in paragraphs."""
    return " ".join(str(error).split())
