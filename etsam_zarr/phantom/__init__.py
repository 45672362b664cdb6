"""Simulated tomograms of any size with the exact truth of where their membranes are."""
