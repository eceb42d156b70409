"""Evaluate a named-entity run: same as `megabert train token_classification do_training=false`.

python examples/token_classification_evaluate.py pretrained_model=RUN model.test_ds.file=test.conll
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "token_classification", "do_training=false", *sys.argv[1:]]))
