"""Names, arrays and plain dicts in files: read foreign checkpoints, keep our own run folder, fetch published ones."""
