"""Training of WordPiece vocabularies on Hugging Face's `tokenizers` (Rust)."""

from collections.abc import Iterable

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from ..errors import InputError
from .wordpiece import SPECIAL_TOKENS

# Enough letters for a language, without every character that is rare in a corpus.
MAX_LETTERS = 1000


def train_wordpiece(texts: Iterable[str], size: int, *, lower_case: bool, show_progress: bool) -> list[str]:
    """Train a vocabulary of `size` tokens, [PAD] [UNK] [CLS] [SEP] [MASK] first.

    Raises InputError if the texts have too few words for the size.
    """
    tokenizer = RustTokenizer(WordPiece(unk_token="[UNK]"))  # noqa: S106  (a token, no password)
    tokenizer.normalizer = BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        limit_alphabet=MAX_LETTERS,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    if len(tokens) != size:
        raise InputError(
            f"The text gives {len(tokens)} tokens, not {size}: it has too few words, or more letters than fit. "
            "Give more text, or another size."
        )
    return tokens
