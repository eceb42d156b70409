"""Words that stand for each other in a dictionary: names of one concept differ in them, "tumor" and "neoplasm"."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import permutations

LEAST_CONCEPTS, LEAST_SHARE = 2, 0.8
"""Concepts in which two words must stand for each other, and of the pairs of names that differ in them the share that
is of one concept. Of NCBI-disease's training mentions, 25 are linked right by such words that were not, 2 wrong."""
MOST_NAMES = 200_000
"""Names that are compared; more take too much memory."""


def word_synonyms(names: Iterable[tuple[str, int]]) -> dict[str, dict[str, float]]:
    """Map words to others that may take their place, with the share, from normalized names and their concepts.

    The names of a pair differ in one word and share another. Numbers and single letters are no such words.
    """
    rests: dict[tuple[str, ...], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, concept in names:
        words = sorted(set(name.split()))
        for place, word in enumerate(words if len(words) > 1 else ()):
            if len(word) > 1 and word.isalpha():
                rests[(*words[:place], *words[place + 1 :])][word].add(concept)
    same: dict[tuple[str, str], set[int]] = defaultdict(set)
    for found in rests.values():
        by_concept = defaultdict[int, list[str]](list)
        for word, concepts in found.items():
            for concept in concepts:
                by_concept[concept].append(word)
        for concept, own in by_concept.items():
            for pair in permutations(own, 2):
                same[pair].add(concept)
    counts = {pair: len(concepts) for pair, concepts in sorted(same.items()) if len(concepts) >= LEAST_CONCEPTS}
    others = defaultdict[str, set[str]](set)
    for word, other in counts:
        others[word].add(other)
    different = Counter(
        (word, other)
        for found in rests.values()
        for word in found.keys() & others.keys()
        for other in found.keys() & others[word]
        if found[word].isdisjoint(found[other])
    )
    synonyms = defaultdict[str, dict[str, float]](dict)
    for (word, other), count in counts.items():
        share = round(count / (count + different[word, other]), 3)
        if share >= LEAST_SHARE:
            synonyms[word][other] = share
    return dict(synonyms)
