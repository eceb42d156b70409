"""Text to token ids: WordPiece, byte-level BPE, word and sentence splitting."""
