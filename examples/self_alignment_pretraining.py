r"""Train an encoder of names, SapBERT: same as `megabert train entity_linking`.

python examples/self_alignment_pretraining.py model.train_ds.data_file=synonyms.tsv \
    model.language_model.pretrained_model_name=biomegatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "entity_linking", *sys.argv[1:]]))
