"""`megabert plan`: estimate memory, time and the best parallel layout of a training before it is started."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import compose, did_you_mean, quote
from ..config.schema import choice
from ..errors import ConfigError
from ..json_documents import read_json_object
from .console import log, new_settings_parser, show, to_json, writing_to_stdout
from .plan_tables import CAVEAT, print_tables

if TYPE_CHECKING:
    from ..model.config import EncoderConfig
    from ..planner.cost_model import Estimate
    from ..planner.search import PlanRequest, ScalingPoint


@dataclass
class PlanSettings:
    """The settings of `megabert plan`."""

    model: str = "345m"
    """345m, 1.3b, 3.9b, 8.9b, gpt-345m, 2.5b, 8.3b, a name of `megabert models`, a config.json or a checkpoint."""
    gpus: int = 8
    """Total number of GPUs."""
    gpus_per_node: int | None = None
    """GPUs of one machine; null: as usual for this kind of GPU."""
    gpu: str = choice("h100", "h100", "h200", "a100", "v100")
    """Kind of GPU."""
    task: str = choice("pretrain", "pretrain", "finetune")
    """pretrain: language-model head on the masked tokens; finetune: a small head."""
    adapters: bool = False
    """Train adapters (LoRA, on all linear layers) instead of all weights; implies finetune."""
    adapter_dim: int = 16
    """Rank of the adapters."""
    batch: int | None = None
    """Global batch, sequences of an optimizer step; null: 1024 to pre-train, as in Megatron-LM's paper, 32 for each GPU
    to fine-tune."""
    length: int | None = None
    """Tokens of a sequence; null: the model's number of positions."""
    precision: str = choice("bf16", "bf16", "16", "32")
    """Precision of the training."""
    tensor: int | None = None
    """Only layouts with this parallel.tensor; null: all sensible values, here and below."""
    fsdp: int | None = None
    """Only layouts with this parallel.fsdp; -1: all data-parallel processes."""
    sequence: bool | None = None
    """Only layouts with this parallel.sequence; null: with all tensor parallelism."""
    activation_checkpointing: bool | None = None
    """Only layouts with this parallel.activation_checkpointing."""
    overlap: float = 0.0
    """Share of the gradient all-reduce that overlaps with the backward pass, 0 to 1."""


def plan(words: Sequence[str]) -> None:
    """Estimate memory, time and the best layout of GPUs: megabert plan model=1.3b gpus=64."""
    parser = new_settings_parser("plan", plan, PlanSettings, f"Nothing is run, and no GPU is needed. {CAVEAT}")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes, seconds and FLOP/s")
    arguments = parser.parse_intermixed_args(list(words))
    given = [_quote_path(word) for word in arguments.words]
    settings = compose(PlanSettings, given, owner="plan")[0]
    request = _request(settings)
    from ..planner.search import GPU_COUNTS, choose, estimate_all, scale

    estimates = estimate_all(request)
    best = choose(estimates)
    counts = sorted({*GPU_COUNTS, request.gpus})
    series = {name: scale(request, counts, is_weak=name == "weak") for name in ("weak", "constant_batch")}
    if arguments.json:
        show(to_json(_document(settings, request, estimates, best, series)))
    else:
        with writing_to_stdout():
            print_tables(_headline(settings, request), request, estimates, best, series)


def _quote_path(word: str) -> str:
    """Quote the value of `model`, since a path may contain any character."""
    key, equals, value = word.partition("=")
    return f"{key}={quote(value)}" if equals and key == "model" else word


def _request(settings: PlanSettings) -> "PlanRequest":
    from ..planner.hardware import GPUS, MEGABERT
    from ..planner.search import ALL, PlanRequest
    from ..planner.workload import Workload

    shape = _shape(settings.model)
    if settings.adapters:
        settings.task = "finetune"
    gpu = GPUS[settings.gpu]
    batch = settings.batch or (1024 if settings.task == "pretrain" else 32 * settings.gpus)
    for name in ("gpus", "batch", "length", "adapter_dim", "gpus_per_node", "tensor"):
        value = batch if name == "batch" else getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}; at least 1 is needed.")
    if settings.fsdp is not None and settings.fsdp < 1 and settings.fsdp != ALL:
        raise ConfigError(f"fsdp={settings.fsdp}; give the number of processes, or -1 for all.")
    if not 0 <= settings.overlap <= 1:
        raise ConfigError(f"overlap={settings.overlap}; give a share from 0 to 1.")
    if (settings.length or 0) > shape.max_positions:
        raise ConfigError(f"length={settings.length}: {settings.model} has {shape.max_positions} positions.")
    return PlanRequest(
        workload=Workload(
            shape,
            settings.precision,
            settings.task == "pretrain",
            adapter_rank=settings.adapter_dim if settings.adapters else 0,
        ),
        gpu=gpu,
        gpus=settings.gpus,
        gpus_per_node=settings.gpus_per_node or gpu.gpus_per_node,
        batch=batch,
        length=settings.length or shape.max_positions,
        tensor=settings.tensor,
        fsdp=settings.fsdp,
        sequence=settings.sequence,
        activation_checkpointing=settings.activation_checkpointing,
        implementation=replace(MEGABERT, overlap=settings.overlap),
    )


def _shape(model: str) -> "EncoderConfig":
    """Read the architecture from a known size, a config.json, a checkpoint or a published name."""
    from ..planner.published_networks import NETWORKS

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
    from ..checkpoints.published import published_checkpoints
    from ..model.config import EncoderConfig
    from ..planner.published_networks import BERT_VOCABULARY, NETWORKS

    aliases = {alias: item.name for item in published_checkpoints().values() for alias in item.aliases}
    published = published_checkpoints().get(aliases.get(name, name))
    if published is None:
        guess = did_you_mean(name, [*NETWORKS, *published_checkpoints()])
        raise ConfigError(
            f"model={name} is neither a size nor a published name nor an existing file.{guess} "
            f"Sizes are {', '.join(NETWORKS)}."
        )
    architecture = published.architecture
    if architecture is None:
        raise ConfigError(
            f"model={name}: its architecture is not in the catalog. Give its config.json or its checkpoint."
        )
    rows = published.vocabulary.size or published.vocabulary.num_rows
    if rows is None:
        log(f"note: the catalog lacks the vocabulary size of {name}; {BERT_VOCABULARY} tokens are assumed.")
    return EncoderConfig(
        rows or BERT_VOCABULARY,
        architecture.num_layers,
        architecture.hidden_size,
        architecture.num_attention_heads,
        4 * architecture.hidden_size,
        architecture.max_position_embeddings,
        architecture.num_tokentypes,
    )


def _shape_of_file(path: Path) -> "EncoderConfig":
    from ..checkpoints.user_config import parse_user_config
    from ..model.config import EncoderConfig
    from ..planner.published_networks import BERT_VOCABULARY

    config = read_json_object(path)
    shape = parse_user_config(config, str(path)).full_shape
    missing = [name for name in ("hidden_size", "num_layers", "num_heads") if name not in shape]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}. Is it the configuration of a model?")
    rows = config.get("vocab_size", BERT_VOCABULARY)
    defaults = {"ffn_size": 4 * shape["hidden_size"], "max_positions": 512, "vocabulary_size": rows}
    return EncoderConfig.from_dict(defaults | shape)


def _headline(settings: PlanSettings, request: "PlanRequest") -> str:
    from ..planner.workload import count_parameters

    shape = request.workload.shape
    return (
        f"{settings.model}: {shape.num_layers} layers x {shape.hidden_size} x {shape.num_heads} heads, "
        f"{count_parameters(request.workload).total / 1e6:,.0f} million parameters. "
        f"{settings.task}, steps of {request.batch} sequences of {request.length} tokens, "
        f"{settings.precision}, on {request.gpus} x {request.gpu.title}."
    )


def _document(
    settings: PlanSettings,
    request: "PlanRequest",
    estimates: "Sequence[Estimate]",
    best: "Estimate | None",
    series: "dict[str, list[ScalingPoint]]",
) -> dict[str, Any]:
    from ..planner.workload import count_parameters

    return {
        "model": settings.model,
        "shape": request.workload.shape.to_dict(),
        "parameters": round(count_parameters(request.workload).total),
        "task": settings.task,
        "precision": settings.precision,
        "gpu": {"title": request.gpu.title, "memory": request.gpu.memory, "source": request.gpu.source},
        "gpus": request.gpus,
        "gpus_per_node": request.gpus_per_node,
        "batch": request.batch,
        "length": request.length,
        "best": None if best is None else _row(best),
        "layouts": [_row(estimate) for estimate in estimates],
        "scaling": {name: [_point(point) for point in points] for name, points in series.items()},
    }


def _point(point: "ScalingPoint") -> dict[str, Any]:
    layout = None if point.estimate is None else _row(point.estimate)
    return {"gpus": point.gpus, "efficiency": point.efficiency, "layout": layout}


def _row(estimate: "Estimate") -> dict[str, Any]:
    from ..planner.search import layout_settings

    layout = estimate.layout
    return {
        "data": layout.num_replicas,
        "fsdp": layout.fsdp,
        "tensor": layout.tensor,
        "sequence": layout.sequence,
        "activation_checkpointing": layout.activation_checkpointing,
        "keeps_weights": layout.keeps_weights,
        "micro_batch": round(estimate.micro_batch.num_sequences),
        "accumulate": layout.accumulate,
        "fits": estimate.fits,
        "memory": estimate.memory.to_dict(),
        "seconds": estimate.time.to_dict(),
        "tokens_per_second": estimate.tokens_per_second,
        "model_flops_per_second_of_each": estimate.model_flops_per_second,
        "settings": layout_settings(estimate),
    }
