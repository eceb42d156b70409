"""Warnings from the lines of metrics.jsonl; reading them is tested with the log that writes them."""

from megabert.analysis.metrics_file import warn_of_zeros


def test_a_score_that_is_always_zero_is_reported():
    lines = [{"split": "train", "loss": 1.0}, {"split": "validation", "f1": 0.0}, {"split": "validation", "f1": 0.0}]
    assert "f1 was 0 at every validation (2)" in warn_of_zeros(lines, "f1", "max")
    assert warn_of_zeros([*lines, {"split": "validation", "f1": 0.1}], "f1", "max") is None
    assert warn_of_zeros(lines, "f1", "min") is None
    assert warn_of_zeros(lines[:1], "f1", "max") is None
