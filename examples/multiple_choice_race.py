"""Fine-tune on RACE, as Megatron-LM's tasks/main.py --task RACE does: same as `megabert train multiple_choice`.

python examples/multiple_choice_race.py model.train_ds.file=RACE/train model.validation_ds.file=RACE/dev \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "multiple_choice", *sys.argv[1:]]))
