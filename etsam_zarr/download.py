"""One file from the network for pooch: a download that broke off goes on where it was.

pooch asks a function of this kind to put a file at a path, and compares checksums itself. What is added here: another
attempt where a connection breaks, the rest of a file instead of all of it, and that a page of text in place of a file
is called what it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from etsam_zarr.errors import InputError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started

_ATTEMPTS = 5
_PIECE = 1 << 20
_SECONDS_OF_SILENCE = 30


class ResumingDownloader:
    """Fetches one file for pooch; what arrived stays in a hidden file until all of it has.

    Parameters
    ----------
    on_event
        Told about each MiB.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._title = ""

    def __call__(self, url: str, output_file: str, keeper: Any) -> None:  # noqa: ANN401 - pooch's interface
        """Put the file at ``url`` at ``output_file``, five attempts where connections break.

        Raises
        ------
        InputError
            A page of text came in its place.
        requests.RequestException
            The server cannot be reached, refuses, or breaks off every time.
        """
        import requests

        address, name = _address(url)
        partial = partial_path(Path(keeper.path), name)
        begun = time.monotonic()
        for attempt in range(_ATTEMPTS):
            try:
                self._get(address, name, partial)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        if self._title:
            self._on_event(Finished(self._title, time.monotonic() - begun))
        partial.replace(output_file)

    def _get(self, address: str, name: str, partial: Path) -> None:
        import requests

        held = partial.stat().st_size if partial.exists() else 0
        headers = {"Range": f"bytes={held}-"} if held else {}
        with requests.get(address, headers=headers, stream=True, timeout=_SECONDS_OF_SILENCE) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                # Nothing is left to send (all of it was here already), or the file has changed: the checksum decides.
                if held == _total(answer):
                    return
                partial.unlink()
                raise requests.ConnectionError("the file on the server is shorter than what was downloaded")
            answer.raise_for_status()
            if "html" in answer.headers.get("Content-Type", ""):
                raise InputError(
                    f"{address} answered with a web page (HTML) instead of {name}: a login or error page, perhaps of a "
                    "proxy. Open the address in a browser to see it, or download the file elsewhere and copy it to "
                    f"{partial.parent}."
                )
            if answer.status_code != requests.codes.partial_content:
                held = 0
            total = _total(answer)
            if not self._title:
                self._title = f"download {name}"
                self._on_event(Started(self._title, total=(total or 0) // _PIECE, done=held // _PIECE, unit="MB"))
            with partial.open("ab" if held else "wb") as file:
                for piece in answer.iter_content(_PIECE):
                    file.write(piece)
                    self._on_event(Advanced(self._title))
        if total is not None and partial.stat().st_size < total:
            raise requests.ConnectionError(f"only {partial.stat().st_size} of {total} bytes of {name} arrived")


def partial_path(folder: Path, name: str) -> Path:
    """Return where what has arrived of a file is kept until all of it has."""
    return folder / f".{name}.partial"


def _address(url: str) -> tuple[str, str]:
    """Return the web address and file name of what pooch calls ``url``."""
    name = urlsplit(url).path.rsplit("/", 1)[-1]
    if not url.startswith("doi:"):
        return url, name
    from pooch.downloaders import doi_to_repository

    doi = url.removeprefix("doi:").rsplit("/", 1)[0]
    return str(doi_to_repository(doi, timeout=_SECONDS_OF_SILENCE).download_url(name)), name


def _total(answer: Any) -> int | None:  # noqa: ANN401 - requests has no type information
    """Return the size of the whole file as the server states it."""
    stated = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None
