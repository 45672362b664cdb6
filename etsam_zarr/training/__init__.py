"""Training of both stages from tomograms with masks, streamed from disk."""
