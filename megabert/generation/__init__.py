"""Text generation with a causal language model: sampling, key-value cache, streaming."""
