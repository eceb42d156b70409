r"""Fine-tune a relation classifier: same as `megabert train relation_extraction`.

python examples/relation_extraction.py model.train_ds.file=train.tsv model.validation_ds.file=dev.tsv \
    model.language_model.pretrained_model_name=biomegatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "relation_extraction", *sys.argv[1:]]))
