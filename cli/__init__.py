"""The command line ``etsam-zarr``: options in, progress on stderr, results on stdout, an exit code."""
