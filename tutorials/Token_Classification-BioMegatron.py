# %% [markdown]
# # Token classification with BioMegatron
#
# *Named-entity recognition*: find the words of a text that name a disease, a drug, a gene. NVIDIA's notebook of this
# name fine-tuned BioMegatron on the NCBI-disease corpus with NeMo; this one does the same with megabert.
#
# As it stands it runs in half a minute on a CPU. It uses the small encoder that comes with megabert and sentences that
# `planted.py` composes, with drugs and diseases of invented names planted in them. With **one variable changed** it
# runs with BioMegatron 345M on the NCBI-disease corpus.

# %%
import json
from pathlib import Path

import planted
from matplotlib import pyplot as plt
from notebook import highlight, new_folder, run, show, table

import megabert

# Change this: None, or a folder with train.tsv and dev.tsv in CoNLL's columns, such as the NCBI-disease corpus.
DATASET = None

ENCODER = "biomegatron-bert-345m-uncased" if DATASET else "biomegabert-mini-uncased"
LAYERS = "null" if DATASET else 3  # the first of six, so that it takes half the time; null: all
BATCH_SIZE, LEARNING_RATE, EPOCHS = (32, 5e-5, 5) if DATASET else (8, 7e-4, 2)

# %% [markdown]
# ## Data
#
# One word a line with its tag, an empty line between sentences: the format of CoNLL, in which most corpora are
# distributed. The tags are *IOB2*: `B-Disease` begins a disease, `I-Disease` continues it, `O` is outside of all
# entities. So a tag for every word is enough to write down spans of several words.

# %%
folder = new_folder()
if DATASET is None:
    planted.write_columns(Path("train.tsv"), planted.entity_sentences("train", 360))
    planted.write_columns(Path("dev.tsv"), planted.entity_sentences("dev", 150))
data = Path(DATASET or folder)


def read(path):
    """Read sentences as lists of [word, tag]."""
    sentences = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [[(line.split()[0], line.split()[-1]) for line in sentence.splitlines()] for sentence in sentences]


TRAIN, DEV = read(data / "train.tsv"), read(data / "dev.tsv")
table(("word", "tag"), DEV[0])

# %% [markdown]
# A corpus is only a test if its development part holds something new. The planted names are invented from syllables,
# and half of those in `dev.tsv` never occur in `train.tsv`; a third of the sentence patterns is new, too. There are
# traps: *renal fibrosis* is a disease, *renal perfusion* is not; *Adler syndrome* is one, *Adler and colleagues* are
# not. A list of names learned by heart fails here.


# %%
def mentions(sentence):
    """List the entities of a sentence as (words in lower case, type)."""
    found, previous = [], "O"
    for word, tag in sentence:
        if tag.startswith("B-") or (tag != "O" and previous == "O"):
            found.append(([], tag[2:]))
        if tag != "O":
            found[-1][0].append(word.lower())
        previous = tag
    return [(" ".join(words), kind) for words, kind in found]


known = {mention for sentence in TRAIN for mention in mentions(sentence)}
gold = [mention for sentence in DEV for mention in mentions(sentence)]
rows = []
for kind in sorted({kind for _, kind in known}):
    of_kind = [mention for mention in gold if mention[1] == kind]
    num_new = sum(mention not in known for mention in of_kind)
    num_train = sum(kind == other for sentence in TRAIN for _, other in mentions(sentence))
    rows.append((kind, num_train, len(of_kind), 100 * num_new / len(of_kind)))
table(("type", "in train", "in dev", "of these new, %"), rows)

# %% [markdown]
# ## Fine-tune
#
# A linear layer on the encoder's last hidden states scores each tag for each word, and encoder and layer are trained
# together. Words that WordPiece splits into several tokens are tagged at their first token.
#
# The settings have NeMo's names. `BATCH_SIZE` sentences make a step; the learning rate rises over the first tenth of
# the steps and then falls to zero, which keeps the pre-trained weights from being destroyed by the first, large
# gradients. A small encoder takes a larger learning rate than one of 345 million parameters.

# %%
run(f"""
    train token_classification
    model.train_ds.file="{data}/train.tsv" model.validation_ds.file="{data}/dev.tsv"
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.train_ds.batch_size={BATCH_SIZE} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS}
    trainer.gradient_clip_val=1.0 exp_manager.explicit_log_dir=run
""")

# %% [markdown]
# The run folder has everything: settings, checkpoints, `metrics.jsonl` with a line for each logged step, and the same
# as a picture, `curves.png`. Drawn from the file:

# %%
lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
training = [line for line in lines if line["split"] == "train"]
validation = [line for line in lines if line["split"] == "validation"]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([line["step"] for line in training], [line["loss"] for line in training], label="training")
left.plot([line["step"] for line in validation], [line["val_loss"] for line in validation], "o-", label="validation")
left.set(xlabel="step", ylabel="loss, nats")
left.legend()
for score in ("precision", "recall", "f1"):
    right.plot([line["epoch"] for line in validation], [line[score] for line in validation], "o-", label=score)
right.set(xlabel="epoch", ylabel="per cent", title="entities of dev.tsv")
right.legend()
plt.show()

# %% [markdown]
# ## Evaluate
#
# The score of named-entity recognition is the F1 of **entities**: one counts only if all its words and its type are
# right. (NeMo's notebook prints F1 of single *tags*, `O` included, which is much higher for the same predictions: 93.7
# for BioMegatron on NCBI-disease. `report_tag.txt` has that one.)

# %%
run(f'evaluate run file="{data}/dev.tsv" output_dir=evaluation')
scores = json.loads(Path("evaluation/scores.json").read_text(encoding="utf-8"))
types = sorted({name.partition("/")[0] for name in scores if "/" in name})
rows = [(kind, *(scores[f"{kind}/{name}"] for name in ("precision", "recall", "f1"))) for kind in types]
table(("type", "precision", "recall", "F1"), [*rows, ("all", scores["precision"], scores["recall"], scores["f1"])])

# %% [markdown]
# Did the model learn what a disease looks like, or which names there are? Compare its recall of names that it has seen
# with that of new ones. This is the first thing to look at with a corpus of your own.

# %%
tagger = megabert.load("run", accelerator="cpu")
examples = tagger.task.read(data / "dev.tsv")
predictions = tagger.predict_examples(examples)

words = [[word for word, _ in sentence] for sentence in DEV]
found = [set(mentions(zip(line, item.tags, strict=True))) for line, item in zip(words, predictions, strict=True)]
recalls = {}
for name, is_known in (("seen in train", True), ("new", False)):
    hits = [
        mention in predicted
        for sentence, predicted in zip(DEV, found, strict=True)
        for mention in mentions(sentence)
        if (mention in known) == is_known
    ]
    recalls[name] = 100 * sum(hits) / max(len(hits), 1)

figure, axes = plt.subplots(figsize=(5, 1.6), layout="constrained")
bars = axes.barh(list(recalls), list(recalls.values()), color=["#0072B2", "#D55E00"])
axes.bar_label(bars, fmt="%.0f", padding=3)
axes.set(xlabel="recall of entities, per cent", xlim=(0, 110))
plt.show()

# %% [markdown]
# ## Predict
#
# A prediction has the entities with type, probability and **characters of the original text**, so that they can be
# highlighted, stored or linked; and the tags of all words. Raw text needs no preparation.

# %%
texts = [
    "Dr. Falk saw no effect of belcorstatin on acute renal failure (n = 12).",
    "Retinal perfusion was normal in a family with Hallen syndrome.",
    "After two weeks of melolol, the patient's keratitis improved.",
]
answers = [tagger.predict(text=text) for text in texts]
show(highlight(answer.text, [(span.start, span.end, span.type) for span in answer.spans]) for answer in answers)
table(
    ("text", "type", "start", "end", "probability"),
    [(span.text, span.type, span.start, span.end, f"{span.score:.2f}") for answer in answers for span in answer.spans],
)

# %% [markdown]
# ## What was wrong
#
# Sentences of `dev.tsv` with an error: the right entities above, the predicted ones below.


# %%
def written(tagged):
    """Write words with their tags, O left out."""
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in tagged)


pairs = [
    (written(sentence), written(zip(line, item.tags, strict=True)))
    for sentence, line, item in zip(DEV, words, predictions, strict=True)
]
wrong = [pair for pair in pairs if pair[0] != pair[1]]
print(f"{len(wrong)} of {len(pairs)} sentences have an error.")
for right, predicted in wrong[:4]:
    print(f"\nright      {right}\npredicted  {predicted}")

# %% [markdown]
# ## Check
#
# The notebook is executed by the project's tests, and this cell decides whether it passed.

# %%
assert recalls.keys() == {"seen in train", "new"}
if DATASET is None:
    assert scores["f1"] > 75, scores["f1"]
    assert recalls["new"] > 65, recalls

# %% [markdown]
# ## With BioMegatron and a real corpus
#
# 1. `megabert fetch biomegatron-bert-345m-uncased` downloads the checkpoint, or takes a file that you have with
#    `--from`.
# 2. Set `DATASET` above to a folder with `train.tsv` and `dev.tsv`: NCBI-disease and BC5CDR have this format.
# 3. Run all cells, on a GPU.
#
# Everything here is a command, too; the notebook's is
# `megabert train token_classification model.train_ds.file=train.tsv ...`. Several seeds with mean and deviation:
# `-m seed=1,2,3`. Scores of real corpora with their recipes are on the page *Scores of the tasks*.
