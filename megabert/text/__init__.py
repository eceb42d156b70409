"""From text to batches of token ids, and back to characters."""
