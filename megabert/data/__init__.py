"""Features, packing without padding, batch sampler, prefetch, feature cache."""
