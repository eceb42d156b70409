"""Corpora for pre-training: building, .bin and .idx files, blends, masking, sample indexes."""
