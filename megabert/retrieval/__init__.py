"""Retrieval of passages: embedding stores, exact search, BM25, fusion of rankings."""
