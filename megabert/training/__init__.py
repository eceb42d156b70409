"""Training: setup, loop, optimizer step, checkpoints, log."""
