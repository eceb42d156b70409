"""Heads of fine-tuned models: transformers' classes, tensors and labels, from and to those of a run.

A head that transformers has no class for is merged into one where that is exact, else refused with the reason.
Source: MegatronBertFor... and BertFor... of transformers 5: TokenClassification, SequenceClassification,
QuestionAnswering, MultipleChoice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..files.lazy_tensor import Derived, Readable
from ..mapping import Rule

DESCRIPTION = "megabert.json"
"""What config.json has no keys for: task, settings of its data, state. transformers does not read it."""


@dataclass(frozen=True)
class TaskHead:
    """transformers' names of a task head: the end of the class name, the tensors, and the task of foreign folders."""

    class_end: str
    rules: Sequence[Rule]
    task: str
    pipeline: str
    """The name of transformers' pipeline."""


_TOKENS = TaskHead(
    "ForTokenClassification", [Rule("classifier.*", "head.out.*")], "token_classification", "token-classification"
)
_SEQUENCE = TaskHead(
    "ForSequenceClassification",
    # transformers' pooler corresponds to the head's hidden layer: dense, then tanh.
    [Rule("bert.pooler.dense.*", "head.hidden.0.*"), Rule("classifier.*", "head.out.*")],
    "text_classification",
    "text-classification",
)
_SPANS = TaskHead(
    "ForQuestionAnswering", [Rule("qa_outputs.*", "head.out.*")], "question_answering", "question-answering"
)
_CHOICES = TaskHead("ForMultipleChoice", _SEQUENCE.rules, "multiple_choice", "multiple-choice")
CROSS_ENCODER = "sentence_transformers"
"""The key of config.json by which sentence-transformers marks a cross-encoder."""
CROSS_ENCODERS = (CROSS_ENCODER, "sbert_ce_default_activation_function")  # the second before version 4
# By task name
TASK_HEADS = {
    "question_answering": _SPANS,
    "token_classification": _TOKENS,
    "punctuation_capitalization": _TOKENS,
    "text_classification": _SEQUENCE,
    "relation_extraction": _SEQUENCE,
    "glue": _SEQUENCE,
    "text_ranking": _SEQUENCE,
    "multiple_choice": _CHOICES,
    "zero_shot": _SEQUENCE,
}
BY_CLASS = {row.class_end: row for row in (_TOKENS, _SEQUENCE, _SPANS, _CHOICES)}
# The ends of the class names of language models, and the tasks that train them
PRETRAINING = {
    "ForMaskedLM": "masked_language_model",
    "ForPreTraining": "masked_language_model",
    "LMHeadModel": "causal_language_model",
}
_REASONS = {
    "intent_slot": "its intents are read at the first token and its slots at each word, which no class of "
    "transformers does together",
    "text_embedding": "it has an encoder each for queries and passages, or a linear layer behind the pooling",
}


def find_task_head(documents: Mapping[str, Any], head: Mapping[str, Readable]) -> TaskHead:
    """Return transformers' names of a run's head, its parts already merged.

    Raises ConfigError for a head that transformers does not compute.
    """
    task = documents.get("run", {}).get("task")
    if task not in TASK_HEADS:
        reason = f": {_REASONS[task]}" if task in _REASONS else f"; known are {', '.join(TASK_HEADS)}"
        raise ConfigError(f"transformers has no class for the head of {task}{reason}.")
    task_head = TASK_HEADS[task]
    expected = {rule.target.removesuffix(".*") for rule in task_head.rules if rule.target}
    layers = {name.rpartition(".")[0] for name in head}
    if layers != expected:
        raise ConfigError(
            f"transformers' {task_head.class_end} has a head of {', '.join(sorted(expected))} only; this run's has "
            f"{', '.join(sorted(layers))}, and an activation stands between layers: none can be merged "
            "or added exactly. "
            "Train with the number of layers that it has, or convert the encoder alone."
        )
    activation = _model_settings(documents).get("classifier_head", {}).get("activation", "tanh")
    if activation != "tanh":
        raise ConfigError(
            f"transformers' classifiers have tanh in their head; this run's has {activation}. Train with "
            "model.classifier_head.activation=tanh, or convert the encoder alone."
        )
    return task_head


def _model_settings(documents: Mapping[str, Any]) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = documents.get("settings", {}).get("model", {})
    return settings


def merged_head(documents: Mapping[str, Any], head: Mapping[str, Readable]) -> Mapping[str, Readable]:
    """Merge the two heads of punctuation and capitalization, of one layer each, into one over pairs of labels.

    The logit of a pair is the sum of both logits, so that the softmax over pairs is the product of both softmaxes.
    """
    parts = [f"head.heads.{name}.out" for name in ("punct", "capit")]
    if documents.get("run", {}).get("task") != "punctuation_capitalization" or {
        name.rpartition(".")[0] for name in head
    } != set(parts):
        return head

    def merge(kind: str) -> Readable:
        marks, cases = (head[f"{part}.{kind}"] for part in parts)
        shape = (marks.shape[0] * cases.shape[0], *marks.shape[1:])
        return Derived(shape, marks.dtype, lambda: (marks.read()[:, None] + cases.read()[None]).reshape(shape))

    return {f"head.out.{kind}": merge(kind) for kind in ("weight", "bias")}


def split_head(head: Mapping[str, Readable], num_marks: int) -> dict[str, Tensor]:
    """Undo `merged_head` up to a number that all logits of a token's marks, or of its cases, share."""
    tensors: dict[str, Tensor] = {}
    for name, item in head.items():
        kind, merged = name.rpartition(".")[2], item.read()
        pairs = merged.reshape(num_marks, -1, *merged.shape[1:])
        tensors[f"head.heads.punct.out.{kind}"] = pairs[:, 0].clone()
        tensors[f"head.heads.capit.out.{kind}"] = torch.clone(pairs[0] - pairs[0, :1])
    return tensors


def head_config(documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of config.json for the labels of a fine-tuned run."""
    state = documents.get("task", {})
    labels = state.get("labels", [])
    if "marks" in state and "cases" in state:
        labels = [mark + case for mark in state["marks"] for case in state["cases"]]
    config: dict[str, Any] = {}
    if labels:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    problem = state.get("problem", _model_settings(documents).get("dataset", {}).get("problem"))
    if problem is not None:
        config["problem_type"] = problem if problem == "regression" else f"{problem}_classification"
    is_ranking = documents.get("run", {}).get("task") == "text_ranking"
    if is_ranking:
        config[CROSS_ENCODER] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    if is_ranking or problem == "regression":
        config |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return config


def is_language_model_run(documents: Mapping[str, Any]) -> bool:
    """Return whether documents are those of a pre-training run of megabert."""
    is_run = "settings" in documents and "tokenizer" in documents
    return is_run and documents.get("run", {}).get("task") in PRETRAINING.values()


# Settings of a model that do not change its answers: names of files, optimizer, loss
_LEFT_OUT = ("train_ds", "validation_ds", "test_ds", "optim", "language_model", "tokenizer", "nemo_path")


def describe_task(documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of megabert.json: all that answers depend on beside weights and tokenizer."""
    model = {name: value for name, value in _model_settings(documents).items() if name not in _LEFT_OUT}
    if isinstance(model.get("dataset"), dict):
        model["dataset"] = {
            name: value for name, value in model["dataset"].items() if name not in ("data_dir", "dictionary")
        }
    model.pop("data_dir", None)
    return {"task": documents["run"]["task"], "settings": {"model": model}, "state": documents.get("task", {})}
