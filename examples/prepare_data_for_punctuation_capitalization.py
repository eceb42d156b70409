"""Make punctuation and capitalization labels of plain text: same as `megabert import punctuation`.

python examples/prepare_data_for_punctuation_capitalization.py -s train.txt -o FOLDER
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["import", "punctuation", *sys.argv[1:]]))
