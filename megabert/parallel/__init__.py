"""Processes and devices, applied to a model from outside."""
