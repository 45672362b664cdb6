"""Sizes, rates and durations as people read them, however large."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return a number of bytes in a unit that people read.

    >>> bytes_text(1536), bytes_text(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def rate_text(per_second: float) -> str:
    """Return a number per second: three digits that count, and no exponent.

    >>> rate_text(0.5), rate_text(32.17), rate_text(3012.4)
    ('0.5', '32.2', '3012')
    """
    return f"{per_second:.3g}" if per_second < 999.5 else f"{per_second:.0f}"


def duration_text(seconds: float) -> str:
    """Return a duration, the longer the coarser.

    >>> duration_text(9.42), duration_text(130.0), duration_text(11_537.0)
    ('9.4 s', '2 min 10 s', '3 h 12 min')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
