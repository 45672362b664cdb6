"""Out-of-core ETSAM: membranes of cryo-electron tomograms of any size, chunk by chunk."""
