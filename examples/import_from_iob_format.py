"""Convert CoNLL columns to NeMo's text and labels files: same as `megabert import iob`.

python examples/import_from_iob_format.py --data_file train.conll
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["import", "iob", *sys.argv[1:]]))
