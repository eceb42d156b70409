r"""Fine-tune on a GLUE task: same as `megabert train glue`.

python examples/glue_benchmark.py model.task_name=mrpc model.dataset.data_dir=MRPC \
    model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "glue", *sys.argv[1:]]))
