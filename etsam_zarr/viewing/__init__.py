"""What a run found, to look at: contact sheets, napari, neuroglancer."""
