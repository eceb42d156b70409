"""Reports on checkpoints, their networks' logits, and a check of the query-key-value layout."""
