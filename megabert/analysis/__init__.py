"""Runs and their predictions: tables of runs, comparisons, analysis of errors, calibration; no torch."""
