"""Predict the lines of standard input as they arrive: an answer for each, whatever the others are."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from ..errors import InputError
from ..formats.json_lines import json_row, to_json_lines
from ..tasks.prediction_rows import pass_through
from .console import flush_output, log, show

if TYPE_CHECKING:
    from ..inference import Predictor

# Lines that are predicted together if so many have arrived.
CHUNK = 1024
READ_SIZE, MAX_LINE = 2**20, 2**26


@dataclass(frozen=True)
class _Line:
    """An example and the fields of its JSON object that the task does not read."""

    number: int
    example: Any
    given: dict[str, Any]


def predict_standard_input(predictor: "Predictor") -> None:
    """Predict lines as they arrive, each a JSON object with the fields of an example, or plain text.

    A line that cannot be predicted is reported at once, and all other lines are predicted; then raises InputError.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed. Give file=FILE, or a text.")
    num_bad = num_lines = 0
    for first, lines in _arriving_lines(sys.stdin.buffer):
        parsed, bad = [], 0
        for number, line in enumerate(lines, start=first):
            if line.strip():
                num_lines += 1
                try:
                    parsed.append(_parse(predictor, line, number))
                except InputError as error:
                    bad += _report(error)
        num_bad += bad + _predict(predictor, parsed)
        flush_output()
    if num_bad:
        raise InputError(f"standard input: {num_bad} of {num_lines} lines could not be predicted.")


def _arriving_lines(stream: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield lines, without waiting for more than have arrived, with the number of the first."""
    first, unfinished = 1, [b""]
    while data := stream.read1(READ_SIZE):  # type: ignore[attr-defined]
        *complete, rest = data.split(b"\n")
        if complete:
            complete[0] = b"".join([*unfinished, complete[0]])
            unfinished = []
        unfinished.append(rest)
        for start in range(0, len(complete), CHUNK):
            yield first + start, complete[start : start + CHUNK]
        first += len(complete)
        if sum(map(len, unfinished)) > MAX_LINE:
            raise InputError(f"standard input:{first}: a line of more than {MAX_LINE:,} bytes. Is this text?")
    if any(unfinished):
        yield first, [b"".join(unfinished)]


def _parse(predictor: "Predictor", line: bytes, number: int) -> _Line:
    """Parse a JSON object with the fields of an example, or plain text; the default of id is the line's number."""
    location = f"standard input:{number}"
    try:
        text = line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise InputError(f"{location}: not UTF-8 text.") from None
    values = json_row(text, location).values if text.lstrip().startswith("{") else {"text": text}
    taken = {*predictor.task.input_fields, "id"} if predictor.task.input_fields else values.keys()
    fields = {name: value for name, value in values.items() if name in taken}
    if fields.get("id") is None:
        fields["id"] = str(number)
    given = {name: value for name, value in values.items() if name not in taken}
    try:
        return _Line(number, predictor.task.example(**fields), given)
    except InputError as error:
        found = f" Found {', '.join(map(repr, given))}." if given else ""
        raise InputError(f"{location}: {error}{found}") from None


def _predict(predictor: "Predictor", lines: list[_Line]) -> int:
    """Print a row for each line, and report those that cannot be predicted; returns their number."""
    if not lines:
        return 0
    try:
        predictions = predictor.predict_examples([line.example for line in lines])
    except InputError as error:
        if len(lines) == 1:
            return _report(InputError(f"standard input:{lines[0].number}: {error}"))
        return sum(_predict(predictor, [line]) for line in lines)
    pairs = zip(lines, predictions, strict=True)
    rows = [pass_through(predictor.task.to_row(line.example, item), line.given) for line, item in pairs]
    show(to_json_lines(rows), end="")
    return 0


def _report(error: InputError) -> int:
    log(f"megabert: {error}")
    return 1
