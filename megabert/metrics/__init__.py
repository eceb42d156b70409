"""Scores of predictions against gold answers: plain values in, numbers out."""
