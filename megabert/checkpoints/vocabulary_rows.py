"""The rows of a checkpoint's vocabulary: padding rows cut or added, and whether a vocabulary fits."""

from collections.abc import Mapping

from ..errors import CheckpointError
from .files.lazy_tensor import Readable, resize_rows
from .open import Checkpoint
from .tensor_names import PER_TOKEN


def fit_vocabulary(checkpoint: Checkpoint, num_tokens: int, vocabulary_source: str) -> dict[str, Readable]:
    """Return the tensors without the padding rows of a vocabulary of `num_tokens`, after `check_vocabulary`."""
    check_vocabulary(checkpoint, num_tokens, vocabulary_source)
    return resize_vocabulary(checkpoint.tensors, num_tokens)


def check_vocabulary(checkpoint: Checkpoint, num_tokens: int, vocabulary_source: str) -> None:
    """Raise CheckpointError if a vocabulary of `num_tokens` cannot be the checkpoint's.

    Where the checkpoint's own files name that many tokens, all other rows are padding. Otherwise the number of rows
    must be a padded one: Megatron-LM pads to a multiple of 128 x tensor-parallel size, Hugging Face's tools to a
    multiple of 8 to 128.
    """
    rows = checkpoint.shape["vocabulary_size"]
    if num_tokens == checkpoint.num_tokens and num_tokens > rows:
        raise CheckpointError(
            f"{vocabulary_source} and the files beside it name {num_tokens} tokens, but {checkpoint.source} has {rows} "
            "word vectors. Give every token one (in transformers model.resize_token_embeddings(len(tokenizer)), then "
            "train it and save the model), or take the added tokens out of the tokenizer's files."
        )
    if num_tokens != checkpoint.num_tokens and not is_padded(num_tokens, rows):
        raise CheckpointError(
            f"{vocabulary_source} has {num_tokens} tokens, but {checkpoint.source} has {rows} word vectors, and no "
            f"padding leads from one to the other. Give the vocabulary that the checkpoint was trained with "
            "(model.tokenizer.vocab_file)."
        )


def is_padded(num_tokens: int, num_rows: int) -> bool:
    """Whether a vocabulary may have been padded to `num_rows`: equal, or the next multiple of a common number."""
    multiples = [8, 16, 32, *(64 * factor for factor in range(1, 129))]
    return num_rows == num_tokens or any(-(-num_tokens // multiple) * multiple == num_rows for multiple in multiples)


def resize_vocabulary(tensors: Mapping[str, Readable], num_rows: int) -> dict[str, Readable]:
    """Cut the tensors that have a row for each token, or pad them with zeros."""
    return {name: resize_rows(item, num_rows) if name in PER_TOKEN else item for name, item in tensors.items()}
