r"""Fine-tune on natural-language inference for zero-shot classification: same as `megabert train zero_shot`.

python examples/zero_shot_intent_train.py model.train_ds.file=MNLI/train.tsv \
    model.validation_ds.file=MNLI/dev_matched.tsv \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "zero_shot", *sys.argv[1:]]))
