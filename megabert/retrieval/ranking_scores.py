"""Scores of a file with rankings against judgements, as trec_eval computes them, or accepted answers, as DPR does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError
from ..formats.json_lines import read_json_lines
from ..formats.passages import read_texts
from ..formats.relevance import check_documents, read_qrels, read_run
from ..metrics.retrieval import answer_accuracy, average, mrr_at_10, ranked, score_run

ANSWER_RANKS = (1, 5, 20, 100)


def score_retrieval(gold: Path, predictions: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Score a ranking against judgements as trec_eval -c does; beside it over the queries with a ranking alone.

    Settings: answers=FILE, JSON lines of `id` and `answers`, with collection=FILE, the passages, for DPR's accuracy:
    the share of questions of which one of the first k passages has an answer.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if len(given) < len(words) or given.keys() not in (set(), {"answers", "collection"}):
        raise ConfigError("the settings of `score retrieval` are answers=FILE and collection=FILE, both or neither.")
    judgements, run = read_qrels(gold), read_run(predictions)
    if not judgements.keys() & run.keys():
        raise InputError(f"{predictions} has none of the queries of {gold}. Are they of the same data?")
    shared = score_run(judgements, run, complete=False)
    rankings = {query: ranked(scores)[:10] for query, scores in run.items()}
    accuracies = (
        _answer_accuracies(run, predictions, Path(given["answers"]), Path(given["collection"])) if given else {}
    )
    return {
        **accuracies,
        "mrr@10": mrr_at_10(judgements, rankings),
        **average(score_run(judgements, run)),
        "retrieved_queries_only": average(shared),
        "queries_without_ranking": len(judgements) - len(shared),
        "queries_without_judgements": len(run.keys() - judgements.keys()),
        "passages_without_judgement": sum(
            name not in judgements[query] for query in shared for name in rankings[query]
        ),
    }


def _answer_accuracies(
    run: Mapping[str, Mapping[str, float]], source: Path, answers: Path, collection: Path
) -> dict[str, float]:
    """Compute DPR's accuracies of the first 1, 5, 20 and 100 passages."""
    accepted: dict[str, list[str]] = {}
    for row in read_json_lines(answers):
        own = row.values.get("answers")
        if "id" not in row.values or not isinstance(own, list) or not all(isinstance(item, str) for item in own):
            raise InputError(f'{row.location}: expected {{"id": ..., "answers": ["...", ...]}}, the answers as texts.')
        accepted[str(row.values["id"])] = own
    passages = read_texts(collection)
    rankings = {query: ranked(scores)[: max(ANSWER_RANKS)] for query, scores in run.items() if query in accepted}
    if not rankings:
        raise InputError(f"{answers} has none of the ranked queries. Are they of the same data?")
    check_documents({query: dict.fromkeys(names) for query, names in rankings.items()}, passages, source)
    return {f"answer@{k}": answer_accuracy(rankings, accepted, passages, k) for k in ANSWER_RANKS}
