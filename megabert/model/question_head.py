"""The head of SGD-QA: answers to questions of several kinds from the first token, spans from every token.

Shape legend: T tokens, N sequences, D hidden, C columns of answers. Source: NeMo 1.x's SGDEncoder and SGDDecoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .encoder import INITIAL_STD, Encoder
from .heads import Head, TokenHead


class QuestionHead(Head):
    """A layer with tanh on the first token, and a head of two layers for each kind of answer; one for spans.

    Kinds of answers share the first layer only.
    """

    def __init__(self, hidden_size: int, columns: Sequence[int], *, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.answers = nn.ModuleList(
            TokenHead(hidden_size, count, num_layers=2, dropout=0.0, activation="gelu") for count in columns
        )
        self.spans = TokenHead(hidden_size, 2, num_layers=2, dropout=dropout, activation="gelu")

    def start_from(self, encoder: Encoder) -> None:
        """Scale new weights to the deviation of PyTorch's linear layers, as in NeMo: three small ones learn slowly."""
        with torch.no_grad():
            for weight in (item for item in self.parameters() if item.ndim > 1):
                weight.mul_((3 * weight.shape[1]) ** -0.5 / INITIAL_STD)

    def forward(self, hidden_TD: Tensor, starts_N: Tensor) -> Tensor:
        """Map [T, D] to logits [T, C + 2]; the C columns of tokens that begin no sequence are 0."""
        first_ND = self.dropout(self.first(hidden_TD.index_select(0, starts_N)).tanh())
        answers_NC = torch.cat([head(first_ND, starts_N) for head in self.answers], dim=-1)
        columns_TC = answers_NC.new_zeros(hidden_TD.shape[0], answers_NC.shape[1]).index_copy(0, starts_N, answers_NC)
        return torch.cat([columns_TC, self.spans(hidden_TD, starts_N)], dim=-1)
