"""Runs in formats of other programs, with proof that they answer as the run does; loading of any model's folder."""
