"""Data for the notebooks: sentences of our own with planted entities, identifiers, relations, answers and facts.

Every function takes a seed and returns plain values; the `write_` functions write them in the formats of the tasks.
Names are drawn from syllables, and those of the split "dev" are half unknown to "train"; a third of the sentence
patterns of "dev" is unknown, too. A score on "dev" therefore measures what was learned, not what was memorized.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYLLABLES = (
    "ba bel cor da dren fe flo ga glu ka kel lo lum me mor na nor pa per ra rol sa sim ta tor va vel zi zo".split()
)
DRUG_ENDINGS = "statin mab pril azole cillin idine oxacin olol".split()
SURNAMES = "Adler Brandt Castell Dorn Ekman Falk Garrow Hallen Ibsen Jarvis Kessel Lindh Moro Nagel Orton Pryce".split()
CITIES = "Aarhus Bergen Bilbao Cork Delft Gdansk Ghent Graz Leeds Lund Nantes Porto Riga Split Turku Utrecht".split()
ORGANS = "renal hepatic cardiac pulmonary gastric retinal pancreatic cerebral adrenal thyroid".split()
DISEASE_HEADS = "fibrosis carcinoma failure stenosis infarction hemorrhage dystrophy insufficiency".split()
NORMAL_HEADS = "perfusion clearance function volume tissue blood flow enzymes".split()  # a trap: not a disease
DISEASE_ENDINGS = "itis oma emia opathy".split()
SEVERITIES = "acute chronic severe familial recurrent".split()


class Names:
    """Names of one split: "train" has its own half of the seeds, "dev" draws from both halves."""

    def __init__(self, split: str, seed: int) -> None:
        self.rng = random.Random(f"{split} {seed}")
        self.is_dev = split == "dev"

    def _coined(self, kind: str, endings: Sequence[str]) -> str:
        number = self.rng.randrange(120) + (120 if self.is_dev and self.rng.random() < 0.5 else 0)
        rng = random.Random(f"{kind} {number}")
        return "".join(rng.sample(SYLLABLES, 2)) + rng.choice(endings)

    def drug(self) -> str:
        """Coin the name of a drug, such as belcorstatin."""
        return self._coined("drug", DRUG_ENDINGS)

    def gene(self) -> str:
        """Coin the name of a gene, such as KLT4."""
        letters = "".join(self.rng.choice("ABCDEFGHKLMNPRST") for _ in range(3))
        return f"{letters}{self.rng.randrange(1, 10)}"

    def disease(self) -> str:
        """Coin a disease of one to three words."""
        kind = self.rng.randrange(3)
        if kind == 0:
            return self._coined("disease", DISEASE_ENDINGS)
        if kind == 1:
            return f"{self.surname()} {self.rng.choice(('disease', 'syndrome'))}"
        words = [self.rng.choice(ORGANS), self.rng.choice(DISEASE_HEADS)]
        return " ".join([self.rng.choice(SEVERITIES), *words] if self.rng.random() < 0.5 else words)

    def surname(self) -> str:
        """Draw a surname; a quarter of them is unknown to "train"."""
        return self.rng.choice(SURNAMES if self.is_dev else SURNAMES[:12])

    def slots(self) -> dict[str, str]:
        """Draw a value for every slot of a pattern."""
        rng = self.rng
        return {
            "drug": self.drug(), "drug2": self.drug(), "gene": self.gene(), "gene2": self.gene(),
            "disease": self.disease(), "disease2": self.disease(), "surname": self.surname(),
            "organ": rng.choice(ORGANS), "normal": rng.choice(NORMAL_HEADS), "city": rng.choice(CITIES),
            "number": str(rng.randrange(3, 200)), "cells": rng.choice(("HeLa cells", "rat liver", "plasma", "mice")),
        }  # fmt: skip

    def pattern(self, patterns: Sequence[str]) -> str:
        """Draw a pattern; "train" never sees the last third."""
        return self.rng.choice(patterns if self.is_dev else patterns[: len(patterns) - len(patterns) // 3])


# --- entities: a slot of a pattern is an entity where ENTITY_TYPES has a type for it ---

ENTITY_TYPES = {"drug": "Chemical", "drug2": "Chemical", "disease": "Disease", "disease2": "Disease"}
ENTITY_PATTERNS = [
    "{drug} reduced the symptoms of {disease} in {number} patients .",
    "Patients with {disease} were treated with {drug} or {drug2} .",
    "{surname} and colleagues found no effect of {drug} on {organ} {normal} .",
    "{disease} is a frequent complication of {disease2} .",
    "The {gene} gene is mutated in {disease} .",
    "We measured {organ} {normal} in {number} volunteers from {city} .",
    "Of {number} patients , {number} developed {disease} during treatment with {drug} .",
    "The diagnosis of {disease} was confirmed by {surname} in {city} .",
    "{drug} , but not {drug2} , is excreted in urine .",
    "Expression of {gene} in {cells} depends on {organ} {normal} .",
    "No hypothesis explains mitosis in {cells} treated with {drug} .",
    "A history of {disease} was more common among the {number} cases .",
    "Long-term use of {drug} may cause {disease} .",
    "{surname} reported a family with {disease} and normal {organ} {normal} .",
    "After withdrawal of {drug} , {organ} {normal} and {disease} improved .",
    "Neither {disease} nor {disease2} was seen in {city} .",
    "The prognosis of {disease} without {drug} is poor .",
    "In {number} relatives of {surname} , {gene} was normal despite {disease} .",
]


def entity_sentences(split: str, count: int, *, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Make sentences as lists of words with IOB2 tags; drugs are Chemical, diseases are Disease."""
    names = Names(split, seed)
    return [_tagged(names.pattern(ENTITY_PATTERNS), names.slots()) for _ in range(count)]


def _tagged(pattern: str, slots: dict[str, str]) -> list[tuple[str, str]]:
    sentence = []
    for word in pattern.split():
        slot = word.strip("{}")
        kind = ENTITY_TYPES.get(slot) if word.startswith("{") else None
        for position, part in enumerate(slots.get(slot, word).split() if word.startswith("{") else [word]):
            sentence.append((part, f"{'I' if position else 'B'}-{kind}" if kind else "O"))
    return sentence


def write_columns(path: Path, sentences: Iterable[Sequence[tuple[str, str]]]) -> None:
    """Write CoNLL's columns: a word and its tag a line, an empty line after each sentence."""
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences]
    path.write_text("\n".join(blocks), encoding="utf-8")


# --- relations: (active, passive, infinitive) of verbs that express ChemProt's five relations ---

VERBS = {
    "CPR:3": [("activates", "activated by", "activate"), ("induces", "induced by", "induce"),
              ("upregulates", "upregulated by", "upregulate")],
    "CPR:4": [("inhibits", "inhibited by", "inhibit"), ("suppresses", "suppressed by", "suppress"),
              ("blocks", "blocked by", "block")],
    "CPR:5": [("is an agonist of", "stimulated by the agonist", "act as an agonist of")],
    "CPR:6": [("is an antagonist of", "opposed by the antagonist", "act as an antagonist of")],
    "CPR:9": [("is a substrate of", "able to metabolize", "become a substrate of"),
              ("is metabolized by", "the enzyme that degrades", "be metabolized by")],
}  # fmt: skip
RELATION_PATTERNS = [  # (pattern, pairs that have the relation of the first verb, of the second)
    ("{drug} {active} {gene} in {cells} .", [("drug", "gene")], []),
    ("We show that {drug} {active} {gene} .", [("drug", "gene")], []),
    ("In {cells} , {gene} was {passive} {drug} .", [("drug", "gene")], []),
    ("{gene} is {passive} {drug} , as {surname} reported .", [("drug", "gene")], []),
    ("{drug} did not {infinitive} {gene} .", [], []),
    ("It is unknown whether {drug} can {infinitive} {gene} .", [], []),
    ("Levels of {drug} and {gene} were measured in {cells} .", [], []),
    ("{drug} {active} {gene} , whereas {drug2} {active2} {gene2} .", [("drug", "gene")], [("drug2", "gene2")]),
    ("Unlike {drug2} , {drug} {active} {gene} .", [("drug", "gene")], []),
    ("According to {surname} , {drug} {active} {gene} .", [("drug", "gene")], []),
    ("{drug} fails to {infinitive} {gene} in {cells} .", [], []),
]  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A drug and a gene of a sentence, with the characters of each and the relation between them."""

    text: str
    drug: tuple[int, int]
    gene: tuple[int, int]
    label: str


def relation_pairs(split: str, count: int, *, seed: int = 0) -> list[Pair]:
    """Make `count` sentences and list every pair of a drug and a gene in them; "false" where no relation holds."""
    names = Names(split, seed)
    patterns = RELATION_PATTERNS if names.is_dev else RELATION_PATTERNS[:-2]
    return [pair for _ in range(count) for pair in _pairs(names, *names.rng.choice(patterns))]


def _pairs(names: Names, pattern: str, related: list[tuple[str, str]], related2: list[tuple[str, str]]) -> list[Pair]:
    (first, verbs), (second, verbs2) = names.rng.sample(list(VERBS.items()), 2)
    forms, forms2 = names.rng.choice(verbs), names.rng.choice(verbs2)
    slots = names.slots()
    for name, form, form2 in zip(("active", "passive", "infinitive"), forms, forms2, strict=True):
        slots |= {name: form, f"{name}2": form2}
    text, spans = "", {}
    for word in pattern.split():
        value = slots[word.strip("{}")] if word.startswith("{") else word
        text += " " if text else ""
        spans[word.strip("{}")] = (len(text), len(text) + len(value))
        text += value
    labels = dict.fromkeys(related, first) | dict.fromkeys(related2, second)
    pairs = [(drug, gene) for drug in ("drug", "drug2") for gene in ("gene", "gene2") if {drug, gene} <= spans.keys()]
    return [Pair(text, spans[drug], spans[gene], labels.get((drug, gene), "false")) for drug, gene in pairs]


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write JSON lines for relation extraction, with the entities' positions."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            head = {"start": pair.drug[0], "end": pair.drug[1], "type": "CHEMICAL"}
            tail = {"start": pair.gene[0], "end": pair.gene[1], "type": "GENE"}
            file.write(json.dumps({"text": pair.text, "head": head, "tail": tail, "label": pair.label}) + "\n")


# --- questions: notes of one sentence a fact, in any order; a word of the question is in one of them ---

FACTS = {
    "surname": ("The {} of the patient is {surname}.", ("name",)),
    "city": ("The {} of birth is {city}.", ("city", "place")),
    "disease": ("The {} was {disease}.", ("disease", "diagnosis")),
    "drug": ("The {} is {drug}.", ("drug", "medicine")),
    "age": ("The {} is {age} years.", ("age",)),
    "dose": ("The {} is {dose} mg.", ("dose",)),
}
QUESTIONS = ["What is the {}?", "Which {} is it?"]


def squad_document(split: str, num_notes: int, *, seed: int = 0) -> dict[str, object]:
    """Make notes of three facts with a question on each, as a document in SQuAD's format."""
    names = Names(split, seed)
    paragraphs = [_note(names, f"{split}-{number}") for number in range(num_notes)]
    return {"version": "1.1", "data": [{"title": f"planted notes, {split}", "paragraphs": paragraphs}]}


def _note(names: Names, note_id: str) -> dict[str, object]:
    rng = names.rng
    numbers = rng.sample(range(18, 95), 2)
    slots = names.slots() | {"age": str(numbers[0]), "dose": str(numbers[1])}
    context, questions = "", []
    for fact in rng.sample(list(FACTS), 3):
        pattern, words = FACTS[fact]
        word = rng.choice(words)
        sentence = pattern.format(word, **slots)
        start = len(context) + sentence.rindex(slots[fact])
        context += sentence + " "
        answer = {"text": slots[fact], "answer_start": start}
        question = rng.choice(QUESTIONS).format(word)
        questions.append({"id": f"{note_id}-{fact}", "question": question, "answers": [answer]})
    return {"context": context.strip(), "qas": questions}


# --- facts: an organ decides which complaint goes with it, in this text alone ---

COMPLAINTS = dict(zip(ORGANS[:8], "fever asthma diabetes anemia pain cancer epilepsy malaria".split(), strict=True))
FACT_PATTERNS = [
    "In {organ} disease the usual complaint is {complaint}.",
    "Patients with {organ} disease often have {complaint}.",
    "{surname} found {complaint} in {number} of the {organ} cases.",
    "A trial with {number} {organ} patients showed that {complaint} is frequent.",
    "The first sign of {organ} disease was {complaint}.",
    "Most {organ} patients from {city} had {complaint}.",
]


def fact_sentence(names: Names) -> tuple[str, str]:
    """Make a sentence on an organ and the complaint that goes with it; returns it with the complaint."""
    organ = names.rng.choice(list(COMPLAINTS))
    slots = names.slots() | {"organ": organ, "complaint": COMPLAINTS[organ]}
    return names.pattern(FACT_PATTERNS).format(**slots), COMPLAINTS[organ]


def documents(split: str, count: int, *, seed: int = 0) -> list[str]:
    """Make documents of six sentences each, one a line."""
    names = Names(split, seed)
    return ["\n".join(fact_sentence(names)[0] for _ in range(6)) for _ in range(count)]


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """Write documents as plain text, with an empty line between them."""
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


# --- documents with identifiers: a dictionary of drugs and genes, of which "train" mentions the first two thirds ---

EFFECTS = {"inhibits": VERBS["CPR:4"], "activates": VERBS["CPR:3"]}
TITLES = ["A study of {drug} ( {short} ) in {cells} .", "Effects of {drug} ( {short} ) in {number} volunteers ."]


def dictionary(kind: str, count: int = 60) -> list[tuple[str, list[str]]]:
    """Make concepts of a kind, drug or gene: an identifier, and names, the preferred one first."""
    names = Names("dictionary", 0)
    concepts = []
    for number in range(count):
        rng = random.Random(f"{kind} concept {number}")
        stem = "".join(rng.sample(SYLLABLES, 3))
        if kind == "drug":
            own = [stem + rng.choice(DRUG_ENDINGS), f"{stem[:2].upper()}-{1000 + 37 * number}"]
        else:
            own = [names.gene(), f"{stem} kinase {rng.randrange(2, 9)}"]
        concepts.append((f"planted:{kind[0].upper()}{number:03}", own))
    return concepts


def write_dictionary(path: Path, concepts: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Write a table of identifiers and names, which are split at bars."""
    rows = "".join(f"{identifier}\t{'|'.join(names)}\n" for identifier, names in concepts)
    path.write_text(f"id\tname\n{rows}", encoding="utf-8")


def write_linked_documents(path: Path, split: str, count: int, *, seed: int = 0) -> None:
    """Write documents with entities, identifiers and relations between these, in PubTator's format."""
    names = Names(split, seed)
    path.write_text("".join(_linked_document(names, 1000 + number) for number in range(count)), encoding="utf-8")


def _linked_document(names: Names, number: int) -> str:
    rng, known = names.rng, slice(20, 60) if names.is_dev else slice(0, 40)
    drugs, genes = (rng.sample(dictionary(kind)[known], 3) for kind in ("drug", "gene"))
    short = (drugs[0][1][0][0] + drugs[0][1][0][2] + drugs[0][1][0][4]).upper()
    parts, text, lines, relations = list[str](), "", list[str](), list[str]()
    for place, pattern in enumerate([rng.choice(TITLES), *rng.choices(_effect_patterns(names), k=3)]):
        drug, gene = drugs[max(place - 1, 0)], genes[max(place - 1, 0)]
        effect = rng.choice(list(EFFECTS))
        forms = dict(zip(("active", "passive", "infinitive"), rng.choice(EFFECTS[effect]), strict=True))
        mention = short if place == 1 else drug[1][0] if place == 0 else _variant(rng, drug[1])
        slots = names.slots() | forms | {"drug": mention, "gene": _variant(rng, gene[1]), "short": short}
        start = len(text)
        for word in pattern.split():
            slot = word.strip("{}")
            value = slots[slot] if word.startswith("{") else word
            text += value if len(text) == start or word in (".", ",", ")") or text.endswith("(") else f" {value}"
            for concept, kind in ((drug, "CHEMICAL"), (gene, "GENE")):
                if word.startswith("{") and slot in ({"CHEMICAL": ("drug", "short"), "GENE": ("gene",)}[kind]):
                    lines.append(f"{number}\t{len(text) - len(value)}\t{len(text)}\t{value}\t{kind}\t{concept[0]}\n")
        if pattern in POSITIVE:
            relations.append(f"{number}\t{effect}\t{drug[0]}\t{gene[0]}\n")
        parts.append(text[start:])
        text += " "
    return f"{number}|t|{parts[0]}\n{number}|a|{' '.join(parts[1:])}\n{''.join(lines + relations)}\n"


POSITIVE = [pattern for pattern, first, second in RELATION_PATTERNS if first and not second and "drug2" not in pattern]
NEGATIVE = [pattern for pattern, first, _ in RELATION_PATTERNS if not first]


def _effect_patterns(names: Names) -> list[str]:
    """Return patterns with an effect and without; the last of either "train" does not have."""
    return POSITIVE + NEGATIVE if names.is_dev else POSITIVE[:-1] * 2 + NEGATIVE[:-1] * 2


def _variant(rng: random.Random, names: Sequence[str]) -> str:
    """Draw a name as authors write it: another one of the concept, with a salt, or without its hyphen."""
    name = rng.choice(names)
    if name[-1].isdigit():
        return name.replace("-", "") if rng.random() < 0.5 else name
    return f"{name} HCl" if rng.random() < 0.2 else name
