"""Exported runs: models in formats of other programs, with proof that they answer as the run does; their loading."""
