"""Metrics of predictions against gold values, as the official scorers compute them: plain values in, numbers out.

Where an official scorer stops with an exception, or reports a number that no setting of the model can reach, the
docstring says so and what is done here.
"""
