"""The workers of a dask.distributed cluster, and the jobs that they do."""
