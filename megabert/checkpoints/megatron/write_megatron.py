"""Write Megatron-LM's checkpoints: a folder with the file `release/mp_rank_*/model_optim_rng.pt` of each rank.

Two generations of names are written: those of v2.1 to v2.6 ("megatron"), which later versions also read, and
megatron.core's ("megatron-core"). One rank's file is in memory at a time.
Source: Megatron-LM v2.6, megatron/checkpointing.py and megatron/model/; core_v0.9.0,
megatron/training/checkpointing.py.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...model.config import EncoderConfig
from ..files.lazy_tensor import Readable
from ..mapping import ForeignTensors, write_tensors
from ..tensor_names import WORD
from .megatron_names import CORE_BERT, CORE_GPT, LEGACY, Era
from .untrained_parts import KEY

VOCABULARY_MULTIPLE = 128  # Megatron-LM's --make-vocab-size-divisible-by


@dataclass(frozen=True)
class ModelParallelLayout:
    """The tensor-parallel and pipeline-parallel sizes of a checkpoint."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def padded(self, num_tokens: int) -> int:
        """Pad a vocabulary to a multiple that the shards divide, as Megatron-LM does."""
        multiple = VOCABULARY_MULTIPLE * self.tensor_parallel
        return -(-num_tokens // multiple) * multiple

    def check(self, config: EncoderConfig) -> None:
        """Raise ConfigError if the sizes do not divide the network."""
        for name, count, parts in (
            ("attention heads", config.num_heads, self.tensor_parallel),
            ("MLP columns", config.ffn_size, self.tensor_parallel),
            ("layers", config.num_layers, self.pipeline_parallel),
        ):
            if parts < 1 or count % parts:
                divisors = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
                raise ConfigError(f"{count} {name} cannot be cut into {parts} equal parts. Possible are {divisors}.")


def era_of(tensors: Mapping[str, Readable], config: EncoderConfig, *, core: bool) -> Era:
    """Choose the era of names to write. Raises ConfigError for a network that Megatron-LM does not have."""
    if config.is_post_norm:
        raise ConfigError(
            "Megatron-LM has no post-norm network (the original BERT). Convert it to huggingface or megabert."
        )
    if not config.is_causal and (config.gelu, config.head_gelu) == ("erf", "tanh"):
        raise ConfigError("Megatron-LM has no network with erf in its MLPs and tanh in its language-model head.")
    if core:
        check_later_code(tensors, config, "megatron.core")
    return LEGACY if not core else CORE_GPT if config.is_causal else CORE_BERT


def check_later_code(tensors: Mapping[str, Readable], config: EncoderConfig, reader: str) -> None:
    """Raise ConfigError for a network that megatron.core or NeMo would compute differently from its arguments."""
    if config.norm_place == "pre_residual_normed":
        raise ConfigError(
            f"{reader} takes residuals from before the layer norm, whatever its configuration is; this network takes "
            "them from after it (apply_residual_connection_post_layernorm). Convert it to megatron or megabert."
        )
    if config.head_gelu == "tanh" and not config.is_causal and "language_model.dense.weight" in tensors:
        raise ConfigError(
            f"{reader} has erf GELU in BERT's language-model head; this network was trained with tanh there "
            "(openai_gelu). Convert it to megatron, huggingface or megabert."
        )


def rank_tensors(
    tensors: Mapping[str, Readable], config: EncoderConfig, era: Era, layout: ModelParallelLayout
) -> Iterator[tuple[int, int, Callable[[], dict[str, Tensor]]]]:
    """Yield (tensor-parallel rank, pipeline stage, function that makes the rank's tensors) for every rank."""
    layout.check(config)
    rules = era.rules("heads_3_dim")
    stages = _split_stages(tensors, config.num_layers, layout.pipeline_parallel)
    copies = [rule for rule in rules if rule.copy_of is not None and not rule.read_only] if len(stages) > 1 else []
    for stage, tensors_of_stage in enumerate(stages):
        converted = list(write_tensors(tensors_of_stage, rules, config.head_dim))
        if stage == len(stages) - 1:
            # The last stage computes logits with a copy of the word embedding.
            word, head_dim = tensors[WORD], config.head_dim
            converted += [
                ForeignTensors(rule.sources, tuple(word.shape), word.dtype, rule, word, head_dim) for rule in copies
            ]
        for rank in range(layout.tensor_parallel):
            yield rank, stage, partial(_shard, converted, rank, layout.tensor_parallel)


def _shard(converted: Sequence[ForeignTensors], rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Read one rank's part of all tensors."""
    return {item.names[0]: _shard_tensor(item, rank, num_ranks) for item in converted}


def _split_stages(tensors: Mapping[str, Readable], num_layers: int, num_stages: int) -> list[dict[str, Readable]]:
    """Split the tensors into pipeline stages, each of which numbers its layers from 0."""
    stages: list[dict[str, Readable]] = [{} for _ in range(num_stages)]
    per_stage = num_layers // num_stages
    for name, tensor in tensors.items():
        if name.startswith("encoder.layers."):
            number, _, rest = name.removeprefix("encoder.layers.").partition(".")
            stages[int(number) // per_stage][f"encoder.layers.{int(number) % per_stage}.{rest}"] = tensor
        else:
            stages[0 if name.startswith("encoder.embeddings.") else -1][name] = tensor
    return stages


def _shard_tensor(item: ForeignTensors, rank: int, num_ranks: int) -> Tensor:
    """Read one rank's part, copied so that the memory of the rest is freed."""
    (tensor,) = item.read()
    if item.rule.cut is None or num_ranks == 1:
        return tensor.contiguous()
    size = tensor.shape[item.rule.cut] // num_ranks
    return tensor.narrow(item.rule.cut, rank * size, size).clone(memory_format=torch.contiguous_format)


def write_megatron(
    folder: Path,
    tensors: Mapping[str, Readable],
    config: EncoderConfig,
    layout: ModelParallelLayout,
    *,
    core: bool,
    lower_case: bool | None,
    untrained: Sequence[str] = (),
) -> None:
    """Write the tracker and `release/mp_rank_TT[_PPP]/model_optim_rng.pt` of every rank into an empty folder.

    `untrained` are the names of tensors that were added for the loader.
    """
    era = era_of(tensors, config, core=core)
    arguments = megatron_arguments(tensors, config, layout, core=core, lower_case=lower_case)
    arguments |= {KEY: list(untrained)} if untrained else {}
    for rank, stage, make in rank_tensors(tensors, config, era, layout):
        name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if layout.pipeline_parallel > 1 else "")
        rank_folder = folder / "release" / name
        rank_folder.mkdir(parents=True)
        state = make()
        content = {
            "args": Namespace(**arguments),
            "checkpoint_version": 3.0,
            "iteration": 0,
            "model": state if core else _nest(state),
        }
        torch.save(content, rank_folder / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")


def _nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Nest dotted names into the dictionaries of megatron.model: three levels for the embeddings, two for the rest."""
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        parts = name.split(".")
        if parts[0] != "language_model":
            depth = 1
        else:
            depth = 3 if parts[1] == "embedding" else 2
        node = tree
        for part in parts[:depth]:
            node = node.setdefault(part, {})
        node[".".join(parts[depth:])] = tensor
    return tree


def network_arguments(
    tensors: Mapping[str, Readable], config: EncoderConfig, layout: ModelParallelLayout
) -> dict[str, Any]:
    """Return the arguments of a network that Megatron-LM and NeMo name alike."""
    openai = (config.gelu, config.head_gelu) == ("tanh", "tanh")
    return {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "encoder_seq_length": config.max_positions,
        "layernorm_epsilon": config.norm_epsilon,
        "apply_residual_connection_post_layernorm": config.norm_place == "pre_residual_normed",
        "openai_gelu": openai,
        "bias_gelu_fusion": config.gelu == "tanh" and not openai,
        "hidden_dropout": config.hidden_dropout,
        "attention_dropout": config.attention_dropout,
        "bert_binary_head": "sentence_order.out.weight" in tensors,
        "make_vocab_size_divisible_by": VOCABULARY_MULTIPLE,
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
    }


def megatron_arguments(
    tensors: Mapping[str, Readable],
    config: EncoderConfig,
    layout: ModelParallelLayout,
    *,
    core: bool,
    lower_case: bool | None,
) -> dict[str, Any]:
    """Return the arguments of a Megatron-LM run with this network, including those that it verifies on loading."""
    dtype = tensors[WORD].dtype
    bert_tokenizer = f"BertWordPiece{'Case' if lower_case is False else 'LowerCase'}"
    arguments = network_arguments(tensors, config, layout) | {
        "kv_channels": config.head_dim,
        "seq_length": config.max_positions,
        "onnx_safe": None,
        "padded_vocab_size": int(tensors[WORD].shape[0]),
        "tokenizer_type": "GPT2BPETokenizer" if config.is_causal else bert_tokenizer,
        "virtual_pipeline_model_parallel_size": None,
        "params_dtype": dtype,
        "fp16": dtype == torch.float16,
        "bf16": dtype == torch.bfloat16,
    }
    if core:
        # It computes the fused kernel's tanh GELU, or erf; there is no other tanh.
        arguments |= {"openai_gelu": False, "bias_gelu_fusion": config.gelu == "tanh"}
        arguments |= {"norm_epsilon": config.norm_epsilon, "num_query_groups": 1, **_CORE_ARGUMENTS}
    return arguments


# What megatron.core's loader takes from a checkpoint (--use-checkpoint-args), whatever the command line gives.
_CORE_ARGUMENTS = {
    "use_mcore_models": True,
    "transformer_impl": "local",
    "normalization": "LayerNorm",
    "apply_layernorm_1p": False,
    "position_embedding_type": "learned_absolute",
    "add_position_embedding": True,
    "use_rotary_position_embeddings": False,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "swiglu": False,
    "squared_relu": False,
    "group_query_attention": False,
    "untie_embeddings_and_output_weights": False,
}
