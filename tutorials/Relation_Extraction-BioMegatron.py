# %% [markdown]
# # Relation extraction with BioMegatron
#
# *Relation extraction*: a sentence names a drug and a gene; does the drug inhibit the gene's product, activate it, or
# is there no relation between the two? NVIDIA's notebook of this name fine-tuned BioMegatron on ChemProt with NeMo;
# this one does the same with megabert.
#
# As it stands it runs in less than a minute on a CPU, with the small encoder that comes with megabert and sentences
# that `planted.py` composes. With **one variable changed** it runs with BioMegatron 345M on ChemProt.

# %%
import json
from collections import Counter
from pathlib import Path

import planted
from matplotlib import pyplot as plt
from notebook import highlight, new_folder, run, show, table

import megabert

# Change this: None, or a folder with ChemProt's train.tsv and dev.tsv (id, sentence, label; the pair marked).
DATASET = None

ENCODER = "biomegatron-bert-345m-uncased" if DATASET else "biomegabert-mini-uncased"
LAYERS = "null" if DATASET else 3  # the first of six, so that it takes half the time; null: all
BATCH_SIZE, LEARNING_RATE, EPOCHS, DROPOUT = (32, 2e-5, 5, 0.1) if DATASET else (8, 8e-4, 3, 0.0)

# %% [markdown]
# ## Data
#
# An example is a sentence with **two** marked entities and a label. A sentence with two drugs and two genes makes four
# examples, one for each pair, and most of them have the label `false`: the sentence says nothing about this pair. The
# labels are ChemProt's: `CPR:3` upregulator, `CPR:4` inhibitor, `CPR:5` agonist, `CPR:6` antagonist, `CPR:9` substrate.

# %%
folder = new_folder()
if DATASET is None:
    TRAIN, DEV = planted.relation_pairs("train", 320), planted.relation_pairs("dev", 120)
    planted.write_pairs(Path("train.jsonl"), TRAIN)
    planted.write_pairs(Path("dev.jsonl"), DEV)
    train_file, dev_file = folder / "train.jsonl", folder / "dev.jsonl"
    show(highlight(pair.text, [(*pair.drug, "CHEMICAL"), (*pair.gene, "GENE")]) + pair.label for pair in DEV[:6])
else:
    train_file, dev_file = Path(DATASET) / "train.tsv", Path(DATASET) / "dev.tsv"

# %% [markdown]
# The classifier must see *which* pair is meant. `model.dataset.entity_marking` decides how: by default the two names
# are replaced, *anonymized*: `@CHEMICAL$ inhibits @GENE$ , whereas pamab blocks RKL1 .` Two things are gained: the
# pair is marked, and no name can be learned by heart, so that all names are alike to the model. (`markers` keeps the
# names and writes signs around them.)
#
# `dev.jsonl` has sentence patterns that `train.jsonl` does not have, negations among them.

# %%
run(f"""
    train relation_extraction
    model.train_ds.file="{train_file}" model.validation_ds.file="{dev_file}"
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.language_model.hidden_dropout={DROPOUT} model.language_model.attention_dropout={DROPOUT}
    model.train_ds.batch_size={BATCH_SIZE} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS}
    trainer.gradient_clip_val=1.0 exp_manager.explicit_log_dir=run
""")

# %% [markdown]
# The head is BERT's: a dense layer with tanh on the first token's hidden state, then a linear layer to the classes. At
# first the model predicts `false` everywhere, which is right more often than not; the F1 of relations is 0 for this,
# while accuracy looks fine. That is why accuracy is not the score of this task.

# %%
lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
training = [line for line in lines if line["split"] == "train"]
validation = [line for line in lines if line["split"] == "validation"]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([line["step"] for line in training], [line["loss"] for line in training], label="training")
left.plot([line["step"] for line in validation], [line["val_loss"] for line in validation], "o-", label="validation")
left.set(xlabel="step", ylabel="loss, nats")
left.legend()
for score, title in (("f1", "F1 of relations"), ("accuracy", "accuracy")):
    right.plot([line["epoch"] for line in validation], [line[score] for line in validation], "o-", label=title)
right.set(xlabel="epoch", ylabel="per cent", ylim=(0, 100))
right.legend()
plt.show()

# %% [markdown]
# ## Evaluate
#
# `f1`, `precision` and `recall` are over all relations together and leave `false` out: the measure of BioCreative VI,
# in which ChemProt was published. `macro_f1` is the mean over the six classes, which NeMo's notebook prints.

# %%
run(f'evaluate run file="{dev_file}" output_dir=evaluation')
scores = json.loads(Path("evaluation/scores.json").read_text(encoding="utf-8"))
classes = sorted({name.partition("/")[0] for name in scores if "/" in name})
rows = [(name, *(scores[f"{name}/{score}"] for score in ("precision", "recall", "f1"))) for name in classes]
together = ("all but false", scores["precision"], scores["recall"], scores["f1"])
table(("relation", "precision", "recall", "F1"), [*rows, together])

# %% [markdown]
# Which relations are confused with which? Rows are the right labels, columns the predicted ones.

# %%
model = megabert.load("run", accelerator="cpu")
examples = model.task.read(dev_file)
predictions = model.predict_examples(examples)
pairs = Counter((example.labels[0], item.labels[0]) for example, item in zip(examples, predictions, strict=True))

figure, axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
totals = {right: max(sum(pairs[right, name] for name in classes), 1) for right in classes}
axes.imshow(
    [[pairs[right, name] / totals[right] for name in classes] for right in classes], cmap="Blues", vmin=0, vmax=1
)
for row, right in enumerate(classes):
    for column, name in enumerate(classes):
        colour = "white" if pairs[right, name] > totals[right] / 2 else "black"
        axes.text(column, row, pairs[right, name], ha="center", va="center", color=colour)
axes.set_xticks(range(len(classes)), classes, rotation=45)
axes.set_yticks(range(len(classes)), classes)
axes.set(xlabel="predicted", ylabel="right")
plt.show()

# %% [markdown]
# ## Predict
#
# A text and the words of its two entities are enough; `head` and `tail` may also be positions. The prediction has the
# probability of every class.

# %%
questions = [
    ("Aspirin inhibits COX2 in mice.", "Aspirin", "COX2"),
    ("Aspirin did not inhibit COX2.", "Aspirin", "COX2"),
    ("Unlike ibuprofen, aspirin activates COX2.", "aspirin", "COX2"),
    ("Unlike ibuprofen, aspirin activates COX2.", "ibuprofen", "COX2"),
]
rows = []
for text, head, tail in questions:
    answer = model.predict(text=text, head=head, head_type="CHEMICAL", tail=tail, tail_type="GENE")
    rows.append((text, head, tail, answer.labels[0], f"{answer.probabilities[answer.labels[0]]:.2f}"))
table(("text", "head", "tail", "relation", "probability"), rows)

# %% [markdown]
# ## Check
#
# The notebook is executed by the project's tests, and this cell decides whether it passed.

# %%
assert sum(pairs.values()) == len(examples)
if DATASET is None:
    assert scores["f1"] > 60, scores["f1"]

# %% [markdown]
# ## With BioMegatron and ChemProt
#
# 1. `megabert fetch biomegatron-bert-345m-uncased` downloads the checkpoint, or takes a file that you have with
#    `--from`.
# 2. `megabert import chemprot --abstracts A.tsv --entities E.tsv --relations R.tsv --output train.jsonl` converts
#    BioCreative's own files. Files of one anonymized sentence a line (`id<TAB>sentence<TAB>label`) need no conversion.
# 3. Set `DATASET` above to the folder and run all cells, on a GPU.
#
# NVIDIA reports a macro F1 of 79.6 for BioMegatron uncased on ChemProt's development set, which is a micro F1 of 76.7
# without `false`.
