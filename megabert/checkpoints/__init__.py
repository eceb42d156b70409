"""Checkpoints of Megatron-LM, NeMo, Hugging Face and our own, read and written."""
