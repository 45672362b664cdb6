"""Addresses of volumes that lie elsewhere, taken apart, and shown without what must stay secret."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from etsam_zarr.errors import InputError

SCHEMES = ("https", "http", "s3")

_SWALLOWED = re.compile(rf"^((?:{'|'.join(SCHEMES)}|file):)/(?!/)", re.IGNORECASE)
# user:password@ after the scheme, and everything from a question mark on: both can hold secrets.
_SECRETS = re.compile(r"(?P<scheme>\w+://)[^\s/@'\"]*@|\?[^\s'\")\]]*")


@dataclass(frozen=True)
class RemoteAddress:
    """Where something lies in an object store or on a web server."""

    scheme: Literal["https", "http", "s3"]
    place: str
    """Host, with its port if one is given; for ``s3`` the bucket."""
    path: str
    """Path below it as it is written, without a slash at either end."""
    query: str = field(default="", repr=False)
    """What follows the question mark, which goes with every request (signed addresses); never shown."""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, uri: str) -> RemoteAddress:
        """Take an address apart.

        Raises
        ------
        InputError
            The scheme is none of ``https``, ``http`` and ``s3``, or a part is missing.
        """
        scheme, _, rest = uri.partition("://")
        scheme = scheme.lower()
        shown = redact(uri)
        if scheme not in SCHEMES:
            raise InputError(
                f"{shown} has an address of the kind {scheme}://, which is not read. Give https://, http://, s3://, "
                "or the path of a local file or folder."
            )
        if scheme == "s3":
            # Not urlsplit: '?' and '#' may be part of a key, and a bucket is no host.
            bucket, _, key = rest.partition("/")
            if not bucket or "@" in bucket:
                raise InputError(f"{shown} names no bucket. Write s3://bucket/path/tomo.zarr.")
            return cls("s3", bucket, key.strip("/"))
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(f"{shown} is no valid address ({error}). Check its spelling.") from error
        if not host:
            raise InputError(f"{shown} names no host. Write {scheme}://host/path/tomo.zarr.")
        place = (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")
        user, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
        return cls("https" if scheme == "https" else "http", place, parts.path.strip("/"), parts.query, user, password)

    def with_secrets_of(self, other: RemoteAddress | None) -> RemoteAddress:
        """Return this address with the user, password and query of another one for the same place."""
        if other is None or (self.scheme, self.place) != (other.scheme, other.place) or self.query or self.user:
            return self
        return replace(self, query=other.query, user=other.user, password=other.password)

    @property
    def shown(self) -> str:
        """The address for people, logs and records: no user, no password, no query.

        >>> RemoteAddress.parse("https://me:secret@data.org/a/tomo.zarr/?signature=abc").shown
        'https://data.org/a/tomo.zarr'
        """
        return f"{self.scheme}://{self.place}/{self.path}"

    @property
    def url(self) -> str:
        """The address to request, without user, password and query."""
        # Characters that are already written as %20 and the like stay as they are.
        path = quote(self.path, safe="/%:=+,;@!$&'()*~")
        return f"{self.scheme}://{self.place}/{path}"


def is_remote(uri: str) -> bool:
    """Say whether ``uri`` is an address rather than a local path.

    >>> is_remote("s3://bucket/a.zarr"), is_remote("file:///a.mrc"), is_remote("a.mrc")
    (True, False, False)
    """
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme != "file"


def as_uri(uri: str | Path) -> str:
    """Return a path or address as text; an address that went through a ``Path``, which swallows a slash, gets it back.

    >>> as_uri(Path("https://host/a.zarr")), as_uri("a.mrc")
    ('https://host/a.zarr', 'a.mrc')
    """
    return _SWALLOWED.sub(r"\1//", str(uri))


def redact(text: str) -> str:
    """Remove users, passwords and queries of addresses from a text.

    >>> redact("GET https://me:secret@host/a?X-Amz-Signature=1 failed")
    'GET https://host/a failed'
    """
    return _SECRETS.sub(lambda found: found["scheme"] or "", text)
