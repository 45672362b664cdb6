"""Connected components of masks of any size: found and numbered block by block, filtered, and written."""
