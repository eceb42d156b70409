"""From command-line words such as `trainer.max_epochs=2` to a checked instance of a settings dataclass.

The grammar of the overrides is Hydra's, the type checks are OmegaConf's; what this module adds is that every
mistake is answered with the key, the reason and the nearest right name, and that keys which NeMo 1.x had and
megabert has no use for are named in a notice and not rejected.
"""

import difflib
import itertools
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .listing import Setting, list_settings, show
from .nemo_keys import FILE_BLOCKS, NEEDLESS, RENAMED

SettingsType = TypeVar("SettingsType")


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
