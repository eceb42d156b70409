# %% [markdown]
# # Pre-training on your own corpus
#
# BioMegatron is Megatron-BERT, trained further on the abstracts of PubMed: *continued pre-training*. The same works
# with the text of any domain, and without labels. This notebook goes the whole way in less than a minute on a CPU:
# text, token files, training, and a look at what was learned.
#
# It uses the small encoder that comes with megabert and documents that `planted.py` composes. With **one variable
# changed** it continues BioMegatron 345M on text of your own.

# %%
import json
from pathlib import Path

import planted
from matplotlib import pyplot as plt
from notebook import new_folder, run, table

import megabert

# Change this: None, or a text file with a sentence a line and an empty line between documents.
CORPUS = None

ENCODER = "biomegatron-bert-345m-uncased" if CORPUS else "biomegabert-mini-uncased"
LAYERS = "null" if CORPUS else 2  # the first of six, so that it takes a third of the time; null: all
BATCH_SIZE, LEARNING_RATE, EPOCHS, MAX_LENGTH = (32, 1e-4, 1, 512) if CORPUS else (16, 8e-4, 4, 20)
MASKED = 0.15 if CORPUS else 0.3

# %% [markdown]
# ## Text
#
# The planted documents hold facts that no other text has: in them *renal* disease goes with fever, *hepatic* disease
# with asthma, and so on, for eight organs. A third of the sentence patterns of the development documents is new: there
# it helps to know the facts, not the sentences.

# %%
folder = new_folder()
if CORPUS is None:
    planted.write_documents(Path("train.txt"), planted.documents("train", 120))
    planted.write_documents(Path("dev.txt"), planted.documents("dev", 20))
else:
    documents = Path(CORPUS).read_text(encoding="utf-8").strip().split("\n\n")
    num_dev = max(len(documents) // 20, 1)
    planted.write_documents(Path("train.txt"), documents[num_dev:])
    planted.write_documents(Path("dev.txt"), documents[:num_dev])
print(Path("train.txt").read_text(encoding="utf-8").partition("\n\n")[0])

# %% [markdown]
# ## Token files
#
# To continue from a checkpoint, its vocabulary is needed: the rows of its embedding belong to these tokens. (A model
# from scratch would get one of its own: `megabert vocabulary train TEXT --size 30000 -o vocab.txt`.)
#
# `megabert corpus build` splits documents into sentences, tokenizes them in parallel, drops duplicates, and writes
# Megatron-LM's format, `.bin` with the tokens and `.idx` with where sentences and documents begin.

# %%
encoder, tokenizer = megabert.load_encoder(ENCODER)
for name, content in tokenizer.files().items():
    Path(name).write_text(content, encoding="utf-8")
for split in ("train", "dev"):
    run(f"corpus build {split}.txt -o {split} --vocab_file vocab.txt")

# %% [markdown]
# The words of the domain should not be cut into too many pieces: a model learns more easily about *renal* than about
# *re*, *##n* and *##al*. If many words of yours are, train a vocabulary of your own and start from scratch, as far as
# there is enough text.

# %%
words = [*planted.COMPLAINTS, *planted.COMPLAINTS.values()]
pieces = [[tokenizer.tokens[token_id] for token_id in encoded.token_ids] for encoded in tokenizer.encode(words)]
table(("word", "tokens"), [(word, " ".join(parts)) for word, parts in zip(words, pieces, strict=True)])

# %% [markdown]
# ## Where it starts
#
# The objective is *masked language modeling*: some tokens are hidden, whole words together, and predicted from the
# rest: 15 % of them, here 30 %, since the text is so short. Sequences are short for the same reason: one or two
# sentences each, which makes more steps of the same text. The loss on the development documents, before anything is
# learned, comes from a run of one step with a learning rate of (almost) zero.

# %%
SETTINGS = f"""
    model.train_ds.file=train model.validation_ds.file=dev model.dataset.sentence_order=false
    model.dataset.max_seq_length={MAX_LENGTH} model.dataset.masked_lm_prob={MASKED}
    model.train_ds.batch_size={BATCH_SIZE}
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.language_model.hidden_dropout=0.0 model.language_model.attention_dropout=0.0
"""
run(
    f"train masked_language_model {SETTINGS} model.optim.lr=1e-12 model.optim.sched.min_lr=0.0 trainer.max_steps=1 \
    exp_manager.explicit_log_dir=start"
)

# %% [markdown]
# ## Train
#
# Masks are resampled in each epoch, so that a small corpus serves for several. Dropout is off: in so few steps it
# only slows learning down.

# %%
run(f"""train masked_language_model {SETTINGS} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS}
    model.optim.sched.warmup_ratio=0.1 exp_manager.explicit_log_dir=run""")


# %%
def read_metrics(name, split):
    """Read the logged lines of one split from a run folder."""
    lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["split"] == split]


before, after = read_metrics("start", "validation")[-1], read_metrics("run", "validation")[-1]
training, validation = read_metrics("run", "train"), [before | {"step": 0}, *read_metrics("run", "validation")]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([line["step"] for line in training], [line["loss"] for line in training], label="training")
left.plot([line["step"] for line in validation], [line["lm_loss"] for line in validation], "o-", label="validation")
left.set(xlabel="step", ylabel="loss of masked tokens, nats")
left.legend()
right.plot([line["step"] for line in validation], [line["lm_accuracy"] for line in validation], "o-")
right.set(xlabel="step", ylabel="masked tokens predicted right, %")
plt.show()
scores = ("lm_loss", "perplexity", "lm_accuracy")
table(
    ("dev.txt", *scores), [("before", *(before[name] for name in scores)), ("after", *(after[name] for name in scores))]
)

# %% [markdown]
# ## What did it learn?
#
# The loss counts all tokens, easy ones, too. The question was the facts. So: hide the complaint in new sentences, and
# see whether it comes back. `megabert.load` returns the model with its pre-training head, whose `predict` fills in
# `[MASK]`.

# %%
if CORPUS is None:
    names = planted.Names("dev", seed=7)
    facts = [planted.fact_sentence(names) for _ in range(40)]
    results = {}
    for name in ("start", "run"):
        model = megabert.load(name, accelerator="cpu")
        examples = [model.task.example(text=text.replace(complaint, "[MASK]")) for text, complaint in facts]
        guesses = [item.places[0].guesses[0] for item in model.predict_examples(examples)]
        results[name] = guesses
    accuracy = {
        name: 100
        * sum(guess.token == complaint for guess, (_, complaint) in zip(guesses, facts, strict=True))
        / len(facts)
        for name, guesses in results.items()
    }
    rows = [
        (text.replace(complaint, "[MASK]"), complaint, before_.token, f"{after_.token} ({after_.probability:.2f})")
        for (text, complaint), before_, after_ in list(zip(facts, results["start"], results["run"], strict=True))[:6]
    ]
    table(("sentence", "right", "before", "after"), rows)
    print(f"right before: {accuracy['start']:.0f} %, after: {accuracy['run']:.0f} %, by chance: {100 / 8:.0f} %")

# %% [markdown]
# ## Check
#
# The notebook is executed by the project's tests, and this cell decides whether it passed.

# %%
assert after["lm_loss"] < before["lm_loss"], (before["lm_loss"], after["lm_loss"])
if CORPUS is None:
    assert after["lm_loss"] < 0.7 * before["lm_loss"], (before["lm_loss"], after["lm_loss"])
    assert accuracy["run"] > 50 > accuracy["start"], accuracy

# %% [markdown]
# ## With your own text
#
# 1. Set `CORPUS` above to a text file. `megabert corpus build` itself also reads JSON lines, PubMed's XML, compressed
#    files and folders of these.
# 2. The run is a checkpoint for every task: `model.language_model.pretrained_model_name=RUN`.
#    `megabert convert RUN FOLDER --to huggingface` (or `megatron`, `nemo`) writes it for other programs.
# 3. For a large corpus: `megabert plan model=345m gpus=8` estimates time and memory first, and `recipes/bert_345m.yaml`
#    has the settings with which Megatron-LM trains from scratch.
