"""The command that tells what a training would cost before it is started: plan."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import quote
from ..config.schema import choice
from ..errors import ConfigError
from .console import log, new_parser, to_json

if TYPE_CHECKING:
    from ..model.config import EncoderConfig
    from ..planner.cost_model import Estimate
    from ..planner.search import Point, Question

_CAVEAT = (
    "One and two H100s were measured and agree within 8 %; more GPUs are computed from measured rates of products, "
    "copies and links (docs/scaling.md)."
)
_ROWS = 12


@dataclass
class PlanSettings:
    """The settings of `megabert plan`."""

    model: str = "345m"
    """345m, 1.3b, 3.9b, gpt-345m, 2.5b, 8.3b, a name of `megabert models`, a config.json or a checkpoint."""
    gpus: int = 8
    """All GPUs together."""
    gpus_per_node: int | None = None
    """GPUs of one machine; null: as many as such machines usually have."""
    gpu: str = choice("h100", "h100", "h200", "a100", "v100")
    """Kind of GPU."""
    task: str = choice("pretrain", "pretrain", "finetune")
    """pretrain has the vocabulary's head on the masked tokens, finetune a small one."""
    batch: int | None = None
    """Texts of an optimizer step on all GPUs; null: 1024 to pre-train, as in Megatron-LM's paper, 32 a GPU to
    fine-tune."""
    length: int | None = None
    """Tokens of a text; null: as many as the network has positions."""
    precision: str = choice("bf16", "bf16", "16", "32")
    """What the network computes in."""
    tensor: int | None = None
    """Only layouts with this parallel.tensor; null: all that make sense, here and below."""
    fsdp: int | None = None
    """Only layouts with this parallel.fsdp; -1: all processes that see different texts."""
    sequence: bool | None = None
    """Only layouts with this parallel.sequence; null: wherever there is tensor parallelism."""
    activation_checkpointing: bool | None = None
    """Only layouts with this parallel.activation_checkpointing."""
    overlap: float = 0.0
    """Share of the sum of gradients over the data axis that is hidden behind the backward pass, 0 to 1."""


def plan(words: Sequence[str]) -> int:
    """Estimate memory, time and the best layout of GPUs: megabert plan model=1.3b gpus=64."""
    from ..config.listing import list_settings, show
    from ..config.parser import compose

    listed = "\n".join(
        f"  {item.key}={show(item.default)}{' (' + ' | '.join(item.choices) + ')' if item.choices else ''}  {item.help}"
        for item in list_settings(PlanSettings)
    )
    parser = new_parser("plan", plan, f"settings:\n{listed}\n\nNothing is run, and no GPU is needed. {_CAVEAT}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes, seconds and FLOP/s")
    arguments = parser.parse_intermixed_args(list(words))
    given = [_quoted(word) for word in arguments.words]
    settings = compose(PlanSettings, given, owner="plan")[0]
    question = _question(settings)
    from ..planner.search import COUNTS, choose, estimate_all, scale

    estimates = estimate_all(question)
    best = choose(estimates)
    counts = sorted({*COUNTS, question.gpus})
    series = {
        "weak": scale(question, counts, is_weak=True),
        "constant_batch": scale(question, counts, is_weak=False),
    }
    if arguments.json:
        print(to_json(_document(settings, question, estimates, best, series)))
    else:
        _show(settings, question, estimates, best, series)
    return 0


def _quoted(word: str) -> str:
    """Let a path hold any character."""
    key, equals, value = word.partition("=")
    return f"{key}={quote(value)}" if equals and key == "model" else word


def _question(settings: PlanSettings) -> "Question":
    from ..planner.hardware import GPUS, MEGABERT
    from ..planner.search import ALL, Question
    from ..planner.workload import Work

    shape = _shape(settings.model)
    gpu = GPUS[settings.gpu]
    batch = settings.batch or (1024 if settings.task == "pretrain" else 32 * settings.gpus)
    for name, least in (("gpus", 1), ("batch", 1), ("length", 1), ("gpus_per_node", 1), ("tensor", 1)):
        value = batch if name == "batch" else getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}={value}; at least {least} is needed.")
    if settings.fsdp is not None and settings.fsdp < 1 and settings.fsdp != ALL:
        raise ConfigError(f"fsdp={settings.fsdp}; give the number of processes, or -1 for all.")
    if not 0 <= settings.overlap <= 1:
        raise ConfigError(f"overlap={settings.overlap}; give a share, 0 to 1.")
    if (settings.length or 0) > shape.max_positions:
        raise ConfigError(f"length={settings.length}: {settings.model} has {shape.max_positions} positions.")
    return Question(
        work=Work(shape, settings.precision, settings.task == "pretrain"),
        gpu=gpu,
        gpus=settings.gpus,
        gpus_per_node=settings.gpus_per_node or gpu.gpus_per_node,
        batch=batch,
        length=settings.length or shape.max_positions,
        tensor=settings.tensor,
        fsdp=settings.fsdp,
        sequence=settings.sequence,
        activation_checkpointing=settings.activation_checkpointing,
        program=replace(MEGABERT, overlap=settings.overlap),
    )


def _shape(model: str) -> "EncoderConfig":
    """Find a network's shape by its size, its configuration, its file or its published name."""
    from ..planner.hardware import NETWORKS

    if model.lower() in NETWORKS:
        return NETWORKS[model.lower()]
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        return _shape_of_file(path)
    if path.exists():
        from ..checkpoints.open import open_checkpoint

        return open_checkpoint(path).config
    return _published_shape(model)


def _published_shape(name: str) -> "EncoderConfig":
    from ..checkpoints.published import PUBLISHED
    from ..config.parser import nearest
    from ..model.config import EncoderConfig
    from ..planner.hardware import BERT_VOCABULARY, NETWORKS

    aliases = {alias: item.name for item in PUBLISHED.values() for alias in item.aliases}
    published = PUBLISHED.get(aliases.get(name, name))
    if published is None:
        guess = nearest(name, [*NETWORKS, *PUBLISHED])
        raise ConfigError(
            f"model={name} is no size, no published name, and there is no such file."
            f"{f' Did you mean {guess}?' if guess else ''} Sizes are {', '.join(NETWORKS)}."
        )
    numbers = published.architecture
    if numbers is None:
        raise ConfigError(f"model={name}: its sizes are not known here. Give its config.json or its checkpoint.")
    if published.vocabulary.size is None:
        log(f"note: how many tokens {name} knows is not known here; {BERT_VOCABULARY} are assumed.")
    return EncoderConfig(
        published.vocabulary.size or BERT_VOCABULARY,
        numbers.num_layers,
        numbers.hidden_size,
        numbers.num_attention_heads,
        4 * numbers.hidden_size,
        numbers.max_position_embeddings,
        numbers.num_tokentypes,
    )


def _shape_of_file(path: Path) -> "EncoderConfig":
    from ..checkpoints.open import read_config, shape_of_config
    from ..model.config import EncoderConfig
    from ..planner.hardware import BERT_VOCABULARY

    config = read_config(path)
    shape, _ = shape_of_config(config, str(path))
    missing = [name for name in ("hidden_size", "num_layers", "num_heads") if name not in shape]
    if missing:
        raise ConfigError(f"{path} does not give {', '.join(missing)}. Is it a network's configuration?")
    rows = config.get("vocab_size", BERT_VOCABULARY)
    defaults = {"ffn_size": 4 * shape["hidden_size"], "max_positions": 512, "vocabulary_size": rows}
    return EncoderConfig.from_dict(defaults | shape)


def _document(
    settings: PlanSettings,
    question: "Question",
    estimates: "Sequence[Estimate]",
    best: "Estimate | None",
    series: "dict[str, list[Point]]",
) -> dict[str, Any]:
    from ..planner.workload import count_parameters

    return {
        "model": settings.model,
        "shape": question.work.shape.to_dict(),
        "parameters": round(count_parameters(question.work).total),
        "task": settings.task,
        "precision": settings.precision,
        "gpu": {"title": question.gpu.title, "memory": question.gpu.memory, "source": question.gpu.source},
        "gpus": question.gpus,
        "gpus_per_node": question.gpus_per_node,
        "batch": question.batch,
        "length": question.length,
        "best": None if best is None else _row(best),
        "layouts": [_row(estimate) for estimate in estimates],
        "scaling": {
            name: [
                {
                    "gpus": point.gpus,
                    "efficiency": point.efficiency,
                    "layout": None if point.estimate is None else _row(point.estimate),
                }
                for point in points
            ]
            for name, points in series.items()
        },
    }


def _row(estimate: "Estimate") -> dict[str, Any]:
    from ..planner.search import settings

    layout = estimate.layout
    return {
        "data": layout.num_copies,
        "fsdp": layout.fsdp,
        "tensor": layout.tensor,
        "sequence": layout.sequence,
        "activation_checkpointing": layout.activation_checkpointing,
        "micro_batch": round(estimate.texts.num_texts),
        "accumulate": layout.accumulate,
        "fits": estimate.fits,
        "memory": estimate.memory.to_dict(),
        "seconds": estimate.time.to_dict(),
        "tokens_per_second": estimate.tokens_per_second,
        "model_flops_per_second_of_each": estimate.model_flops_per_second,
        "settings": settings(estimate),
    }


def _show(
    settings: PlanSettings,
    question: "Question",
    estimates: "Sequence[Estimate]",
    best: "Estimate | None",
    series: "dict[str, list[Point]]",
) -> None:
    from rich.console import Console

    from ..planner.workload import count_parameters

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 132
    shape = question.work.shape
    console.print(
        f"{settings.model}: {shape.num_layers} layers x {shape.hidden_size} x {shape.num_heads} heads, "
        f"{count_parameters(question.work).total / 1e6:,.0f} million parameters. "
        f"{settings.task}, steps of {question.batch} texts of {question.length} tokens, "
        f"{settings.precision}, on {question.gpus} x {question.gpu.title}."
    )
    console.print(_layout_table(estimates, best))
    if len(estimates) > _ROWS:
        console.print(f"{len(estimates) - _ROWS} more layouts: --json lists them all.")
    if best is None:
        least = estimates[0].memory.total / 1e9
        console.print(
            f"Nothing fits: the leanest layout needs {least:.1f} GB of {question.gpu.memory / 1e9:.0f} GB on each GPU. "
            "Give more GPUs, or leave layouts free."
        )
    else:
        console.print(_part_tables(best))
        from ..planner.search import settings as settings_of

        words = " ".join(f"{key}={value}" for key, value in settings_of(best).items())
        console.print("Best:", style="bold", end=" ")
        console.print(words, soft_wrap=True)
    console.print(_scaling_table(question, series))
    if any((point.efficiency or 0) > 1.02 for points in series.values() for point in points):
        console.print(
            "More than 100 %: on fewer GPUs memory is short; they compute activations twice or in small micro-batches."
        )
    console.print(_CAVEAT)


def _layout_table(estimates: "Sequence[Estimate]", best: "Estimate | None") -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("", "data x fsdp x tensor", "also", title="Layouts", title_justify="left", box=SIMPLE)
    for column in ("micro-batches", "GB", "ms a step", "tokens/s", "TFLOP/s a GPU"):
        table.add_column(column, justify="right")
    for estimate in estimates[:_ROWS]:
        table.add_row(
            "best" if estimate is best else "fits" if estimate.fits else "too big",
            f"{estimate.layout.num_copies} x {estimate.layout.fsdp} x {estimate.layout.tensor}",
            _also(estimate),
            f"{estimate.layout.accumulate} of {estimate.texts.num_texts:.0f} texts",
            f"{estimate.memory.total / 1e9:.1f}",
            f"{1000 * estimate.time.total:,.1f}",
            f"{estimate.tokens_per_second:,.0f}",
            f"{estimate.model_flops_per_second / 1e12:.0f}",
            style="bold" if estimate is best else "" if estimate.fits else "dim",
        )
    return table


def _also(estimate: "Estimate") -> str:
    layout = estimate.layout
    names = {"sequence": layout.sequence, "checkpointing": layout.activation_checkpointing}
    return ", ".join(name for name, is_there in names.items() if is_there)


def _part_tables(best: "Estimate") -> Any:
    from rich.box import SIMPLE
    from rich.columns import Columns
    from rich.table import Table

    memory, time = best.memory.to_dict(), best.time.to_dict()
    tables = []
    for title, parts, scale, form in (
        ("Best: GB on each GPU", memory, 1e-9, "{:.2f}"),
        ("Best: ms of a step", time, 1e3, "{:,.1f}"),
    ):
        table = Table("part", title=title, title_justify="left", box=SIMPLE)
        table.add_column("", justify="right")
        table.add_column("share", justify="right")
        for name, value in parts.items():
            share = value / parts["total"]
            style = "bold" if name == "total" else ""
            table.add_row(name.replace("_", " "), form.format(value * scale), f"{share:.0%}", style=style)
        tables.append(table)
    return Columns(tables, padding=(0, 4))


def _scaling_table(question: "Question", series: "dict[str, list[Point]]") -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    each = max(1, question.batch // question.gpus)
    table = Table(
        "GPUs", title="Scaling, each with its best layout (c: checkpointing)", title_justify="left", box=SIMPLE
    )
    for title in (f"{each} texts a GPU", f"{question.batch} texts a step"):
        table.add_column(f"{title}: tokens/s", justify="right")
        table.add_column("efficiency", justify="right")
        table.add_column("layout")
    counts = sorted({point.gpus for points in series.values() for point in points})
    by_count = [{point.gpus: point for point in points} for points in series.values()]
    for count in counts:
        cells = [cell for points in by_count for cell in _scaling_cells(points.get(count))]
        table.add_row(str(count), *cells)
    return table


def _scaling_cells(point: "Point | None") -> tuple[str, str, str]:
    if point is None:
        return "", "", ""
    if point.estimate is None:
        return "-", "-", "none"
    layout = point.estimate.layout
    also = ", c" if layout.activation_checkpointing else ""
    efficiency = "" if point.efficiency is None else f"{point.efficiency:.0%}"
    shape = f"{layout.num_copies} x {layout.fsdp} x {layout.tensor}{also}"
    return f"{point.estimate.tokens_per_second:,.0f}", efficiency, shape
