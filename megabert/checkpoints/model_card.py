"""Model cards: README.md with a model-index, from the record of a run alone; the intended use is left to the user.

Source: the metadata of model cards, https://huggingface.co/docs/hub/model-cards, and its model-index.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..json_documents import read_json_object
from ..model.config import EncoderConfig
from ..storage import atomic_write
from .huggingface.task_heads import TASK_HEADS
from .native.run_checkpoints import CHECKPOINTS, open_lazily
from .open import Checkpoint

CARD = "README.md"
_PIPELINES = {name: row.pipeline for name, row in TASK_HEADS.items()} | {
    "masked_language_model": "fill-mask",
    "causal_language_model": "text-generation",
    "zero_shot": "zero-shot-classification",
}
_CLASSES = {
    "token-classification": "TokenClassification",
    "text-classification": "SequenceClassification",
    "zero-shot-classification": "SequenceClassification",
    "question-answering": "QuestionAnswering",
    "multiple-choice": "MultipleChoice",
    "fill-mask": "MaskedLM",
    "text-generation": "CausalLM",
}
_SETTINGS = ("seed", "trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.gradient_clip_val",
             "trainer.accumulate_grad_batches", "model.train_ds.batch_size", "model.optim.name", "model.optim.lr",
             "model.optim.weight_decay", "model.optim.sched.name", "model.optim.sched.warmup_ratio",
             "model.dataset.max_seq_length")  # fmt: skip


def write_run_card(run: Path, checkpoint: Path) -> None:
    """Write the model card of a run into its folder, about its best checkpoint."""
    documents = open_lazily(checkpoint, groups=()).documents
    atomic_write(run / CARD, model_card(run, documents, EncoderConfig.from_dict(documents["encoder"])))


def huggingface_card(source: Checkpoint, config: EncoderConfig) -> str:
    """Return the card of a run that is written for transformers."""
    folder = Path(source.source)
    run = folder.parents[1] if folder.parent.name == CHECKPOINTS else folder
    return model_card(run, source.documents, config, library="transformers")


def model_card(run: Path, documents: Mapping[str, Any], config: EncoderConfig, *, library: str = "megabert") -> str:
    """Return the card of a run: its documents, and run.json, scores and sweep.json as far as its folder has them."""
    record = _read(run / "run.json") or documents.get("run", {})
    settings = record.get("settings") or documents.get("settings", {})
    task = str(documents.get("run", {}).get("task"))
    scores = {"validation": _read(run / "validation" / "scores.json"), "test": _read(run / "test.json")}
    sweep = _sweep_of(run)
    data = [entry for entry in record.get("data", []) if isinstance(entry, dict)]
    name = f"{task.replace('_', ' ')} with {_architecture(config)}"
    parts = [
        _front_matter(name, task, config, settings, scores, data, library),
        f"# {name[0].upper()}{name[1:]}",
        f"{config.num_layers} layers x {config.hidden_size} x {config.num_heads} heads, {config.max_positions} "
        f"positions, {config.vocabulary_size} tokens. Trained from {_base(settings) or 'random weights'} by megabert.",
        "## Intended use",
        "*To be written by whoever publishes this model: what it is for, and what it must not be used for.*",
        *_usage(task, library),
        *_data(data),
        *_scores(scores, sweep),
        *_training(record, settings),
        "All figures are those of the run's record; none was entered by hand.",
    ]
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _architecture(config: EncoderConfig) -> str:
    return "GPT-2" if config.is_causal else "BERT" if config.norm_place == "post" else "Megatron-BERT"


def _base(settings: Mapping[str, Any]) -> str:
    """Return the name of the checkpoint that training started from, without the folders of this machine."""
    language_model = settings.get("model", {}).get("language_model", {})
    name = settings.get("pretrained_model") or language_model.get("lm_checkpoint")
    name = name or language_model.get("pretrained_model_name") or ""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else str(name)


def _front_matter(
    name: str,
    task: str,
    config: EncoderConfig,
    settings: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
    data: Sequence[Mapping[str, Any]],
    library: str,
) -> str:
    pipeline = _PIPELINES.get(task)
    results = []
    for split, values in scores.items():
        metrics = [{"type": key, "name": key, "value": value} for key, value in _plain(values)]
        entry = next((item for item in data if item.get("split") == split), {})
        file = str(entry.get("file") or values.get("file") or split)
        dataset = {"name": Path(file).name, "type": Path(file).name, "split": split}
        dataset |= {"revision": entry["sha256"]} if entry.get("sha256") else {}
        if metrics:
            results.append({"task": {"type": pipeline or task, "name": task}, "dataset": dataset, "metrics": metrics})
    base = _base(settings)
    names = [key for key, _ in _plain(scores["validation"] or scores["test"])]
    lines = {
        "library_name": library,
        "pipeline_tag": pipeline,
        "tags": ["megabert", _architecture(config).lower(), task],
        "base_model": base if base.count("/") == 1 else None,
        "metrics": names or None,
        "model-index": [{"name": name, "results": results}] if results else None,
    }
    # JSON is YAML; a key a line, so that people can edit it.
    body = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items() if value is not None]
    return "\n".join(["---", *body, "---"])


def _plain(scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the scores over all labels."""
    for key, value in scores.items():
        if "/" not in key and isinstance(value, int | float) and not isinstance(value, bool):
            yield key, round(float(value), 4)


def _usage(task: str, library: str) -> Iterator[str]:
    pipeline = _PIPELINES.get(task)
    fields = {"question_answering": ("question", "context"), "text_ranking": ("query", "passage")}.get(task, ("text",))
    example = ", ".join(f'{name}="..."' for name in fields)
    lines = []
    if library == "transformers" and pipeline is not None:
        lines = [
            "from transformers import pipeline",
            f'model = pipeline("{pipeline}", model="FOLDER")  # or AutoModelFor{_CLASSES[pipeline]}',
        ]
    yield "## Use"
    yield "\n".join(["```python", *lines, "import megabert", f'megabert.load("FOLDER").predict({example})', "```"])


def _data(data: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Data"
    rows = [
        [str(entry.get("split")), Path(str(entry.get("file"))).name, str(entry.get("sha256") or "not computed")]
        for entry in data
    ]
    yield _table(["set", "file", "SHA-256"], rows) if rows else "The record does not name the data."


def _scores(scores: Mapping[str, Mapping[str, Any]], sweep: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores"
    columns = [split for split, values in scores.items() if values]
    if not columns:
        yield "The record has no scores."
        return
    names = list(dict.fromkeys(key for split in columns for key, _ in _plain(scores[split])))
    rows = [[key, *(_number(scores[split].get(key)) for split in columns)] for key in names]
    header = ["metric", *columns]
    if sweep:
        spread = sweep["scores"]
        header.append(f"validation, mean ± deviation of {len(sweep['runs'])} runs")
        for row in rows:
            entry = spread.get(row[0])
            row.append(f"{entry['mean']:.2f} ± {entry['deviation']:.2f}" if entry else "")
    yield _table(header, rows)
    yield from _scores_of_labels(scores["test"] or scores["validation"], "test" if scores["test"] else "validation")


def _scores_of_labels(labelled: Mapping[str, Any], split: str) -> Iterator[str]:
    labels = list(dict.fromkeys(key.rpartition("/")[0] for key in labelled if "/" in key))
    metrics = list(dict.fromkeys(key.rpartition("/")[2] for key in labelled if "/" in key))
    if labels:
        yield f"Of each label ({split}):"
        body = [[name, *(_number(labelled.get(f"{name}/{metric}")) for metric in metrics)] for name in labels]
        yield _table(["label", *metrics], body)


def _number(value: Any) -> str:
    return f"{value:.2f}".removesuffix(".00") if isinstance(value, int | float) else ""


def _training(record: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    rows = []
    for key in _SETTINGS:
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            rows.append([f"`{key}`", str(value)])
    rows += [[name, str(record[name])] for name in ("device", "precision", "total_steps") if name in record]
    rows += [[f"version of {name}", str(value)] for name, value in record.get("versions", {}).items()]
    counts = record.get("labels", {})
    rows += [
        [f"labels: {kind}", ", ".join(f"{name} {count}" for name, count in of.items())] for kind, of in counts.items()
    ]
    yield _table(["setting", "value"], rows)


def _sweep_of(run: Path) -> Mapping[str, Any]:
    """Return the sweep that a run is part of; empty if it is part of none."""
    sweep = _read(run.parent / "sweep.json")
    runs = sweep.get("runs", [])
    return sweep if run.name in [Path(str(name)).name for name in runs] and len(runs) > 1 else {}


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
