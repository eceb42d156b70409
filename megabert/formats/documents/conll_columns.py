"""CoNLL columns, out: a word and its tag (IOB2) a line, an empty line after a sentence, -DOCSTART- before a document."""

from .document import Document
from .losses import Losses
from .training_examples import tagged_sentences

FORMAT = "conll"


def render(document: Document, losses: Losses) -> bytes:
    """Write the sentences of a document."""
    losses["identifiers of documents and texts between words"] += 1
    losses["identifiers"] += sum(bool(entity.identifier) for entity in document.entities)
    losses["relations"] += len(document.relations)
    losses.infons(document)
    parts = ["-DOCSTART-\tO\n\n"]
    for sentence in tagged_sentences([document], counts=losses):
        words = (sentence.text[start:end] for start, end in sentence.words)
        lines = [f"{word}\t{tag.replace(' ', '_')}\n" for word, tag in zip(words, sentence.tags, strict=True)]
        parts += [*lines, "\n"] if lines else []
    return "".join(parts).encode()
