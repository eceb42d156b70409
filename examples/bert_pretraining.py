r"""Pre-train BERT by masked-language modeling: same as `megabert train masked_language_model`.

python examples/bert_pretraining.py "model.data.data_prefix=[CORPUS]" trainer.max_steps=100000 \
    model.language_model.pretrained_model_name=null model.tokenizer.vocab_file=vocab.txt \
    "model.language_model.config={hidden_size: 1024, num_layers: 24, num_attention_heads: 16}"
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "masked_language_model", *sys.argv[1:]]))
