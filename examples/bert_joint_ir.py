r"""Fine-tune a re-ranker, as NeMo's joint BERT: same as `megabert train text_ranking`.

python examples/bert_joint_ir.py model.train_ds.passages=collection.tsv model.train_ds.queries=queries.train.tsv \
    model.train_ds.query_to_passages=negatives.tsv model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "text_ranking", *sys.argv[1:]]))
