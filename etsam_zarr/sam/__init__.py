"""SAM 2's walk through a volume: what is asked of sam2, what it is given, and what is kept of it."""
