"""Read the head of a fine-tuned Hugging Face folder as that of a run: its task, labels, settings and tensors.

A folder that megabert wrote has all in its megabert.json. One of transformers' trainers has config.json only: what
that lacks is stated in the notes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...formats.tag_schemes import find_scheme
from ...json_documents import read_json_object
from ..files.lazy_tensor import Readable, in_memory
from ..mapping import read_tensors
from .open_huggingface import HuggingFaceFile
from .sentence_modules import EMBEDDING_TASKS, MODULES, pooling_of, read_embedding
from .task_heads import (
    BY_CLASS,
    CROSS_ENCODERS,
    DESCRIPTION,
    PRETRAINING,
    TASK_HEADS,
    TaskHead,
    head_config,
    split_head,
)

_TOKENIZER_LIMIT = 10**6  # transformers writes 1e30 where a tokenizer has no limit
# Largest windows of transformers' run_qa.py, and their stride
_QUESTION_WINDOW, _QUESTION_LENGTH, _STRIDE = 384, 64, 128
_CHOICE_LENGTH = 128


@dataclass(frozen=True)
class FineTuned:
    """The head of a folder, by megabert's names, and the documents of a run that has it; empty without a head."""

    head: Mapping[str, Readable] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_head(file: HuggingFaceFile, folder: Path) -> FineTuned:
    """Read the head that config.json names as a class; none for a language model.

    Raises CheckpointError where tensors, labels and class do not fit each other.
    """
    description = _read_description(folder / DESCRIPTION)
    if (folder / MODULES).is_file() and (tuned := _embedding(file, folder, description)) is not None:
        return tuned
    names = file.config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    row = next((row for end, row in BY_CLASS.items() if name.endswith(end)), None)
    has_head = any(tensor.startswith(("classifier.", "qa_outputs.")) for tensor in file.weights)
    if row is None:
        task = next((task for end, task in PRETRAINING.items() if name.endswith(end)), None)
        if task is not None:
            return FineTuned({}, _language_model(task, file, folder, description))
        if has_head:
            raise CheckpointError(
                f"{file.source}/config.json names no class for the head that the weights hold "
                f'({name or "no architectures"}). Add it, such as "architectures": '
                f'["{file.architecture.class_prefix}ForTokenClassification"]; known are {", ".join(BY_CLASS)}.'
            )
        return FineTuned()
    head = _tensors(file, row)
    if description is not None:
        return _described(head, description, file, row, folder)
    return _foreign(head, file, row, folder)


def _embedding(file: HuggingFaceFile, folder: Path, description: Mapping[str, Any] | None) -> FineTuned | None:
    """Read the settings of a model of sentence-transformers; None for a cross-encoder."""
    length, _ = _window_length(file, folder)
    lowers = _read_small(folder / "tokenizer_config.json").get("do_lower_case", False)
    read = read_embedding(folder, length, lowers=bool(lowers))
    if read is None:
        return None
    model, notes, head = read
    if description is None:
        return FineTuned(head, {"run": {"task": "text_embedding"}, "settings": {"model": model}}, tuple(notes))
    task, own = description["task"], description["settings"]["model"]
    if task not in EMBEDDING_TASKS or pooling_of(task, own) != pooling_of("text_embedding", model):
        raise CheckpointError(
            f"{folder}: {DESCRIPTION} describes other embeddings than {MODULES}. Where the model was trained further "
            f"elsewhere, remove {DESCRIPTION}."
        )
    return FineTuned({}, _documents(description))


def _read_small(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _tensors(file: HuggingFaceFile, row: TaskHead) -> dict[str, Readable]:
    """Read the tensors of a head. Raises CheckpointError for a missing one, which transformers would draw anew."""
    prefixes = tuple(source.removesuffix("*") for rule in row.rules for source in rule.sources)
    # The file's names are those of the encoder alone: without the prefix that the pooler has.
    named = {f"bert.{name}" if name.startswith("pooler.") else name: item for name, item in file.weights.items()}
    own = {name: item for name, item in named.items() if name.startswith(prefixes)}
    tensors, _ = read_tensors([own], row.rules, 1, file.source)
    missing = [
        f"{source.removesuffix('*')}{kind}"
        for rule in row.rules
        for source in rule.sources
        for kind in ("weight", "bias")
        if rule.target and rule.target.removesuffix("*") + kind not in tensors
    ]
    if missing:
        raise CheckpointError(
            f"{file.source}: config.json names {row.class_end}, whose {', '.join(missing)} is missing; transformers "
            "would draw it at random. Give the folder that training wrote, or correct `architectures`."
        )
    _check_shapes(tensors, file.shape["hidden_size"], file.source)
    return dict(tensors)


def _check_shapes(tensors: Mapping[str, Readable], width: int, source: str) -> None:
    for name, item in tensors.items():
        rows = width if name.startswith("head.hidden") else tensors["head.out.bias"].shape[0]
        expected = (rows, width) if name.endswith("weight") else (rows,)
        if tuple(item.shape) != expected:
            raise CheckpointError(f"{source}: {name} is {tuple(item.shape)}, expected {expected}.")


def _read_description(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    document = read_json_object(path)
    match document:
        case {
            "task": str(),
            "settings": {"model": dict()},
            "state": dict(),
            "tokenizer": {"lower_case": bool() | None},
        }:
            return document
    raise CheckpointError(f"{path} lacks task, settings, state or tokenizer. Export the run again, or remove the file.")


def _described(
    head: Mapping[str, Readable], description: Mapping[str, Any], file: HuggingFaceFile, row: TaskHead, folder: Path
) -> FineTuned:
    """Take task, settings and state from megabert.json. Raises CheckpointError if config.json has other labels."""
    task, state = description["task"], description["state"]
    documents = _documents(description)
    try:
        theirs = head_config(documents).get("id2label")
        num_marks = len(state["marks"]) if task == "punctuation_capitalization" else 0
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/{DESCRIPTION}: the state of the task is malformed: {error}.") from None
    is_same = theirs is None or (
        theirs == file.config.get("id2label") and len(theirs) == head["head.out.bias"].shape[0]
    )
    if TASK_HEADS.get(task) != row or not is_same:
        raise CheckpointError(
            f"{folder}: {DESCRIPTION} describes another model than config.json: the class or the labels differ. "
            f"Where the model was trained further elsewhere, remove {DESCRIPTION}."
        )
    if task == "punctuation_capitalization":
        parts = split_head(head, num_marks)
        head = {name: in_memory(item) for name, item in parts.items()}
    return FineTuned(head, documents)


def _documents(description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": {"task": description["task"]},
        "settings": description["settings"],
        "task": description["state"],
        "tokenizer": description["tokenizer"],
    }


def _foreign(head: Mapping[str, Readable], file: HuggingFaceFile, row: TaskHead, folder: Path) -> FineTuned:
    """Take labels and lengths from config.json and tokenizer_config.json, and note what they lack."""
    num_outputs = head["head.out.bias"].shape[0]
    length, notes = _window_length(file, folder)
    dataset: dict[str, Any] = {"max_seq_length": length}
    state: dict[str, Any] = {}
    if row.task == "question_answering":
        if num_outputs != 2:
            raise CheckpointError(f"{file.source}: qa_outputs has {num_outputs} outputs; start and end are 2.")
        length = min(length, _QUESTION_WINDOW)
        question = min(_QUESTION_LENGTH, length // 4)
        stride = min(_STRIDE, max((length - question - 3) // 2, 1))
        dataset = {"max_seq_length": length, "max_query_length": question, "doc_stride": stride}
        notes.append(
            "not stated: whether questions may have no answer; answers are always given "
            "(model.dataset.version_2_with_negative=true: none where that is likelier)"
        )
    elif row.task == "multiple_choice":
        if num_outputs != 1:
            raise CheckpointError(f"{file.source}: classifier has {num_outputs} outputs; the score of a choice is 1.")
        dataset["max_qa_length"] = min(_CHOICE_LENGTH, length // 2)
    elif row.task == "text_classification" and num_outputs == 1 and any(key in file.config for key in CROSS_ENCODERS):
        notes.append("scores are logits; sentence-transformers' predict gives those of its activation, in equal order")
        settings = {"model": {"dataset": {"max_seq_length": length}}}
        return FineTuned(head, {"run": {"task": "text_ranking"}, "settings": settings}, tuple(notes))
    else:
        labels, label_notes = _labels(file, num_outputs)
        notes += label_notes
        state = {"labels": labels, "weights": [1.0] * num_outputs}
        if row.task == "text_classification":
            dataset["problem"], problem_notes = _problem(file, num_outputs)
            state = {"labels": [], "weights": []} if dataset["problem"] == "regression" else state
            notes += problem_notes
        else:
            notes += _tag_notes(labels)
            dataset["group_equal_tags"] = _marks_no_bounds(labels)
            state["cuts"] = {"is_basic": True}
    if row.task != "multiple_choice" and "num_labels" in file.config and file.config["num_labels"] != num_outputs:
        raise CheckpointError(
            f"{file.source}: num_labels is {file.config['num_labels']!r}, the head has {num_outputs}."
        )
    documents = {
        "run": {"task": row.task},
        "settings": {"model": {"dataset": dataset}},
        "task": state,
    }
    return FineTuned(head, documents, tuple(notes))


def _window_length(file: HuggingFaceFile, folder: Path) -> tuple[int, list[str]]:
    """Return the largest number of tokens of a window: the tokenizer's, at most the network's positions."""
    positions = int(file.shape["max_positions"])
    stated = _read_small(folder / "tokenizer_config.json").get("model_max_length")
    if type(stated) is int and 8 <= stated <= _TOKENIZER_LIMIT:
        return min(stated, positions), [f"windows of {min(stated, positions)} tokens (model_max_length)"]
    return positions, [f"windows of {positions} tokens, all positions: the tokenizer's files state no model_max_length"]


def _labels(file: HuggingFaceFile, num_outputs: int) -> tuple[list[str], list[str]]:
    """Return the labels in the order of the head's outputs. Raises CheckpointError unless id2label has one for each."""
    stated, inverse = (file.config.get(key) for key in ("id2label", "label2id"))
    pairs = {str(number): label for label, number in inverse.items()} if isinstance(inverse, dict) else None
    key = "id2label" if stated is not None or pairs is None else "label2id"
    stated = pairs if stated is None else stated
    if stated is None:
        standard = [f"LABEL_{number}" for number in range(num_outputs)]
        return standard, [
            f"config.json names no labels: they are {', '.join(standard[:3])} and so on, as in transformers"
        ]
    labels = stated if isinstance(stated, dict) else {}
    names = [labels.get(str(number)) for number in range(num_outputs)]
    names = [str(name) if type(name) is int else name for name in names]  # labels 0, 1, 2 of a dataset
    if len(labels) != num_outputs or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(
            f"{file.source}/config.json: {key} has {len(labels)} labels ({str(stated)[:60]}); the head has "
            f"{num_outputs} outputs, 0 to {num_outputs - 1}. Give each output a label."
        )
    if len(set(names)) != num_outputs:
        raise CheckpointError(f"{file.source}/config.json: {key} gives several outputs one label. Rename them.")
    notes = ["label2id of config.json contradicts id2label, which counts, as in transformers' pipelines"]
    named = {number: str(label) for number, label in labels.items()}
    return [str(name) for name in names], notes if pairs is not None and pairs != named else []


def _problem(file: HuggingFaceFile, num_outputs: int) -> tuple[str, list[str]]:
    stated = file.config.get("problem_type")
    if stated is None:
        problem = "regression" if num_outputs == 1 else "single_label"
        return problem, [f"problem_type is not stated: {problem}, as in transformers for {num_outputs} outputs"
                         " (model.dataset.problem)"]  # fmt: skip
    problem = str(stated).removesuffix("_classification")
    fits = {"regression": num_outputs == 1, "single_label": num_outputs > 1, "multi_label": True}
    if not fits.get(problem, False):
        raise CheckpointError(
            f"{file.source}/config.json: problem_type is {stated!r:.40}, and the head has {num_outputs} outputs. "
            "regression has one, single_label_classification several, multi_label_classification any number."
        )
    return problem, []


def _marks_no_bounds(labels: list[str]) -> bool:
    """Whether labels are those of entities but not of their first words: O, PER, LOC. Parts of speech have no O."""
    return "O" in labels and find_scheme(labels, "O") is None


def _tag_notes(labels: list[str]) -> list[str]:
    notes = ["not stated: how the training texts were cut into words; raw text is cut as by the tokenizer, at blanks "
             "and all punctuation (model.dataset.split_at), and a word has the label of its first token"]  # fmt: skip
    if "O" not in labels:
        notes.append("no label is O: each word has one (model.dataset.pad_label names the label of words outside)")
    if _marks_no_bounds(labels):
        notes.append(
            "no label has a prefix, B- or I-: neighbours of equal labels are one entity, as in transformers' pipelines "
            "(model.dataset.group_equal_tags)"
        )
    if any(label.startswith("B-") for label in labels) and not any(label.startswith(("E-", "S-")) for label in labels):
        notes.append("not stated: the tag scheme, IOB1 or IOB2; an I- that cannot continue an entity begins one")
    return notes


def _language_model(
    task: str, file: HuggingFaceFile, folder: Path, description: Mapping[str, Any] | None
) -> dict[str, Any]:
    if description is not None and description["task"] == task:
        return _documents(description)
    length, _ = _window_length(file, folder)
    dataset: dict[str, Any] = {"max_seq_length": length}
    if task == "masked_language_model":
        dataset["sentence_order"] = "cls.seq_relationship.weight" in file.weights
    return {"run": {"task": task}, "settings": {"model": {"dataset": dataset}}}
