"""Fine-tune a text classifier: same as `megabert train text_classification`.

python examples/text_classification_with_bert.py model.train_ds.file_path=train.tsv model.validation_ds=dev.tsv \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "text_classification", *sys.argv[1:]]))
