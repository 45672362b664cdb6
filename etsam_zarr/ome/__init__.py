"""OME-Zarr images and labels: their metadata, read and written, and their pyramids."""
