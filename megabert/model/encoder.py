"""Transformer encoder: token ids in, the last hidden state of each token out.

One class covers Megatron-BERT, BERT and GPT-2, selected by `EncoderConfig`. It is plain single-device PyTorch:
sharding, precision, compilation and activation checkpointing are applied from outside.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from .attention import PackedSequences
from .config import EncoderConfig
from .key_value_cache import KeyValueCache
from .layers import Embeddings, Layer

INITIAL_STD = 0.02  # Megatron-LM's --init-method-std
# Larger matrices are initialized in threads, each with its own generator: 345 million weights take one thread 3 s.
LARGE = 2**20


class Encoder(nn.Module):
    """Embeddings and a stack of transformer layers; a pre-norm stack ends with a final layer norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = None if config.is_post_norm else nn.LayerNorm(config.hidden_size, config.norm_epsilon)

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        documents: PackedSequences | KeyValueCache | None = None,
    ) -> Tensor:
        """Encode tokens, [T] or [B, L], to their last hidden states, [T, hidden_size] or [B, L, hidden_size].

        Tokens attend to tokens of the same document only. [T] tokens are the packed `documents`; rows, [B, L], are
        packed in order. By default each row is one document, in segment 0, with positions 0, 1, 2, ...; for rows with
        padding use `PackedSequences.of_rows`. With a `KeyValueCache` the tokens follow those of earlier calls.
        """
        length = token_ids.shape[-1]
        if position_ids is None:
            position_ids = torch.arange(length, device=token_ids.device).expand_as(token_ids)
        if segment_ids is None:
            segment_ids = torch.zeros_like(token_ids)
        if documents is None:
            ends = torch.arange(0, token_ids.numel() + 1, length, dtype=torch.int32, device=token_ids.device)
            documents = PackedSequences(ends, length)
        ids = token_ids.flatten(), position_ids.flatten(), segment_ids.flatten()
        return self.encode(*ids, documents).unflatten(0, token_ids.shape)

    def encode(
        self, token_ids_T: Tensor, position_ids_T: Tensor, segment_ids_T: Tensor,
        documents: PackedSequences | KeyValueCache,
    ) -> Tensor:  # fmt: skip
        """Compute the embeddings, the layers and the final norm: [T, D]."""
        hidden_TD = self.embeddings(token_ids_T, position_ids_T, segment_ids_T)
        for number, layer in enumerate(self.layers):
            hidden_TD = layer(hidden_TD, documents.of_layer(number))
        return hidden_TD if self.final_norm is None else self.final_norm(hidden_TD)


def initialize(module: nn.Module, generator: torch.Generator, *, num_layers: int = 0) -> None:
    """Initialize weights as Megatron-LM does, in the order of `named_parameters`.

    Matrices are N(0, 0.02), those at the end of a residual branch N(0, 0.02 / sqrt(2 * num_layers)); biases are 0,
    layer norms 1 and 0. Source: Megatron-LM's init_method_normal and scaled_init_method_normal.
    """
    scaled = INITIAL_STD / math.sqrt(2 * num_layers) if num_layers else INITIAL_STD
    jobs: list[Future[Tensor]] = []
    with torch.no_grad(), ThreadPoolExecutor() as threads:
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.LayerNorm):
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif parameter.ndim < 2:
                parameter.zero_()
            else:
                ends_residual_branch = name.endswith(("attention.out.weight", "mlp.down.weight"))
                std = scaled if ends_residual_branch else INITIAL_STD
                if parameter.numel() <= LARGE:
                    parameter.normal_(0.0, std, generator=generator)
                    continue
                local_generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
                # Detached, since no_grad applies to the current thread only.
                jobs.append(threads.submit(parameter.detach().normal_, 0.0, std, generator=local_generator))
        for job in jobs:
            job.result()
