"""Evaluate a punctuation run: same as `megabert train punctuation_capitalization do_training=false`.

python examples/punctuation_capitalization_evaluate.py pretrained_model=RUN model.test_ds.file=test.txt
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "punctuation_capitalization", "do_training=false", *sys.argv[1:]]))
