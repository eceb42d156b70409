"""Choose the precision of a run on a CPU: bfloat16 where the processor has it and the run's answers stay the same.

The run's own validation texts are predicted in both precisions, so the choice depends on the run and the processor
alone: not on the texts that are predicted later, nor on how they are batched. Embeddings are the same if their cosine
is near 1; an encoder without a run embeds paragraphs that come with the package.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .analysis.judgments import PREDICTIONS
from .errors import MegabertError
from .formats.json_lines import json_row
from .formats.squad import read_squad
from .inference import Predictor, without_fractions
from .model.precision import cast_model, has_native_bfloat16
from .torch_session import TorchSession

VALIDATION = f"validation/{PREDICTIONS}"
MIN_EQUAL = 0.99
"""The share of answers that must be equal. Near a tie of two labels one rounding decides, in float32 as well."""
MIN_ANSWERS = 20
MIN_COSINE = 0.999
"""The smallest cosine of a text's embeddings in both precisions: a similarity then moves by 0.045 at most."""
MAX_TEXTS, MAX_CHARACTERS = 64, 20_000
"""Of the validation texts that are compared: some 4,000 tokens, half a second with a small network."""
MAX_EMBEDDED = 16
SAMPLE = Path(__file__).parent / "sample" / "squad_train.json"


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision of inference, 32 or bf16, and why."""

    precision: str
    reason: str

    def __str__(self) -> str:
        """Return the line for the log."""
        return f"precision {self.precision}: {self.reason}"


def with_measured_precision(predictor: Predictor, folder: Path | None) -> Predictor:
    """Return the predictor of a run, or of a checkpoint `folder` in one, in the precision that `choose` finds.

    Without a folder it is an encoder that embeds.

    The reason is among its notes. A predictor on a GPU, or on a CPU without native bfloat16, is returned as it is.
    """
    session = predictor.session
    if not isinstance(session, TorchSession) or session.device.type != "cpu" or not has_native_bfloat16():
        return predictor
    lower = replace(session, model=copy.deepcopy(session.model), precision="bf16")
    cast_model(lower.model, "bf16")
    choice = choose(predictor, replace(predictor, session=lower), folder)
    session = lower if choice.precision == "bf16" else session
    return replace(predictor, session=session, notes=(*predictor.notes, str(choice)))


def choose(predictor: Predictor, lower: Predictor, folder: Path | None) -> PrecisionChoice:
    """Compare the answers of a predictor and of the same in lower precision to the first validation texts of its run.

    Answers are what has gold labels: entities, labels, the text of an answer; not their scores. Or embeddings.
    """
    hint = "precision=bf16 takes bfloat16"
    places = (folder, folder.parent.parent) if folder else ()
    files = [place / VALIDATION for place in places if (place / VALIDATION).is_file()]
    if predictor.task.is_embedding:
        file = files[0] if files else SAMPLE
        try:
            return _compare_embeddings(predictor, lower, file)
        except MegabertError as error:
            return PrecisionChoice("32", f"bfloat16 cannot be compared on {file.name} ({error}); {hint}.")
    if not files or predictor.session.needs_targets or not predictor.task.input_fields:
        return PrecisionChoice("32", f"the run has no {VALIDATION} on which bfloat16 can be compared; {hint}.")
    try:
        examples, names = _validation_examples(predictor, files[0])
        before, after = (_answers(item, examples, names) for item in (predictor, lower))
    except MegabertError as error:
        return PrecisionChoice("32", f"bfloat16 cannot be compared on {VALIDATION} ({error}); {hint}.")
    total = max(before.total(), after.total())
    equal = (before & after).total()
    found = f"{equal:,} of {total:,} answers to the run's first {len(examples)} validation texts are those of float32"
    if total < MIN_ANSWERS:
        return PrecisionChoice("32", f"too few answers to decide, {found}; {hint}.")
    if equal < MIN_EQUAL * total:
        return PrecisionChoice("32", f"in bfloat16 only {found}; {hint}.")
    return PrecisionChoice("bf16", f"{found}; precision=32 takes float32.")


def _compare_embeddings(predictor: Predictor, lower: Predictor, file: Path) -> PrecisionChoice:
    """Compare the embeddings of the first texts of a run's validation, or of the package's sample."""
    if file == SAMPLE:
        texts = [item.context for item in read_squad(file)]
    else:
        with file.open(encoding="utf-8") as lines:
            rows = (json_row(line, f"{file}:{number}").values for number, line in enumerate(lines, 1))
            texts = [row["text"] for row in islice(rows, 4 * MAX_EMBEDDED) if isinstance(row.get("text"), str)]
    texts = [text for text in dict.fromkeys(texts) if text.strip()][:MAX_EMBEDDED]
    pairs = zip(*(item.embed(texts) for item in (predictor, lower)), strict=True)
    cosine = min((float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs), default=0.0)
    found = f"embeddings of {len(texts)} texts have a cosine of {cosine:.4f} or more with those of float32"
    if cosine >= MIN_COSINE:
        return PrecisionChoice("bf16", f"{found}; precision=32 takes float32.")
    return PrecisionChoice("32", f"in bfloat16 {found}, less than {MIN_COSINE}; precision=bf16 takes bfloat16.")


def _validation_examples(predictor: Predictor, file: Path) -> tuple[list[Any], set[str]]:
    """Make unlabelled examples of the first validation texts; also returns the names of their answers."""
    examples, names, room = list[Any](), set[str](), MAX_CHARACTERS
    with file.open(encoding="utf-8") as lines:
        for number, line in zip(range(1, MAX_TEXTS + 1), lines, strict=False):
            row = json_row(line, f"{file}:{number}").values
            fields = {name: row[name] for name in predictor.task.input_fields if name in row}
            room -= sum(len(str(value)) for value in fields.values())
            if room < 0 and examples:
                break
            examples.append(predictor.task.example(id=str(number), **fields))
            names |= row.get("gold", {}).keys()
    return examples, names | {"answer"} if "answers" in names else names


def _answers(predictor: Predictor, examples: Sequence[Any], names: set[str]) -> Counter[str]:
    """Count the answers to examples, each with the example's number."""
    found: Counter[str] = Counter()
    for number, prediction in enumerate(predictor.predict_examples(examples)):
        values = predictor.task.to_json(prediction)
        for name in sorted(names & values.keys()):
            items = values[name] if isinstance(values[name], list) else [values[name]]
            kept = [without_fractions(item) for item in items if not isinstance(item, float)]
            found.update(f"{number} {name} {json.dumps(item, default=str)}" for item in kept)
    return found
