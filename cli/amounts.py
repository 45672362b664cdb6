"""Rates and durations as people read them, whatever their size."""

from __future__ import annotations


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
