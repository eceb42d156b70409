"""The encoder: packed token ids in, one vector a token out.

One class is Megatron-BERT, BERT and GPT-2; `EncoderConfig` says which. It is plain single-device PyTorch: sharding,
precision, compilation and activation checkpointing are applied from outside.
"""

import math

import torch
from torch import Tensor, nn

from .layers import Embeddings, Layer, attention_mask
from .shape import EncoderConfig

INITIAL_STD = 0.02  # Megatron-LM's --init-method-std


class Encoder(nn.Module):
    """A stack of transformer layers over embeddings.

    Megatron-LM's pre-norm stack ends with a layer norm of its own; the post-norm one needs none.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = None if config.is_post_norm else nn.LayerNorm(config.hidden_size, config.norm_epsilon)

    def forward(
        self,
        token_ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        segment_ids_BL: Tensor | None = None,
        document_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Encode rows of tokens; returns hidden_BLD, [B, L, hidden_size].

        Two tokens of a row see each other only if their document ids are equal and not 0 (0 is padding). Left out,
        each row is one document without padding, in segment 0, with positions 0, 1, 2, ...
        """
        if position_ids_BL is None:
            position_ids_BL = torch.arange(token_ids_BL.shape[1], device=token_ids_BL.device).expand_as(token_ids_BL)
        if segment_ids_BL is None:
            segment_ids_BL = torch.zeros_like(token_ids_BL)
        if document_ids_BL is None:
            document_ids_BL = torch.ones_like(token_ids_BL)
        hidden_BLD = self.embeddings(token_ids_BL, position_ids_BL, segment_ids_BL)
        mask_B1LL = attention_mask(document_ids_BL, is_causal=self.config.is_causal)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, mask_B1LL)
        if self.final_norm is not None:
            hidden_BLD = self.final_norm(hidden_BLD)
        return hidden_BLD


def initialize(module: nn.Module, generator: torch.Generator, *, num_layers: int = 0) -> None:
    """Draw new weights as Megatron-LM does, in the order in which parameters are named.

    Matrices are N(0, 0.02), those that end a residual branch N(0, 0.02 / sqrt(2 * num_layers)); biases are 0, layer
    norms 1 and 0. Source: Megatron-LM's init_method_normal and scaled_init_method_normal.
    """
    scaled = INITIAL_STD / math.sqrt(2 * num_layers) if num_layers else INITIAL_STD
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.LayerNorm):
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif parameter.ndim < 2:
                parameter.zero_()
            else:
                ends_residual_branch = name.endswith(("attention.out.weight", "mlp.down.weight"))
                parameter.normal_(0.0, scaled if ends_residual_branch else INITIAL_STD, generator=generator)
