"""Benchmarks of speed, each against an alternative in the same run."""
