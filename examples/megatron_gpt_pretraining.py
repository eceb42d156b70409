r"""Pre-train GPT-2 by next-token prediction: same as `megabert train causal_language_model`.

python examples/megatron_gpt_pretraining.py "model.data.data_prefix=[CORPUS]" trainer.max_steps=100000 \
    model.tokenizer.vocab_file=vocab.json model.tokenizer.merge_file=merges.txt \
    "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "causal_language_model", *sys.argv[1:]]))
