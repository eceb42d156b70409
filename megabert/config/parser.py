"""Parse command-line overrides such as `trainer.max_epochs=2` into an instance of a settings dataclass.

The grammar of the overrides is Hydra's, the type checks are OmegaConf's. This module adds error messages with the key,
the reason and the closest valid name, and accepts the keys of NeMo 1.x: it translates them, or ignores those without
effect, with a notice.
"""

import difflib
import itertools
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .listing import Setting, list_settings, show
from .nemo_keys import FILE_BLOCKS, IGNORED, RENAMED

SettingsType = TypeVar("SettingsType")


def compose(
    schema: type[SettingsType],
    overrides: Iterable[str],
    *,
    owner: str,
    file: Path | None = None,
    base: dict[str, Any] | None = None,
    list_command: str | None = None,
) -> tuple[SettingsType, list[str]]:
    """Build an instance of `schema` from its defaults, then `base` (a run's settings), `file` (YAML), `overrides`.

    Returns the instance and the notices to print (NeMo 1.x keys that are renamed or ignored). For messages: `owner` is
    the name of the task or command, `list_command` the command that lists the settings (default: megabert config).
    Raises ConfigError for the first unknown key or invalid value.
    """
    from omegaconf import OmegaConf  # lazy: keeps `megabert --help` fast

    settings = {setting.key: setting for setting in list_settings(schema)}
    tree = OmegaConf.structured(schema)
    notices: list[str] = []
    for key, value in itertools.chain(_flatten(base or {}), _read_file(file), _parse(overrides)):
        resolved, notice = _resolve_key(key, value, settings)
        if notice is not None:
            notices.append(notice)
        if resolved is not None:
            _assign(tree, resolved, value, settings.get(resolved))
        elif notice is None:
            raise ConfigError(
                f"{key} is not a setting of {owner}.{did_you_mean(key, settings)} "
                f"`{list_command or f'megabert config {owner}'}` lists them all."
            )
    return typing.cast(SettingsType, OmegaConf.to_object(tree)), notices


def expand_sweep(overrides: Iterable[str]) -> list[list[str]]:
    """Expand Hydra sweeps (`seed=1,2,3`, `lr=choice(1e-5,3e-5)`, `seed=range(1,4)`): all combinations, in order."""
    alternatives = []
    for word, override in _parse_words(overrides):
        if override.is_sweep_override():
            alternatives.append([f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()])
        else:
            alternatives.append([word])
    return [list(combination) for combination in itertools.product(*alternatives)]


def quote(value: str) -> str:
    """Quote a string for Hydra's grammar, whatever characters it contains."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the closest known name as a sentence with a leading space; empty if none is close."""
    name = nearest(word, known)
    return f" Did you mean {name}?" if name else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the known name closest to a misspelt one; if no whole key is close, compare the last parts of the keys."""
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
                f"{word} cannot be parsed: {str(error).splitlines()[0]}. "
                f"Quote a value with special characters twice: '{key}=\"{value}\"'."
            ) from None


def _parse(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for word, override in _parse_words(overrides):
        if word.startswith("~"):
            raise ConfigError(f"{word}: a setting cannot be removed. Give it another value, for example null.")
        if override.is_sweep_override():
            raise ConfigError(
                f"{word} has several values. Add -m to run once for each, or quote it: "
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
        raise ConfigError(f"{file} contains no settings. Write nested keys, such as 'trainer: {{max_epochs: 2}}'.")
    yield from _flatten(content)


def _flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _resolve_key(key: str, value: Any, settings: dict[str, Setting]) -> tuple[str | None, str | None]:
    """Map a written key to the schema's; returns (key, notice), (None, notice) if ignored, (None, None) if unknown."""
    mappings = [known for known, setting in settings.items() if isinstance(setting.default, dict)]
    if key in settings or any(key.startswith(f"{mapping}.") for mapping in mappings):
        return key, None
    if key in FILE_BLOCKS and (value is None or isinstance(value, str)):
        return f"{key}.file", None
    if RENAMED.get(key) in settings:
        return RENAMED[key], f"{key} is named {RENAMED[key]} here."
    if key in IGNORED:
        return None, f"{key} has no effect: {IGNORED[key]}."
    inside = next((known for known in settings if known.startswith(f"{key}.")), None)
    if inside is not None:
        raise ConfigError(f"{key} is a group of settings and has no value itself. Set, for example, {inside}.")
    return None, None


def _assign(tree: Any, key: str, value: Any, setting: Setting | None) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if key == "trainer.devices":
        OmegaConf.update(tree, "trainer.device_ids", value if isinstance(value, list) else None)
        value = _device_count(value)
    if setting is not None and setting.choices and value is not None and str(value) not in setting.choices:
        raise ConfigError(
            f"{key}={value} is not possible. Choose one of {', '.join(setting.choices)}."
            + did_you_mean(str(value), setting.choices)
        )
    try:
        OmegaConf.update(tree, key, value, force_add=setting is None)
    except OmegaConfBaseException as error:
        expected = f"{setting.type_name} (default: {show(setting.default)})" if setting else "another type"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}={show(value)} does not fit: expected {expected}. {reason}.") from None


def _device_count(value: Any) -> Any:
    """Convert the notations for devices to a number: a number, a list of device numbers, -1 or auto for all."""
    if isinstance(value, list):
        return len(value)
    return -1 if value == "auto" else value
