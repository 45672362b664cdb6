"""One question to the CryoET Data Portal: a GraphQL request with time-outs, retries and errors that explain."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from etsam_zarr.errors import RemoteError, SettingsError

if TYPE_CHECKING:
    import requests

URL_VARIABLE = "ETSAM_ZARR_PORTAL_URL"
DEFAULT_URL = "https://graphql.cryoetdataportal.czscience.com/graphql"

# Seconds to connect, and of silence while the portal looks things up.
_TIMEOUTS = (10.0, 30.0)
_RETRIES = 4
# Between attempts: 0, then twice, four times, ... so many seconds.
_BACKOFF = 0.5
_LONGEST_WAIT = 30.0
_PASSING = (429, 500, 502, 503, 504)


def ask(query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Send a query to the portal and return the answer's ``data``.

    The environment variable ``ETSAM_ZARR_PORTAL_URL`` names another endpoint. Equal questions are asked once in the
    life of the process. Time-outs, broken connections, 429 and 5xx are tried again four times with growing pauses.

    Raises
    ------
    RemoteError
        The portal cannot be reached, refuses, or answers something else.
    SettingsError
        The endpoint is no web address.
    """
    url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise SettingsError(
            f"{URL_VARIABLE} is {_public(url)!r}, which is no web address. Give the portal's GraphQL endpoint, such as "
            f"{DEFAULT_URL}, or unset it."
        )
    data: dict[str, Any] = json.loads(_answer(url, query, json.dumps(variables, sort_keys=True)))
    return data


def forget() -> None:
    """Ask again what was asked before."""
    _answer.cache_clear()


@functools.lru_cache(maxsize=512)
def _answer(url: str, query: str, variables: str) -> str:
    """Return the answer's data as JSON text, which nobody can change."""
    import requests

    place = _public(url)
    try:
        with _session() as session:
            answer = session.post(
                url,
                json={"query": query, "variables": json.loads(variables)},
                timeout=_TIMEOUTS,
                allow_redirects=False,
                headers={"Accept": "application/json", "User-Agent": "etsam-zarr"},
            )
    except requests.exceptions.SSLError as error:
        raise _failed(place, "shows a certificate that is not trusted") from error
    except requests.exceptions.ProxyError as error:
        raise _failed(place, "cannot be reached through the proxy that the environment names") from error
    except requests.exceptions.RequestException as error:
        # Not the library's own text: it may hold addresses with passwords.
        if _timed_out(error):
            raise _failed(place, f"did not answer within {_TIMEOUTS[1]:g} s, {_RETRIES + 1} times") from error
        raise _failed(place, f"cannot be reached, tried {_RETRIES + 1} times") from error
    return json.dumps(_data(answer, place))


def _timed_out(error: requests.RequestException) -> bool:
    """Say whether silence was the last reason; after retries requests calls all of them connection errors."""
    import requests
    from urllib3.exceptions import ReadTimeoutError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.exceptions.ReadTimeout) or isinstance(reason, ReadTimeoutError)


def _session() -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Patient(Retry):
        """Waits as long as the server asks, but not for hours."""

        def get_retry_after(self, response: Any) -> float | None:  # noqa: ANN401 - urllib3's interface
            seconds = super().get_retry_after(response)
            return None if seconds is None else min(seconds, _LONGEST_WAIT)

    session = requests.Session()
    # A question changes nothing, so that POST may be sent again.
    again = Patient(
        _RETRIES, backoff_factor=_BACKOFF, status_forcelist=_PASSING, allowed_methods=None, raise_on_status=False
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    # The portal needs no login, so none is taken from ~/.netrc.
    session.auth = lambda request: request
    return session


def _data(answer: requests.Response, place: str) -> dict[str, Any]:
    """Return the data of an answer, or say what came instead."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    errors = content.get("errors") if isinstance(content, dict) else None
    if errors:
        first = errors[0].get("message") if isinstance(errors, list) and isinstance(errors[0], dict) else errors
        raise _failed(place, f"refused the question ({str(first)[:300]})")
    if answer.status_code in _PASSING:
        raise _failed(place, f"answered with HTTP {answer.status_code}, {_RETRIES + 1} times")
    if answer.status_code != 200:
        raise _failed(place, f"answered with HTTP {answer.status_code}")
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
        kind = answer.headers.get("Content-Type", "").partition(";")[0] or "something of no kind"
        raise _failed(place, f"answered with something else than data ({kind}); a login page, perhaps, of a proxy")
    return data


def _failed(place: str, what: str) -> RemoteError:
    return RemoteError(
        f"The CryoET Data Portal at {place} {what}. Check the network and try again, set {URL_VARIABLE} if you use a "
        "mirror, or give the https or s3 address of the .zarr itself, which needs no look-up."
    )


def _public(url: str) -> str:
    """Return an address without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else parts.path
