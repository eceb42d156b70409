"""Settings of tasks that find answers to a question in its context: windows, spans and the head that scores them."""

from dataclasses import dataclass

from ..config.schema import choice
from ..model.config import ACTIVATIONS


@dataclass
class QuestionSettings:
    """How questions and contexts become windows of tokens, and logits answers."""

    version_2_with_negative: bool = False
    """SQuAD 2.0: questions may have no answer."""
    max_seq_length: int = 384
    """Tokens of a window: question, part of the context and three special tokens."""
    doc_stride: int = 128
    """Tokens by which a window starts after the one before it."""
    window_pooling: str = choice("best_context", "best_context", "maximum")
    """A span's score: that of the window with the most context around its first token, or of windows the largest."""
    span_score: str = choice("logits", "logits", "log_probability")
    """Spans of several windows are compared by their logits, or by their log probabilities within their window."""
    null_windows: float = -1.0
    """Windows without the answer that an epoch trains on, for each with it, resampled each epoch; -1: all."""
    max_query_length: int = 64
    """Tokens of a question; a longer one is truncated."""
    max_answer_length: int = 30
    """Tokens of an answer."""
    whole_words: bool = True
    """Answers neither begin nor end inside a word, where the script separates words by blanks."""
    n_best_size: int = 20
    """Answers that are kept, with probabilities, for each question."""
    null_score_diff_threshold: float = 0.0
    """With version_2_with_negative: predict "" if the null score exceeds the best answer's by more than this."""


@dataclass
class SpanHeadSettings:
    """The head that scores each token as start and as end."""

    num_layers: int = 1
    """Number of linear layers."""
    dropout: float = 0.0
    """Dropout on the head's input."""
    activation: str = choice("relu", *ACTIVATIONS)
    """Between linear layers."""
