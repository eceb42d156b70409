"""CrossEncoder: a run of text_ranking that reads a mention in its sentence together with each of its candidates.

Its logits are added, times a weight, to the scores by which the candidates are ordered. `candidate_pairs` makes the
texts that such a run is trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..inference import Predictor, Session
from ..tasks.retrieval_data import RetrievalExample
from .candidate_ranker import RANKED, kind_of
from .candidates import LinkedPart, NameCandidate
from .dictionary import Dictionary
from .ranker_fitting import CandidateExample, is_right

Parts = tuple[LinkedPart, ...]


@dataclass(frozen=True)
class CrossEncoder:
    """Orders candidates anew."""

    predictor: Predictor
    dictionary: Dictionary
    weight: float = 0.5

    @property
    def digest(self) -> list[Any]:
        """Identifies the run and the weight."""
        return [self.predictor.digest, self.weight]

    def with_session(self, session: Session) -> "CrossEncoder":
        """Return it with the session of another process."""
        return replace(self, predictor=replace(self.predictor, session=session))

    def reordered(self, mentions: Sequence[Parts], contexts: Sequence[str], slope: float) -> list[Parts]:
        """Order the candidates of the parts of mentions, each with its sentence.

        The score of a candidate without one of a CandidateRanker is its similarity times `slope`.
        """
        rows = [(part, context) for parts, context in zip(mentions, contexts, strict=True) for part in parts]
        distinct = list(dict.fromkeys(row for row in rows if len(row[0].candidates) > 1))
        examples = []
        for part, context in distinct:
            texts = tuple(candidate_text(self.dictionary, item) for item in part.candidates)
            query, names = mention_text(part.text, context), tuple(map(str, range(len(texts))))
            examples.append(RetrievalExample("", query, texts, names, text=query))
        ordered = {}
        for (part, context), found in zip(distinct, self.predictor.predict_examples(examples), strict=True):
            own = part.scores or [item.similarity * slope for item in part.candidates]
            scores = [score + self.weight * found.scores[str(place)] for place, score in enumerate(own)]
            order = sorted(range(len(scores)), key=lambda place: -round(scores[place], 4))
            ordered[part, context] = LinkedPart(part.text, tuple(part.candidates[place] for place in order))
        each = iter(ordered.get(row, row[0]) for row in rows)
        return [tuple(next(each) for _ in parts) for parts in mentions]


def mention_text(text: str, context: str) -> str:
    """Return what is read of a mention: its text, abbreviations written out, and its sentence."""
    return f"{text} : {context}" if context else text


def candidate_text(dictionary: Dictionary, candidate: NameCandidate) -> str:
    """Return what is read of a candidate: name, preferred name of its concept, and the kind of its identifier."""
    preferred = dictionary.preferred(candidate.concept)
    further = f" : {preferred}" if preferred.lower() != candidate.name.lower() else ""
    return f"{candidate.name}{further} ({kind_of(candidate.identifiers[0])})"


def candidate_pairs(dictionary: Dictionary, examples: Sequence[CandidateExample]) -> Iterator[dict[str, Any]]:
    """Yield query, positive and negatives of the mentions that have a right and a wrong candidate."""
    for item in examples:
        for part in (item.whole,) if len(item.gold.identifiers) == 1 or not item.ways else item.ways[0]:
            right = [one for one in part.candidates[:RANKED] if is_right([one], item.gold)]
            wrong = [one for one in part.candidates[:RANKED] if one not in right]
            if right and wrong:
                yield {
                    "id": item.gold.id,
                    "query": mention_text(part.text, item.gold.context),
                    "positive": candidate_text(dictionary, right[0]),
                    "negatives": list(dict.fromkeys(candidate_text(dictionary, one) for one in wrong)),
                }
