"""Open a causal language model for generation: a run, a published name, or files of Megatron-LM or Hugging Face."""

from pathlib import Path

from ..build import load_language_model
from ..config.schema import LanguageModelSettings, ModelSettings, TokenizerSettings
from ..model.precision import DTYPES, resolve_precision
from ..parallel.process_group import resolve_device
from ..torch_session import compute_alone_after_forks
from .generator import Generator


def load_generator(
    name_or_path: str,
    *,
    home: Path,
    accelerator: str = "auto",
    precision: str = "auto",
    vocab_file: str | None = None,
    merges_file: str | None = None,
) -> Generator:
    """Load a causal language model with its tokenizer.

    Its vocabulary is tied to the word embedding, so it has no weights beside the encoder's. Raises ConfigError if it is
    not causal or comes without a vocabulary and none is given, CheckpointError if its files are damaged.
    """
    settings = ModelSettings(
        language_model=LanguageModelSettings(pretrained_model_name=name_or_path),
        tokenizer=TokenizerSettings(vocab_file=vocab_file, merges_file=merges_file),
    )
    loaded = load_language_model(settings, home=home, seed=0)
    compute_alone_after_forks()
    device = resolve_device(accelerator)
    encoder = loaded.encoder.to(device, DTYPES[resolve_precision(precision, device)]).eval()
    return Generator(encoder, loaded.tokenizer)
