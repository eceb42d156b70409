"""The linker beside plain arithmetic on random dictionaries: the same names, order and similarities."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from megabert.linking import gram_index
from megabert.linking.linker import INITIALS, NO_NUMBER, OTHER_NUMBER, SYNONYM, Linker
from megabert.linking.name_keys import gram_hashes, initialism, initials, normalized, series, words_key
from tests.linking.conftest import build

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "ru"]


def random_name(rng):
    words = ["".join(rng.choice(SYLLABLES, rng.integers(2, 5))) for _ in range(rng.integers(1, 4))]
    return " ".join(words + [str(rng.integers(1, 5))] * int(rng.random() < 0.3))


def grams_of(key):
    return set(gram_hashes([key])[0].tolist())


class PlainLinker:
    """Ranks all names that share one of the rarer grams, as the linker's words say."""

    def __init__(self, dictionary, most_entries):
        self.dictionary, self.most_entries = dictionary, most_entries
        self.names = dictionary.names(0, len(dictionary))
        self.keys = list(map(normalized, self.names))
        self.grams = list(map(grams_of, self.keys))
        counts = Counter(gram for own in self.grams for gram in own)
        self.idf = defaultdict(lambda: math.log(1 + len(self.names)) + 1)
        self.idf |= {gram: math.log((1 + len(self.names)) / (1 + count)) + 1 for gram, count in counts.items()}
        self.lengths = list(map(self.length, self.grams))
        self.counts = counts
        self.concepts = dictionary.concepts_of(np.arange(len(self.names))).tolist()

    def length(self, grams):
        return math.sqrt(sum(self.idf[gram] ** 2 for gram in grams)) or 1.0

    def similarity(self, place, wanted, rarest):
        shared = wanted & self.grams[place]
        if not shared & rarest:
            return 0.0
        return round(sum(self.idf[gram] ** 2 for gram in shared) / self.length(wanted) / self.lengths[place], 6)

    def ranked(self, text):
        key, own = normalized(text), initialism(text)
        wanted = grams_of(key)
        known = sorted(wanted & self.counts.keys(), key=lambda gram: (self.counts[gram], gram))
        sums = np.cumsum([self.counts[gram] for gram in known])
        rarest = set(known[: max(int((sums <= self.most_entries).sum()), 1)])
        find = self.dictionary.exact
        exact = find(key) or find(key.replace(" ", "")) or self.dictionary.in_series(key)
        spelled = [place for place, name in enumerate(self.keys) if own in initials(name)] if not exact else []
        changed = {} if exact or spelled else self.dictionary.synonym_keys(key)
        rows = []
        for place, name in enumerate(self.keys):
            score = self.similarity(place, wanted, rarest)
            mine, other = ((series(item) or ("", ""))[1] for item in (key, name))
            score *= 1 if mine == other else OTHER_NUMBER if mine and other else NO_NUMBER
            if place in spelled:
                score = max(score, INITIALS / len({self.concepts[item] for item in spelled}))
            score = max(score, SYNONYM * changed.get(words_key(name.split()), 0))
            score = min(max(score, float(place in exact)), 1.0)
            concept = self.concepts[place]
            order = place != self.concepts.index(concept), -self.concepts.count(concept), place
            if score:
                rows.append((place not in exact, -score, *order))
        return [(self.names[place], pytest.approx(-score, abs=2e-6)) for _, score, *_, place in sorted(rows)]


@pytest.mark.parametrize("most_entries", [30, 300, 100_000])
def test_names_are_those_of_plain_arithmetic(tmp_path, monkeypatch, most_entries):
    rng = np.random.default_rng(most_entries)
    names = [[random_name(rng) for _ in range(rng.integers(1, 4))] for _ in range(80)]
    for number, own in enumerate(names):  # bafo and digu stand for each other
        own += [f"bafo {own[0]}", f"digu {own[0]}"] * (number % 9 == 0)
    table = "".join(f"LAB:{number}||{'|'.join(own)}\n" for number, own in enumerate(names))
    dictionary = build(tmp_path, table)
    monkeypatch.setattr(gram_index, "MAX_POSTINGS", most_entries)
    names = dictionary.names(0, len(dictionary))
    texts = [random_name(rng) for _ in range(15)] + names[:3] + [name[1:] for name in names[:10]]
    texts += [" ".join(reversed(name.split())) for name in names[10:20]] + ["BFL", "CBF"]
    texts += [f"digu {name}" for name in names[:8]]
    links = {k: Linker(dictionary).link(texts, k=k) for k in (1, 6)}
    plain = PlainLinker(dictionary, most_entries)
    for place, text in enumerate(texts):
        expected = plain.ranked(text)
        for k, found in links.items():
            candidates = [(item.name, item.similarity) for item in found[place].parts[0].candidates]
            assert candidates == expected[:k], (text, k)
