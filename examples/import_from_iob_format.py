"""Turn columns of words and tags into NeMo's two files: the same as `megabert import iob`.

python examples/import_from_iob_format.py --data_file train.conll
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["import", "iob", *sys.argv[1:]]))
