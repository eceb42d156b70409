"""Megatron-LM and megatron.core checkpoints."""
