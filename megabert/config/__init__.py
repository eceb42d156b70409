"""Settings: typed schema, Hydra command-line words, NeMo's key names."""
