r"""Fine-tune a tracker of dialogue states, SGD-QA: same as `megabert train dialogue_state_tracking`.

python examples/sgd_qa.py do_training=true model.dataset.data_dir=dstc8-schema-guided-dialogue \
    model.dataset.dialogues_example_dir=EXAMPLES model.validation_ds.ds_item=dev trainer.max_epochs=3 \
    model.language_model.pretrained_model_name=megatron-bert-345m-cased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "dialogue_state_tracking", *sys.argv[1:]]))
