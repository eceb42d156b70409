"""Metrics of predictions against gold values, as the official scorers compute them: plain values in, numbers out.

Docstrings document the differences: where an official scorer raises an exception, or reports a number that no setting
of the model can reach.
"""
