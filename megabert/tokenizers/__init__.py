"""Strings to token ids: WordPiece, byte-level BPE; splitting into words and sentences."""
