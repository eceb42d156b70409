"""WordPiece vocabularies made of text, such as BioMegatron's of PubMed."""

from collections.abc import Iterable

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from ..errors import InputError
from .wordpiece import SPECIAL_TOKENS

# As many letters as a language's text has, and not each sign that occurs once in a corpus.
MOST_LETTERS = 1000


def train_wordpiece(texts: Iterable[str], size: int, *, lower_case: bool, show_progress: bool) -> list[str]:
    """Learn a vocabulary of `size` tokens, [PAD] [UNK] [CLS] [SEP] [MASK] first.

    The work is done by Hugging Face's `tokenizers` (Rust): pieces are merged by frequency. Raises InputError where the
    text has too few words for the size.
    """
    tokenizer = RustTokenizer(WordPiece(unk_token="[UNK]"))  # noqa: S106  (a token, no password)
    tokenizer.normalizer = BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        limit_alphabet=MOST_LETTERS,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    numbers = tokenizer.get_vocab()
    tokens = sorted(numbers, key=lambda token: numbers[token])
    if len(tokens) != size:
        raise InputError(
            f"The text gives {len(tokens)} tokens, not {size}: it has too few words, or more letters than fit. "
            "Give more text, or another size."
        )
    return tokens
