"""Scores of predicted dialogue states, beside what the official scorer passes over; files of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..formats.dialogues import SCHEMA_FILE, Dialogue, dialogue_of, dialogue_rows, read_schema
from ..metrics.dialogue_state import ALL, SEEN, UNSEEN, DialogueScorer, hidden_facts
from .dialogue_settings import DialogueSettings

# How the training data has a service: dialogues of it, its schema only, or nothing.
TRAINED, ONLY_SCHEMA, NEW = "trained", "schema_only", "unseen"
SHOWN = ("joint_goal_accuracy", "average_goal_accuracy", "active_intent_accuracy", "requested_slots_f1")
"""Of the metrics those that groups of services have."""


def dialogue_scores(
    gold: Mapping[str, Dialogue],
    found: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, str],
    settings: DialogueSettings,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return metrics in per cent with counts, and the official scorer's of all its groups, from 0 to 1.

    `training` maps services to how the training data has them; others are unseen. Raises InputError without states.
    """
    require_states(list(gold.values()))
    kinds = {kind: frozenset(name for name, own in training.items() if own == kind) for kind in (TRAINED, ONLY_SCHEMA)}
    scorer = DialogueScorer(
        {name: service for item in gold.values() for name, service in item.schema.items()},
        frozenset().union(*kinds.values()),
        settings.similarity,
        settings.use_fuzzy_match,
        settings.joint_acc_across_turn,
        kinds,
    )
    expected = {name: item.to_json() for name, item in gold.items()}
    groups = scorer.score(expected, found)
    prefixes = {ALL: "", SEEN: "seen/", UNSEEN: "unseen/", TRAINED: "trained/", ONLY_SCHEMA: "schema_only/"}
    scores: dict[str, float] = {}
    for group in [*(name for name in prefixes if name in groups), *sorted(groups.keys() - prefixes.keys())]:
        names = [*SHOWN, *groups[group]] if group == ALL else SHOWN
        prefix = prefixes.get(group, f"{group}/")
        scores |= {f"{prefix}{name}": 100 * groups[group][name] for name in names if name in groups[group]}
    for name, value in hidden_facts(scorer, expected, found).items():
        scores[name] = 100 * value if "accuracy" in name else value
    return scores, {name: values for name, values in groups.items() if name not in kinds}


def score_dialogue_files(
    gold: Sequence[Dialogue], gold_path: Path, predictions: Path, settings: DialogueSettings
) -> dict[str, Any]:
    """Score a file of predicted dialogues, or a folder of them; `official` are the official scorer's own figures.

    Seen services are those of train/schema.json beside the golden folder, unless the predictions state them.
    """
    found: dict[str, Mapping[str, Any]] = {}
    training: dict[str, str] = {}
    for file in _prediction_files(predictions):
        for row in dialogue_rows(file):
            dialogue = dialogue_of(row, {})
            found[dialogue.id] = dialogue.to_json()
            training |= dialogue.given.get("training", {})
            if not dialogue.is_labelled:
                raise InputError(f"{row.location}: a frame of the user has no state. Give each the predicted one.")
    folder = gold_path if gold_path.is_dir() else gold_path.parent
    schema_file = folder.resolve().parent / "train" / SCHEMA_FILE
    if not training and schema_file.is_file():
        training = dict.fromkeys(read_schema(schema_file), ONLY_SCHEMA)
    scores, official = dialogue_scores({item.id: item for item in gold}, found, training, settings)
    return scores | {"official": official}


def _prediction_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if ".json" in file.suffixes)
    # Files of the official scorer, and a copy of the schema, are none.
    files = [file for file in files if file.name not in ("dialogues_and_metrics.json", SCHEMA_FILE, "scores.json")]
    if not files:
        raise InputError(f"{path} has no files of dialogues. Give the folder of predictions, or a file.")
    return files


def require_states(dialogues: Sequence[Dialogue]) -> None:
    """Raise InputError for a dialogue without states."""
    for item in dialogues:
        if not item.is_labelled:
            raise InputError(f"{item.location}: a frame of the user has no state. Give each its state.")
