"""What goes wrong with a single request, in words that hold no secrets.

The texts of the libraries below quote the whole address with its signature, and the server's answer may repeat it, so
neither is ever shown.
"""

from __future__ import annotations

import re

_STATUS = re.compile(r"status: (\d{3})\b")
_MEANING = {
    301: "moved",
    400: "bad request",
    401: "credentials needed",
    403: "forbidden",
    404: "not found",
    408: "request time-out",
    416: "range not there",
    429: "too many requests",
    500: "internal error",
    502: "bad gateway",
    503: "not available now",
    504: "gateway time-out",
}


class Trouble(Exception):
    """A request that failed.

    Parameters
    ----------
    words
        What happened, as the end of a sentence.
    temporary
        Whether it may help to ask again.
    status
        HTTP status, if there was an answer.
    unreachable
        The name is not known, or nobody listens.
    """

    def __init__(self, words: str, *, temporary: bool, status: int | None = None, unreachable: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.temporary = temporary
        self.status = status
        self.unreachable = unreachable

    @classmethod
    def of_status(cls, status: int) -> Trouble:
        """Return the trouble that an HTTP status stands for."""
        words = f"the server answers {status} ({_MEANING.get(status, 'an error')})"
        return cls(words, temporary=status in (408, 429) or status >= 500, status=status)

    @classmethod
    def of_text(cls, name: str, text: str) -> Trouble:
        """Read the text of an error of obstore or requests; they have no classes, or not enough, to tell these apart.

        >>> Trouble.of_text("GenericError", "... Status { status: 503, ...").status
        503
        """
        found = _STATUS.search(text)
        status = int(found[1]) if found else {"PermissionDeniedError": 403, "UnauthenticatedError": 401}.get(name)
        if "PermanentRedirect" in text or status == 301:
            return cls("the bucket lies in another region: set AWS_REGION to it", temporary=False, status=301)
        if status is not None:
            return cls.of_status(status)
        for signs, words, unreachable in _SIGNS:
            if any(sign in text for sign in signs):
                return cls(words, temporary=True, unreachable=unreachable)
        return cls(f"the request fails ({name})", temporary=True)


# Signs in texts, most telling first; what to say; whether the host may not exist at all.
_SIGNS: tuple[tuple[tuple[str, ...], str, bool], ...] = (
    (("dns error", "NameResolutionError", "Name or service not known"), "the host's name is not known", True),
    (("ConnectionRefused", "Connection refused"), "no connection to the host can be made", True),
    (("IncompleteBody", "UnexpectedEof", "IncompleteRead"), "the answer ends before its announced length", False),
    (("kind: Timeout", "TimedOut", "timed out"), "it takes too long to answer", False),
    (("CERTIFICATE_VERIFY_FAILED", "certificate"), "the host's certificate cannot be verified", False),
    (("Reset", "reset by peer", "kind: Interrupted", "RemoteDisconnected", "Incomplete", "aborted"),
     "the connection breaks off", False),
    (("kind: Connect",), "no connection to the host can be made", False),
)  # fmt: skip
