"""Fine-tune on BioASQ's questions: same as `megabert train bioasq`.

python examples/question_answering_bioasq.py model.train_ds.file='"golden/[78]B*.json"' \
    model.validation_ds.file='golden/9B*.json' model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "bioasq", *sys.argv[1:]]))
