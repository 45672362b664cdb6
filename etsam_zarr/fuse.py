"""Stage 2's input: the normalised tomogram plus what stage 1 found, as ETSAM combines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

CLIP = np.float32(5)


@dataclass(frozen=True)
class LogitBounds:
    """Least and greatest stage 1 logit at full resolution, after clipping to -5..5; neutral when empty."""

    minimum: float = float("inf")
    maximum: float = float("-inf")

    def including(self, logits: Image) -> LogitBounds:
        """Return the bounds of what this one covers and ``logits`` (not yet clipped)."""
        low, high = np.clip(np.array([logits.min(), logits.max()], dtype=np.float32), -CLIP, CLIP)
        return LogitBounds(min(self.minimum, float(low)), max(self.maximum, float(high)))

    def union(self, other: LogitBounds) -> LogitBounds:
        """Return the bounds of both."""
        return LogitBounds(min(self.minimum, other.minimum), max(self.maximum, other.maximum))

    @property
    def flat(self) -> bool:
        """Whether stage 1 said the same everywhere, so that there is nothing to scale."""
        return self.minimum >= self.maximum


def fuse(normalized: Image, logits: Image, bounds: LogitBounds) -> Image:
    """Add stage 1's logits, clipped to -5..5 and scaled to 0..1 over the whole volume, to the tomogram.

    Parameters
    ----------
    normalized
        Slice of the normalised tomogram, float32, shape (y, x).
    logits
        Stage 1's logits of the slice, float32, same shape.
    bounds
        Over the whole volume. Where they are flat ETSAM divides zero by zero; here zeros are added.
    """
    if bounds.flat:
        return normalized.copy()
    minimum, maximum = np.float32(bounds.minimum), np.float32(bounds.maximum)
    return normalized + (np.clip(logits, -CLIP, CLIP) - minimum) / (maximum - minimum)
