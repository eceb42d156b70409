r"""Fine-tune a punctuation and capitalization model: same as `megabert train punctuation_capitalization`.

python examples/punctuation_capitalization_train.py model.train_ds.file=train.txt model.validation_ds.file=dev.txt \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "punctuation_capitalization", *sys.argv[1:]]))
