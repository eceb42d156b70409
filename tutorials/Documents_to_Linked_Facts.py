# %% [markdown]
# # From documents to linked facts
#
# Abstracts in, a table of facts out: *which drug inhibits or activates which gene*, with identifiers of a dictionary of
# your own, so that the facts of many documents can be counted and joined with other data. Three steps make it:
#
# 1. **entities**: a tagger finds the drugs and genes of a text;
# 2. **identifiers**: a linker says which concept is meant, whatever name, code or abbreviation the author used;
# 3. **relations**: a classifier says what the text states about each drug and gene.
#
# As it stands the notebook runs in less than a minute on a CPU, with the small encoder that comes with megabert and
# abstracts that `planted.py` composes, of invented names. With **one variable changed** it reads your own corpus.

# %%
import json
from collections import Counter
from pathlib import Path

import planted
from matplotlib import pyplot as plt
from notebook import highlight, new_folder, run, show, table

import megabert
from megabert.formats.documents.convert_documents import read_documents

# Change this: None, or a folder with train.pubtator, dev.pubtator (with identifiers, relations), drugs.tsv, genes.tsv.
DATASET = None

ENCODER = "biomegatron-bert-345m-uncased" if DATASET else "biomegabert-mini-uncased"
LAYERS = "null" if DATASET else 3  # the first of six, so that it takes half the time; null: all
BATCH_SIZE, LEARNING_RATE, EPOCHS, DROPOUT = (16, 5e-5, (5, 5), 0.1) if DATASET else (8, 8e-4, (3, 4), 0.0)

# %% [markdown]
# ## Documents
#
# *PubTator* is a format of annotated abstracts: title and abstract, then a line for each entity (its characters, type
# and identifier) and for each relation between two identifiers. PubMed XML, BioC, brat and plain text are read as well.

# %%
folder = new_folder()
if DATASET is None:
    planted.write_linked_documents(Path("train.pubtator"), "train", 90)
    planted.write_linked_documents(Path("dev.pubtator"), "dev", 40)
    planted.write_dictionary(Path("drugs.tsv"), planted.dictionary("drug"))
    planted.write_dictionary(Path("genes.tsv"), planted.dictionary("gene"))
data = Path(DATASET or folder)
GOLD = list(read_documents([data / "dev.pubtator"]))


def page(document):
    """Write a document with its entities in colours, each with its identifier."""
    spans = [(item.start, item.end, f"{item.type} {item.identifier}".strip()) for item in document.entities]
    return highlight(document.text(), spans)


show(page(document) for document in GOLD[:2])
table(
    ("relation", "drug", "gene"),
    [(r.type, *(a.identifier for a in r.arguments)) for d in GOLD[:2] for r in d.relations],
)

# %% [markdown]
# ## Entities
#
# The tagger learns from the entities of `train.pubtator`. Half of the drugs and genes of `dev.pubtator` never occur in
# it.

# %%
run(f"""
    train token_classification
    model.train_ds.file="{data}/train.pubtator" model.validation_ds.file="{data}/dev.pubtator"
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.train_ds.batch_size={BATCH_SIZE} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS[0]}
    trainer.gradient_clip_val=1.0 trainer.val_check_interval=0 exp_manager.explicit_log_dir=tagger
""")

# %% [markdown]
# ## Relations
#
# The classifier learns from pairs of a drug and a gene of one sentence. What is learned is the wording, not the names:
# both are replaced by their types. (`scope=document` makes pairs of identifiers of a whole document instead.)

# %%
run(f"""
    train relation_extraction
    model.train_ds.file="{data}/train.pubtator" model.validation_ds.file="{data}/dev.pubtator"
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.language_model.hidden_dropout={DROPOUT} model.language_model.attention_dropout={DROPOUT}
    model.train_ds.batch_size={BATCH_SIZE} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS[1]}
    trainer.gradient_clip_val=1.0 trainer.val_check_interval=0 exp_manager.explicit_log_dir=relations
""")

# %% [markdown]
# ## Dictionaries
#
# A dictionary is built of a file of identifiers and names: OBO, UMLS, MeSH, CTD, or a table of your own as here. The
# linker compares names by their character n-grams; it needs no training and no GPU. An abbreviation is what the
# document defines.

# %%
for name in ("drugs", "genes"):
    run(f'dictionary build "{data}/{name}.tsv" -o {name}.dict')
linker = megabert.load_linker("drugs.dict")
first = GOLD[0].entities[0].text if DATASET is None else "aspirin"
links = linker.link([first, f"{first.upper()} HCl", f"{first[:-1]}", "water"])
table(("name", "identifier", "name in the dictionary", "probability"),
      [(link.text, link.identifier, link.name, f"{link.score:.2f}") for link in links])  # fmt: skip

# %% [markdown]
# The last one is *NIL*: the dictionary has nothing like it, and a link that is probably wrong is not made.
#
# ## Annotate
#
# One command does all three steps, here for the text of `dev.pubtator` without its annotations. It reads thousands of
# documents as well, on a GPU or several processes, and resumes when it was interrupted.

# %%
run(f"""
    annotate "{data}/dev.pubtator" --existing replace -o found.pubtator
    --entities tagger --link CHEMICAL=drugs.dict --link GENE=genes.dict --relations relations --pairs CHEMICAL:GENE
""")
FOUND = list(read_documents(["found.pubtator"]))
show(page(document) for document in FOUND[:2])

# %% [markdown]
# ## How good is it?
#
# The score of linked entities counts one that has the right place *and* the right concept: errors of tagger and linker
# add up. (`megabert score linking` has it by HunFlair2's rule, and for sets of identifiers.) Below it the score of the
# facts, from text to identifiers, in which errors of all three add up.


# %%
def facts(document):
    """List the facts of a document: relation and the identifiers of both arguments."""
    by_id = {entity.id: entity.identifier for entity in document.entities}
    named = ((item.type, *(a.identifier or by_id[a.entity] for a in item.arguments)) for item in document.relations)
    return {fact for fact in named if "-" not in fact}


def scores(gold, found):
    """Compute precision, recall and F1 of two lists of sets."""
    right = sum(len(a & b) for a, b in zip(gold, found, strict=True))
    precision, recall = (100 * right / max(sum(map(len, side)), 1) for side in (found, gold))
    return precision, recall, 2 * precision * recall / max(precision + recall, 1)


def entities(document, *fields):
    """List the entities of a document as tuples of the named fields."""
    return {tuple(getattr(item, name) for name in fields) for item in document.entities}


ROWS = [
    ("entities: place and type", ("start", "end", "type")),
    ("linked entities: the concept, too", ("start", "end", "type", "identifier")),
]
results = {
    name: scores([entities(d, *fields) for d in GOLD], [entities(d, *fields) for d in FOUND]) for name, fields in ROWS
}
results["facts"] = scores([facts(d) for d in GOLD], [facts(d) for d in FOUND])
table(("from text to", "precision", "recall", "F1"), [(name, *row) for name, row in results.items()])

# %% [markdown]
# ## The facts
#
# A fact is now a row of identifiers. What several documents state comes first; the names are the dictionary's.

# %%
names = {}
for file in ("drugs.tsv", "genes.tsv"):
    for line in (data / file).read_text(encoding="utf-8").splitlines()[1:]:
        identifier, own = line.split("\t")[:2]
        names[identifier] = own.split("|")[0]
counts = Counter(fact for document in FOUND for fact in facts(document))
table(("drug", "relation", "gene", "documents"),
      [(names.get(drug, drug), kind, names.get(gene, gene), count)
       for (kind, drug, gene), count in counts.most_common(8)])  # fmt: skip

# %% [markdown]
# As a graph: drugs on the left, genes on the right, the most frequent ones. Green edges activate, red ones inhibit; a
# dashed edge is one that the gold annotations do not have.

# %%
gold_facts = {fact for document in GOLD for fact in facts(document)}
degree = Counter(name for fact in counts for name in fact[1:])
chosen = sorted(counts, key=lambda fact: (-degree[fact[1]] - degree[fact[2]], fact))[:24]
sides = [sorted({fact[place] for fact in chosen}) for place in (1, 2)]
figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
heights = [{name: 1 - row / max(len(side) - 1, 1) for row, name in enumerate(side)} for side in sides]
for kind, drug, gene in chosen:
    style = "-" if (kind, drug, gene) in gold_facts else "--"
    colour = "#009E73" if kind == "activates" else "#D55E00"
    axes.plot([0, 1], [heights[0][drug], heights[1][gene]], style, color=colour, lw=0.8 + counts[kind, drug, gene])
for x, side, align in ((0, heights[0], "right"), (1, heights[1], "left")):
    for name, height in side.items():
        axes.text(x + (0.03 if x else -0.03), height, names.get(name, name), ha=align, va="center", fontsize=8)
axes.set(xlim=(-0.6, 1.6), title="drugs and genes that they activate (green) or inhibit (red)")
axes.axis("off")
plt.show()

# %% [markdown]
# For other programs: one row a fact with its document, as JSON lines. (`megabert annotate ... -o found.parquet` writes
# every entity as a row of a Parquet table, with name and score, which DuckDB, pandas and Spark read.)

# %%
with Path("facts.jsonl").open("w", encoding="utf-8") as file:
    for document in FOUND:
        for kind, drug, gene in sorted(facts(document)):
            file.write(json.dumps({"document": document.id, "drug": drug, "relation": kind, "gene": gene}) + "\n")
print(*Path("facts.jsonl").read_text(encoding="utf-8").splitlines()[:3], sep="\n")

# %% [markdown]
# ## What was wrong
#
# Which step lost a fact? One whose arguments were not both found and linked is the tagger's or the linker's; the rest
# is the classifier's.

# %%
lost = Counter()
for gold, found in zip(GOLD, FOUND, strict=True):
    linked = {item.identifier for item in found.entities}
    for fact in facts(gold) - facts(found):
        lost["entity or identifier" if not set(fact[1:]) <= linked else "relation"] += 1
extra = sum(len(facts(found) - facts(gold)) for gold, found in zip(GOLD, FOUND, strict=True))
table(("error", "facts"), [*((f"lost: {name}", count) for name, count in sorted(lost.items())), ("invented", extra)])

# %% [markdown]
# ## Check
#
# The notebook is executed by the project's tests, and this cell decides whether it passed.

# %%
assert len(FOUND) == len(GOLD)
assert links[0].identifier != "-"
if DATASET is None:
    assert [link.is_nil for link in links] == [False, False, False, True]
    assert results["linked entities: the concept, too"][2] > 75, results
    assert results["facts"][2] > 45, results

# %% [markdown]
# ## With your own documents
#
# 1. `megabert fetch biomegatron-bert-345m-uncased` downloads the checkpoint, or takes a file that you have with
#    `--from`.
# 2. Set `DATASET` above to a folder with annotated documents, such as BC5CDR or BioRED, and tables of names; change
#    the types of the entities and pairs in the commands.
# 3. Names that share no letters (`kidney failure`, `renal insufficiency`) are found by embeddings: the page *Link
#    entities to a dictionary* has the commands.
