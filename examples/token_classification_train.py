"""Fine-tune a named-entity tagger: same as `megabert train token_classification`.

python examples/token_classification_train.py model.train_ds.file=train.conll model.validation_ds.file=dev.conll \
    model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "token_classification", *sys.argv[1:]]))
