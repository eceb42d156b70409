"""Dictionaries of concepts: a reader for each format, from files to identifiers with names."""
