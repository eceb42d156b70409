"""Read, write and convert checkpoints of Megatron-LM, NeMo, Hugging Face and megabert."""
