"""Fine-tune on SQuAD, NeMo 1.8's name of the script: same as `megabert train question_answering`.

python examples/question_answering.py model.train_ds.file=TRAIN.json model.validation_ds.file=DEV.json \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "question_answering", *sys.argv[1:]]))
