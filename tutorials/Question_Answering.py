# %% [markdown]
# # Question answering
#
# *Extractive question answering*: the answer to a question is a span of a given text. This notebook fine-tunes an
# encoder on data in SQuAD's format, evaluates it as the official script does, and looks at what it is unsure of.
#
# As it stands it runs in less than a minute on a CPU, with the small encoder that comes with megabert and notes that
# `planted.py` composes. With **one variable changed** it runs with BioMegatron 345M on SQuAD, or on biomedical
# questions in the same format.

# %%
import json
from pathlib import Path

import planted
from matplotlib import pyplot as plt
from notebook import highlight, new_folder, run, show, table

import megabert

# Change this: None, or a folder with train.json and dev.json in SQuAD's format.
DATASET = None

ENCODER = "biomegatron-bert-345m-uncased" if DATASET else "megabert-mini-uncased"
LAYERS = "null" if DATASET else 3  # the first of six, so that it takes half the time; null: all
BATCH_SIZE, LEARNING_RATE, EPOCHS, DROPOUT = (24, 3e-5, 2, 0.1) if DATASET else (4, 7e-4, 3, 0.0)
MAX_LENGTH, STRIDE = (384, 128) if DATASET else (64, 24)

# %% [markdown]
# ## Data
#
# SQuAD's JSON: articles have paragraphs, a paragraph has a context and questions, a question has answers with their
# first character in the context. The planted notes are three facts about a patient, in any order; whether *37* is the
# age or the dose, only the words around it say. Half of the names in `dev.json` never occur in `train.json`.

# %%
folder = new_folder()
if DATASET is None:
    Path("train.json").write_text(json.dumps(planted.squad_document("train", 130)), encoding="utf-8")
    Path("dev.json").write_text(json.dumps(planted.squad_document("dev", 40)), encoding="utf-8")
data = Path(DATASET or folder)

paragraph = json.loads((data / "dev.json").read_text(encoding="utf-8"))["data"][0]["paragraphs"][0]
answers = [(item["question"], item["answers"][0]) for item in paragraph["qas"][:3]]
spans = {(item["answer_start"], item["answer_start"] + len(item["text"]), "answer") for _, item in answers}
show([highlight(paragraph["context"], spans)])
table(("question", "answer", "first character"), [(text, item["text"], item["answer_start"]) for text, item in answers])

# %% [markdown]
# ## Fine-tune
#
# The network reads `[CLS] question [SEP] context [SEP]` and gives each token two logits: one as the first, one as the
# last token of the answer. A context that is longer than `max_seq_length` is read in windows that overlap; each window
# starts `doc_stride` tokens after the one before it, and the best span of all windows wins.

# %%
run(f"""
    train question_answering
    model.train_ds.file="{data}/train.json" model.validation_ds.file="{data}/dev.json"
    model.language_model.pretrained_model_name="{ENCODER}" model.language_model.first_layers={LAYERS}
    model.language_model.hidden_dropout={DROPOUT} model.language_model.attention_dropout={DROPOUT}
    model.dataset.max_seq_length={MAX_LENGTH} model.dataset.doc_stride={STRIDE}
    model.dataset.max_query_length={MAX_LENGTH // 6}
    model.train_ds.batch_size={BATCH_SIZE} model.optim.lr={LEARNING_RATE} trainer.max_epochs={EPOCHS}
    model.optim.sched.name=WarmupAnnealing model.optim.sched.warmup_ratio=0.1
    trainer.gradient_clip_val=1.0 exp_manager.explicit_log_dir=run
""")

# %%
lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
training = [line for line in lines if line["split"] == "train"]
validation = [line for line in lines if line["split"] == "validation"]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([line["step"] for line in training], [line["loss"] for line in training], label="training")
left.plot([line["step"] for line in validation], [line["val_loss"] for line in validation], "o-", label="validation")
left.set(xlabel="step", ylabel="loss, nats")
left.legend()
for score, title in (("exact_match", "exact match"), ("f1", "F1")):
    right.plot([line["epoch"] for line in validation], [line[score] for line in validation], "o-", label=title)
right.set(xlabel="epoch", ylabel="per cent", ylim=(0, 100))
right.legend()
plt.show()

# %% [markdown]
# ## Evaluate
#
# *Exact match* is the share of answers that equal a right one, after lower-casing and without articles and
# punctuation; *F1* gives credit for shared words. Both are computed as the official `evaluate-v1.1.py` does.

# %%
run(f'evaluate run file="{data}/dev.json" output_dir=evaluation')
scores = json.loads(Path("evaluation/scores.json").read_text(encoding="utf-8"))

# %% [markdown]
# ## Predict
#
# An answer has its characters in the context and a probability. `n_best` has the alternatives; where the first two are
# close, a person should look.

# %%
reader = megabert.load("run", accelerator="cpu")
context = "The drug is lovastatin. The age is 61 years. The city of birth is Graz. The dose is 40 mg."
questions = ("What is the drug?", "What is the age?", "Which city is it?", "What is the dose?")
answers = [reader.predict(question=question, context=context) for question in questions]
rows = [
    (item.question, item.text, f"{item.start} to {item.end}", f"{item.probability:.2f}", item.n_best[1].text)
    for item in answers
]
table(("question", "answer", "characters", "probability", "second best"), rows)

# %% [markdown]
# Is the probability worth anything? Sort the answers of `dev.json` by it: among the surest ones nearly all should be
# right. The curve shows the share of right answers if only the surest *x* per cent are taken.

# %%
examples = reader.task.read(data / "dev.json")
predictions = reader.predict_examples(examples)
ranked = sorted(zip(examples, predictions, strict=True), key=lambda pair: -pair[1].probability)
right = [any(item.text.lower() == answer.text.lower() for answer in example.answers) for example, item in ranked]

figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(
    [100 * count / len(right) for count in range(1, len(right) + 1)],
    [100 * sum(right[:count]) / count for count in range(1, len(right) + 1)],
)
axes.set(xlabel="answers taken, surest first, %", ylabel="of these right, %", ylim=(0, 105))
plt.show()

# %% [markdown]
# ## Check
#
# The notebook is executed by the project's tests, and this cell decides whether it passed.

# %%
assert scores["total"] == len(examples) == len(right)
if DATASET is None:
    assert scores["f1"] > 60, scores["f1"]
    half = right[: len(right) // 2]
    assert sum(half) / len(half) >= sum(right) / len(right)

# %% [markdown]
# ## With BioMegatron and real questions
#
# 1. `megabert fetch biomegatron-bert-345m-uncased` downloads the checkpoint, or takes a file that you have with
#    `--from`. (`megatron-bert-345m-uncased` is the one for general text.)
# 2. Set `DATASET` above to a folder with `train.json` and `dev.json`, and run all cells, on a GPU.
# 3. For questions that may have no answer, as in SQuAD 2.0, add `model.dataset.version_2_with_negative=true`.
