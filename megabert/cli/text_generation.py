"""The command `megabert generate`: continue prompts with a causal language model."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import compose, quote
from ..config.schema import choice
from ..errors import ConfigError, InputError
from ..storage import atomic_write
from .console import log, new_settings_parser, progress_bar, require_not_input, show

if TYPE_CHECKING:
    from ..generation.generator import Continuation, Generator

STRINGS = ("prompt", "file", "output", "vocab_file", "merges_file")


@dataclass
class GenerateSettings:
    """The settings of `megabert generate`."""

    prompt: str | None = None
    """The text to continue; any characters."""
    file: str | None = None
    """Prompts instead: plain text, one a line, or JSON lines with "prompt"; - reads standard input."""
    output: str | None = None
    """File for the continuations, one JSON object a line; null: print them."""
    max_new_tokens: int = 64
    """Tokens to generate at most; fewer where the model has no more positions."""
    num_samples: int = 1
    """Continuations of each prompt; needs a temperature."""
    temperature: float = 0.0
    """Logits are divided by it before sampling; 0: greedy, always the most likely token."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    repetition_penalty: float = 1.0
    """Logits of tokens that have occurred, in the prompt too, are divided by it (negative ones multiplied); 1: none."""
    stop: list[Any] = field(default_factory=list)
    """Strings that end a text, which leaves them out: stop=[END,"two words"]."""
    seed: int = 0
    """Seed of the random numbers: the same prompts in the same order get the same samples, in batches of any size."""
    batch_size: int = 64
    """Sequences that are generated together."""
    vocab_file: str | None = None
    """GPT-2's vocab.json, or vocab.txt, where the checkpoint comes without; merges.txt is expected beside it."""
    merges_file: str | None = None
    """GPT-2's merges.txt, if it is elsewhere."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """Device type; auto: a GPU if there is one, else the CPU."""
    precision: str = choice("auto", "auto", "32", "bf16", "16")
    """Compute precision; auto: bf16 on a GPU that supports it, else 32."""


def generate(words: Sequence[str]) -> None:
    """Continue prompts with a causal language model: megabert generate RUN prompt="Radium was"."""
    note = "Each result has `prompt`, `text`, `num_tokens`, `finish` (end, stop or length) and `sample`, as JSON."
    parser = new_settings_parser("generate", generate, GenerateSettings, note)
    parser.add_argument("model", metavar="RUN", help="run folder, checkpoint of GPT-2, or published name")
    parser.add_argument("words", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(list(words))
    settings = _compose(arguments.words)
    if (settings.prompt is None) == (settings.file is None):
        raise ConfigError('Give prompt="some text" or file=FILE.')
    from ..checkpoints.catalog import cache_home
    from ..generation.load_generator import load_generator

    require_not_input(settings.output, [settings.file])
    rows = list(read_prompts(settings))
    generator = load_generator(
        arguments.model,
        home=cache_home(os.environ),
        accelerator=settings.accelerator,
        precision=settings.precision,
        vocab_file=settings.vocab_file,
        merges_file=settings.merges_file,
    )
    continuations = _generate(generator, [row["prompt"] for row in rows], settings)
    from ..formats.json_lines import to_json_lines

    results = [{**rows[number // settings.num_samples], **asdict(item)} for number, item in enumerate(continuations)]
    if settings.output is None:
        show(to_json_lines(results), end="")
    else:
        atomic_write(Path(settings.output), to_json_lines(results))
        log(f"Wrote {len(results)} continuations to {settings.output}.")


def _compose(words: Sequence[str]) -> GenerateSettings:
    """Build the settings; strings are split at the first = only."""
    overrides = []
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"{word[:60]!r} is not a setting. Write prompt={word[:60]!r} for a text to continue.")
        overrides.append(f"{key}={quote(value) if key in STRINGS else value}")
    settings: GenerateSettings = compose(GenerateSettings, overrides, owner="generate")[0]
    return settings


@contextmanager
def _shown_pieces(prompt: str) -> Iterator[Callable[[int, str], None]]:
    """Show a prompt on stderr, and then each piece of its continuation."""

    def show_piece(number: int, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    sys.stderr.write(prompt)
    try:
        yield show_piece
    finally:
        sys.stderr.write("\n")


def _generate(generator: "Generator", prompts: Sequence[str], settings: GenerateSettings) -> "list[Continuation]":
    """Generate; a single text is shown on a terminal while it is generated, of many the progress."""
    from ..generation.generator import GenerationLimits
    from ..generation.sampling import Sampling

    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)
    limits = GenerationLimits(
        settings.max_new_tokens, settings.num_samples, [str(text) for text in settings.stop], settings.seed,
        settings.batch_size,
    )  # fmt: skip
    if len(prompts) * settings.num_samples == 1 and sys.stderr is not None and sys.stderr.isatty():
        with _shown_pieces(prompts[0]) as show_piece:
            return generator.generate(prompts, sampling, limits, on_text=show_piece)
    with progress_bar("generating") as progress:
        return generator.generate(prompts, sampling, limits, progress=progress)


def read_prompts(settings: GenerateSettings) -> Iterator[Mapping[str, Any]]:
    """Read prompts with the other fields of their rows."""
    if settings.prompt is not None:
        yield {"prompt": settings.prompt}
        return
    name = settings.file or "-"
    from ..formats.json_lines import is_json_lines, json_row
    from ..formats.text_lines import read_lines

    lines = _standard_input() if name == "-" else read_lines(Path(name))
    is_json = name != "-" and is_json_lines(Path(name))
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if is_json or (name == "-" and line.lstrip().startswith("{")):
            row = json_row(line, f"{name}:{number}")
            yield {"prompt": row.string("prompt"), **row.others("prompt")}
        else:
            yield {"prompt": line.rstrip("\r\n")}


def _standard_input() -> list[str]:
    if sys.stdin is None:
        raise InputError("standard input is closed. Give prompt=TEXT or file=FILE.")
    try:
        return sys.stdin.buffer.read().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}. Convert it first.") from None
