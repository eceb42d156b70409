"""Readers and writers of data files, one module per format: files to plain values and back."""
