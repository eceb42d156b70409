"""From command-line words such as `trainer.max_epochs=2` to a checked instance of a settings dataclass.

The grammar of the overrides is Hydra's, the type checks are OmegaConf's; what this module adds is that every
mistake is answered with the key, the reason and the nearest right name, and that keys which NeMo 1.x had and
megabert has no use for are named in a notice and not rejected.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

SettingsType = TypeVar("SettingsType")

# NeMo 1.x keys with another name here.
RENAMED = {
    "trainer.gpus": "trainer.devices",
    "model.dataset.do_lower_case": "model.tokenizer.do_lower_case",
    "model.dataset.use_cache": "model.train_ds.use_cache",
    "model.validation_ds.file_path": "model.validation_ds.file",
    "model.train_ds.file_path": "model.train_ds.file",
    "model.test_ds.file_path": "model.test_ds.file",
    "model.language_model.max_seq_length": "model.dataset.max_seq_length",
    "model.tokenizer.merge_file": "model.tokenizer.merges_file",
    "model.data.data_prefix": "model.dataset.data_prefix",
    "model.data.splits_string": "model.dataset.splits_string",
    "model.data.seq_length": "model.dataset.max_seq_length",
    "model.data.masked_lm_prob": "model.dataset.masked_lm_prob",
    "model.data.short_seq_prob": "model.dataset.short_seq_prob",
    "model.data.eod_mask_loss": "model.dataset.eod_mask_loss",
    "model.bert_binary_head": "model.dataset.sentence_order",
    "model.punct_head.punct_num_fc_layers": "model.punct_head.num_fc_layers",
    "model.capit_head.capit_num_fc_layers": "model.capit_head.num_fc_layers",
    "exp_manager.checkpoint_callback_params.save_best_k": "exp_manager.checkpoint_callback_params.save_top_k",
}

# NeMo 1.x keys that have no effect here, and why.
NEEDLESS = {
    "trainer.amp_level": "trainer.precision chooses the arithmetic",
    "trainer.strategy": "trainer.devices and trainer.num_nodes choose the layout",
    "trainer.checkpoint_callback": "checkpoints are written by exp_manager's settings",
    "trainer.enable_checkpointing": "checkpoints are written by exp_manager's settings",
    "trainer.logger": "metrics.jsonl is always written",
    "trainer.num_sanity_val_steps": "the data is checked before training starts",
    "trainer.sync_batchnorm": "there is no batch norm",
    "model.nemo_path": "the run folder holds the model",
    "model.tokenizer.tokenizer_name": "the vocabulary comes with the checkpoint or from model.tokenizer.vocab_file",
    "model.tokenizer.special_tokens": "the special tokens are those of the vocabulary",
    "model.train_ds.num_workers": "no worker processes are needed",
    "model.train_ds.pin_memory": "copies to the device are chosen by the program",
    "model.validation_ds.num_workers": "no worker processes are needed",
    "model.validation_ds.pin_memory": "copies to the device are chosen by the program",
    "model.validation_ds.shuffle": "validation keeps the file's order",
    "model.validation_ds.drop_last": "every example is scored",
    "model.test_ds.num_workers": "no worker processes are needed",
    "model.test_ds.pin_memory": "copies to the device are chosen by the program",
    "model.test_ds.shuffle": "evaluation keeps the file's order",
    "model.test_ds.drop_last": "every example is scored",
    "model.label_ids": "labels are taken from the training data and kept with the run",
    "model.punct_label_ids": "labels are taken from the training data and kept with the run",
    "model.capit_label_ids": "labels are taken from the training data and kept with the run",
    "model.class_labels.class_labels_file": "labels are taken from the training data and kept with the run",
    "model.class_labels.punct_labels_file": "labels are taken from the training data and kept with the run",
    "model.class_labels.capit_labels_file": "labels are taken from the training data and kept with the run",
    "model.dataset.num_classes": "the classes are those of the training data",
    "model.dataset.num_workers": "no worker processes are needed",
    "model.dataset.pin_memory": "copies to the device are chosen by the program",
    "model.head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.classifier_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.punct_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.capit_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.pad_label": "tokens without a slot are left out of the loss",
    "model.token_classifier.num_classes": "the task knows its outputs",
    "model.token_classifier.log_softmax": "the loss takes logits",
    "model.token_classifier.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "exp_manager.checkpoint_callback_params.save_last": "the last checkpoint is always kept",
    "exp_manager.checkpoint_callback_params.always_save_nemo": "the run folder holds the model",
    "exp_manager.checkpoint_callback_params.save_best_model": "the best checkpoint is always kept",
}

# A value for one of these whole blocks means its file: NeMo's documentation says `model.validation_ds=FILE`.
FILE_BLOCKS = ("model.train_ds", "model.validation_ds", "model.test_ds")


@dataclass(frozen=True)
class Setting:
    """One key of a settings schema, as `megabert config` prints it."""

    key: str
    type_name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()


def list_settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """List the leaves of a settings dataclass in the order in which they are written."""
    hints = typing.get_type_hints(schema)
    helps = _help_strings(schema)
    default = schema()
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            # The instance, not the annotation: a subclass may put its own block or other defaults in place.
            yield from _with_defaults(value, f"{key}.")
        else:
            choices = field.metadata.get("choices", ())
            yield Setting(key, _type_name(hints[field.name]), value, helps.get(field.name, ""), choices)


def _with_defaults(block: Any, prefix: str) -> Iterator[Setting]:
    for setting in list_settings(type(block), prefix):
        value = block
        for name in setting.key.removeprefix(prefix).split("."):
            value = getattr(value, name)
        yield dataclasses.replace(setting, default=value)


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return name.replace("typing.", "").replace(" | None", " or null")


def _help_strings(schema: type) -> dict[str, str]:
    """Collect the string under each field, those of base classes included."""
    helps: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in itertools.pairwise(body.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    helps[statement.target.id] = " ".join(text.value.split())
    return helps


def compose(
    schema: type[SettingsType],
    overrides: Iterable[str],
    *,
    owner: str,
    file: Path | None = None,
    base: dict[str, Any] | None = None,
) -> tuple[SettingsType, list[str]]:
    """Build an instance of `schema` from its defaults, then `base` (a run's settings), `file` (YAML), `overrides`.

    Returns the instance and the notices to print (keys of NeMo 1.x that are renamed or needless).
    `owner` is the task's or command's name for messages.
    Raises ConfigError at the first key that does not exist or value that does not fit.
    """
    from omegaconf import OmegaConf  # here: `megabert --help` must not wait for it

    settings = {setting.key: setting for setting in list_settings(schema)}
    tree = OmegaConf.structured(schema)
    notices: list[str] = []
    given = itertools.chain(_flatten(base or {}, ""), _read_file(file), _parse(overrides))
    for key, value in given:
        new_key = _settle_key(key, value, settings, owner, notices)
        if new_key is not None:
            _assign(tree, new_key, value, settings)
    return typing.cast(SettingsType, OmegaConf.to_object(tree)), notices


def expand_sweep(overrides: Iterable[str]) -> list[list[str]]:
    """Expand Hydra's sweeps (`seed=1,2,3`, `lr=choice(1e-5,3e-5)`, `seed=range(1,4)`): every combination, in order."""
    alternatives = []
    for word, override in _parse_words(overrides):
        if override.is_sweep_override():
            alternatives.append([f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()])
        else:
            alternatives.append([word])
    return [list(combination) for combination in itertools.product(*alternatives)]


def _parse_words(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word!r} is not a setting. Write key=value, for example trainer.max_epochs=2.")
        try:
            yield word, parser.parse_override(word)
        except HydraException as error:
            key, _, value = word.partition("=")
            raise ConfigError(
                f"{word} cannot be read: {str(error).splitlines()[0]}. "
                f"Quote a value with special characters twice: '{key}=\"{value}\"'."
            ) from None


def _parse(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for word, override in _parse_words(overrides):
        if word.startswith("~"):
            raise ConfigError(f"{word}: a setting cannot be removed. Give it another value, for example null.")
        if override.is_sweep_override():
            raise ConfigError(
                f"{word} names several values. Add -m to run once for each, or quote it: "
                f"'{override.key_or_group}=\"{word.partition('=')[2]}\"'."
            )
        yield override.key_or_group, override.value()


def _read_file(file: Path | None) -> Iterator[tuple[str, Any]]:
    if file is None:
        return
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as YAML settings: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no settings: write nested keys, such as 'trainer: {{max_epochs: 2}}'.")
    yield from _flatten(content, "")


def _flatten(tree: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _settle_key(key: str, value: Any, settings: dict[str, Setting], owner: str, notices: list[str]) -> str | None:
    """Find the schema's key for a written one; None if the key is known and needless."""
    if key in settings or any(key.startswith(f"{known}.") and _is_mapping(settings[known]) for known in settings):
        return key
    if key in FILE_BLOCKS and (value is None or isinstance(value, str)):
        return f"{key}.file"
    if key in RENAMED and RENAMED[key] in settings:
        notices.append(f"{key} is called {RENAMED[key]} here.")
        return RENAMED[key]
    if key in NEEDLESS:
        notices.append(f"{key} has no effect: {NEEDLESS[key]}.")
        return None
    inside = [known for known in settings if known.startswith(f"{key}.")]
    if inside:
        raise ConfigError(f"{key} is a group of settings and takes no value of its own. Set for example {inside[0]}.")
    raise ConfigError(
        f"{key} is not a setting of {owner}.{_did_you_mean(key, settings)} `megabert config {owner}` lists them all."
    )


def _is_mapping(setting: Setting) -> bool:
    return isinstance(setting.default, dict)


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    name = nearest(key, known)
    return f" Did you mean {name}?" if name else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the known name that is closest to a misspelt one; a key's last part counts if the whole is far off."""
    known = list(known)
    whole = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = difflib.get_close_matches(word.rpartition(".")[2], by_last, n=1, cutoff=0.75)
    if last:
        return by_last[last[0]]
    loose = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return loose[0] if loose else None


def _assign(tree: Any, key: str, value: Any, settings: dict[str, Setting]) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    setting = settings.get(key)
    if key == "trainer.devices":
        value = _device_count(value)
    if setting is not None and setting.choices and value is not None and str(value) not in setting.choices:
        raise ConfigError(
            f"{key}={value} is not possible. Choose one of {', '.join(setting.choices)}."
            + _did_you_mean(str(value), setting.choices)
        )
    try:
        OmegaConf.update(tree, key, value, force_add=setting is None)
    except OmegaConfBaseException as error:
        expected = f"{setting.type_name} (default: {show(setting.default)})" if setting else "another type"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}={show(value)} does not fit: expected {expected}. {reason}.") from None


def _device_count(value: Any) -> Any:
    """Read the ways in which devices are written: 2, a list of device numbers, -1 or auto for all."""
    if isinstance(value, list):
        return len(value)
    return -1 if value == "auto" else value


def show(value: Any) -> str:
    """Write a value as one would on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
