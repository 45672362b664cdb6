"""MRC files: what their headers say, reading and writing them slab by slab."""
