"""Find and open the checkpoint and vocabulary that settings name: a published name, a hub's, or a user's paths.

User configuration takes precedence: model.language_model and model.tokenizer over the catalog, the catalog over files.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.schema import LanguageModelSettings, ModelSettings, TokenizerSettings
from ..errors import CheckpointError, ConfigError
from ..json_documents import read_json_object
from ..tokenizers.load import load_tokenizer, read_tokenizer
from ..tokenizers.wordpiece import Tokenizer
from . import catalog
from .hub import fetch_from_hub, is_hub_name
from .native.run_checkpoints import encoder_of_run
from .open import Checkpoint, open_checkpoint
from .user_config import parse_user_config


@dataclass(frozen=True)
class ModelSource:
    """Paths of the weights and the vocabulary of a language model, and its configuration; None where not given."""

    weights: Path | None
    vocabulary: Path | None = None
    merges: Path | None = None
    lower_case: bool | None = None
    published: str | None = None
    """The published name whose vocabulary serves where nothing else gives one."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Sizes and choices of the network that its file need not hold, as NVIDIA's BioMegatron files do not."""
    config_source: str = ""
    dropout: Mapping[str, float] = field(default_factory=dict)
    """Probabilities of dropout that the settings give."""


@dataclass(frozen=True)
class OpenedSource:
    """An opened checkpoint with the vocabulary that belongs to it."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None

    @property
    def num_tokens(self) -> int | None:
        """The true size of the vocabulary where it is known; rows of the embedding may be padded."""
        return None if self.tokenizer is None else len(self.tokenizer)


def find_source(model: ModelSettings, *, home: Path) -> ModelSource:
    """Resolve what model.language_model and model.tokenizer name; downloads a published checkpoint into `home`.

    Raises ConfigError where the settings name nothing loadable.
    """
    settings, tokenizer = model.language_model, model.tokenizer
    dropout = dropout_of(settings)
    source = replace(_find_weights(settings, home), dropout=dropout)
    if tokenizer.vocab_file is not None:
        merges = None if tokenizer.merges_file is None else Path(tokenizer.merges_file)
        source = replace(source, vocabulary=Path(tokenizer.vocab_file), merges=merges)
    if tokenizer.do_lower_case is not None:
        source = replace(source, lower_case=tokenizer.do_lower_case)
    if settings.config_file is not None:
        return replace(source, config=read_json_object(Path(settings.config_file)), config_source=settings.config_file)
    if settings.config:
        return replace(source, config=settings.config, config_source="model.language_model.config")
    return replace(source, config_source=f"the catalog for {settings.pretrained_model_name}")


def open_source(
    source: ModelSource, *, home: Path, qkv_layout: str | None = None, ignored: Collection[str] = ()
) -> OpenedSource:
    """Open a source's weights and tokenizer. Raises CheckpointError where the files do not fit each other."""
    assert source.weights is not None, "a source without weights is initialized, not opened"
    checkpoint = open_checkpoint(
        source.weights,
        config=source.config,
        config_source=source.config_source,
        qkv_layout=qkv_layout,
        ignored=ignored,
    )
    if source.vocabulary is None and not checkpoint.tokenizer_files and source.published is not None:
        source = replace(source, vocabulary=catalog.resolve(source.published, home=home, weights=False).vocabulary)
    lower_case = checkpoint.lower_case if source.lower_case is None else source.lower_case
    rules = checkpoint.tokenizer_rules
    if source.vocabulary is not None:
        given = read_tokenizer(source.vocabulary, source.merges, lower_case=lower_case, rules=rules)
        return OpenedSource(checkpoint, given)
    if checkpoint.tokenizer_problem:
        raise CheckpointError(checkpoint.tokenizer_problem)
    tokenizer = load_tokenizer(
        checkpoint.tokenizer_files, lower_case=lower_case, rules=rules, source=checkpoint.tokenizer_source
    )
    return OpenedSource(checkpoint, tokenizer)


def open_named_source(
    name_or_path: str,
    *,
    home: Path,
    config_file: Path | None = None,
    vocab_file: Path | None = None,
    qkv_layout: str | None = None,
    ignored: Collection[str] = (),
) -> OpenedSource:
    """Open a published name or a path for `inspect` and `convert`, with the vocabulary's files in the checkpoint."""
    text = {"config_file": config_file, "vocab_file": vocab_file}
    given = {name: None if path is None else str(path) for name, path in text.items()}
    settings = LanguageModelSettings(pretrained_model_name=name_or_path, config_file=given["config_file"])
    model = ModelSettings(language_model=settings, tokenizer=TokenizerSettings(vocab_file=given["vocab_file"]))
    source = find_source(model, home=home)
    opened = open_source(source, home=home, qkv_layout=qkv_layout, ignored=ignored)
    checkpoint, tokenizer = opened.checkpoint, opened.tokenizer
    if tokenizer is not None and source.vocabulary is not None:
        files = {name: content.encode() for name, content in tokenizer.files().items()}
        checkpoint = replace(checkpoint, tokenizer_files=files, tokenizer_source=str(source.vocabulary))
    if tokenizer is not None and "vocab.txt" in checkpoint.tokenizer_files:
        checkpoint = replace(checkpoint, lower_case=tokenizer.lower_case)
    return OpenedSource(checkpoint, tokenizer)


def _find_weights(settings: LanguageModelSettings, home: Path) -> ModelSource:
    name = settings.pretrained_model_name
    given = Path(settings.lm_checkpoint) if settings.lm_checkpoint is not None else None
    if name is None or (given is None and Path(name).exists()):
        return ModelSource(given or (Path(name) if name else None))
    if not catalog.is_published(name) and is_hub_name(name):
        return ModelSource(given or fetch_from_hub(name))
    lower_case = not catalog.find(name).vocabulary.is_cased
    if given is not None:
        return ModelSource(given, lower_case=lower_case, published=name)
    files = catalog.resolve(name, home=home)
    if files.weights is None and files.published.architecture is not None:
        raise ConfigError(f"{name}: {files.published.note} {files.published.page}")
    if files.weights is None:
        raise ConfigError(
            f"{name} stands for any checkpoint of that case and has no weights of its own. Give yours: "
            "--bert_checkpoint FILE_OR_FOLDER (and --bert_config FILE where it does not hold its sizes)."
        )
    sizes = asdict(files.published.architecture) if files.published.architecture is not None else {}
    return ModelSource(files.weights, files.vocabulary, lower_case=lower_case, config=sizes)


def dropout_of(settings: LanguageModelSettings) -> dict[str, float]:
    """Return the dropout probabilities that settings give. Raises ConfigError for one outside of [0, 1)."""
    values = {"hidden_dropout": settings.hidden_dropout, "attention_dropout": settings.attention_dropout}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if not 0 <= value < 1:
            raise ConfigError(f"model.language_model.{name}={value:g}; a probability from 0 to below 1 is needed.")
    return given


def check_network_of_run(
    model: ModelSettings, documents: Mapping[str, Any], texts: Mapping[str, str], source: str
) -> None:
    """Compare what settings give of an architecture and a vocabulary with those of a run, which do not change.

    Raises ConfigError where they differ. Files that are no longer there are not compared: the run holds their contents.
    """
    settings, tokenizer = model.language_model, model.tokenizer
    config, config_file = settings.config, settings.config_file
    if config_file is not None:
        config = read_json_object(Path(config_file)) if Path(config_file).is_file() else {}
    origin = config_file or "model.language_model.config"
    shape = parse_user_config(config, origin, ignored=settings.ignored_arguments).shape
    encoder = encoder_of_run(documents, source)
    given = {
        f"model.language_model: {name}": (value, encoder.get(name))
        for name, value in {**shape, **dropout_of(settings)}.items()
    }
    if tokenizer.do_lower_case is not None:
        stored = documents.get("tokenizer", {}).get("lower_case")
        given["model.tokenizer.do_lower_case"] = (tokenizer.do_lower_case, stored)
    if changed := [f"{name} is {new}, of the run {old}" for name, (new, old) in given.items() if new != old]:
        raise ConfigError(f"{source} has another network: {'; '.join(changed)}. Leave these settings out.")
    file = None if tokenizer.vocab_file is None else Path(tokenizer.vocab_file)
    if file is not None and file.is_file() and file.suffix == ".txt":
        vocabulary = read_tokenizer(file, None, lower_case=None).files()
        if any(texts.get(name, text) != text for name, text in vocabulary.items()):
            raise ConfigError(
                f"model.tokenizer.vocab_file={file} is not the vocabulary of {source}, on which its weights depend. "
                "Leave it out: the run contains its own."
            )
