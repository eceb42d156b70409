r"""Fine-tune two encoders, of queries and of passages (DPR): same as `megabert train text_embedding`.

python examples/bert_dpr.py model.train_ds.passages=collection.tsv model.train_ds.queries=queries.train.tsv \
    model.train_ds.query_to_passages=negatives.tsv model.language_model.pretrained_model_name=megatron-bert-345m-uncased
"""

import sys

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "text_embedding", "model.embedding.num_encoders=2", *sys.argv[1:]]))
