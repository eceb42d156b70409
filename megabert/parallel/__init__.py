"""Processes and devices: process groups, sharding and gradient reduction, applied to a model from outside."""
