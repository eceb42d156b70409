r"""Fine-tune an intent and slot classifier: same as `megabert train intent_slot`.

python examples/intent_slot_classification.py model.data_dir=atis model.validation_ds.prefix=dev \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "intent_slot", *sys.argv[1:]]))
