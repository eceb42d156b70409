"""Parse command-line overrides such as `trainer.max_epochs=2` into an instance of a settings dataclass.

The grammar of the overrides is Hydra's, the type checks are OmegaConf's. This module adds error messages with the key,
the reason and the closest valid name, and accepts the keys of NeMo 1.x: it translates them, or ignores those without
effect, with a notice.
"""

import copy
import difflib
import functools
import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from .listing import Setting, list_settings, show
from .nemo_keys import ELSEWHERE, FILE_BLOCKS, IGNORED, RENAMED, translate

# How YAML files for Hydra write a value that is to be given on the command line.
MISSING = "???"

PLAIN_OVERRIDE = re.compile(
    r"""(?P<key>[a-z_]\w*(?:\.[a-z_]\w*)*)=(?:(?P<word>[a-z_]\w*)|(?P<number>-?(?:0|[1-9]\d*))|"(?P<text>[^"\\$]*)")""",
    re.ASCII | re.IGNORECASE,
)
# Types of settings -> those of values that they keep
PLAIN_TYPES: Mapping[str, Sequence[type]] = {
    "int": (int,), "float": (float,), "bool": (bool,), "str": (str,), "int | float": (int, float),
    "Any": (str,)}  # fmt: skip
NO_STRINGS = ("null", "true", "false", "nan", "inf")

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

    Interpolations such as ${oc.env:HOME} are resolved in `file` and `overrides`; in `base`, which comes with a run's
    files, they are text. Returns the instance and the notices to print (NeMo 1.x keys that are renamed or ignored).
    For messages `owner` is the name of the task or command. Raises ConfigError that lists all unknown keys, or for the
    first invalid value.
    """
    settings, overrides = {setting.key: setting for setting in list_settings(schema)}, list(overrides)
    plain = _plain_instance(schema, settings, base or {}, overrides) if file is None else None
    if plain is not None:
        return plain, []
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(schema)
    resolver = _KeyResolver(settings)
    words = list(_parse(overrides))
    own = ((key, _escape_interpolations(value)) for key, value in flatten(base or {}))
    for key, value in itertools.chain(own, _read_file(file, words), words):
        for resolved, assigned in resolver.resolve(key, value):
            _assign(tree, resolved, assigned, settings.get(resolved))
    if resolver.unknown:
        raise ConfigError(_unknown_keys(resolver.unknown, settings, owner))
    try:
        return typing.cast(SettingsType, OmegaConf.to_object(tree)), resolver.notices()
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{reason}. Write \\${{...}} for ${{...}} that is meant as text.") from None


def _plain_instance(
    schema: type[SettingsType], settings: Mapping[str, Setting], base: Mapping[str, Any], overrides: Iterable[str]
) -> SettingsType | None:
    """Build an instance of values that are as it has them; else return None.

    OmegaConf, whose import takes 0.2 s, and Hydra then need not be imported.
    """
    instance = schema()
    for item in itertools.chain(flatten(base), map(_plain_override, overrides)):
        key, value = item or ("", None)
        setting = settings.get(key)
        if setting is None or not _is_plain(value, setting) or translate(key, value) != (key, value, None):
            return None
        *blocks, name = key.split(".")
        setattr(functools.reduce(getattr, blocks, instance), name, copy.copy(value))
    return instance


def _is_plain(value: Any, setting: Setting) -> bool:
    if type(value) is type(setting.default) and value == setting.default and value != MISSING:
        return True
    if setting.key == "trainer.devices":
        return False
    if value is None:
        return setting.type_name.endswith(" or null")
    if setting.choices and value not in setting.choices:
        return False
    return type(value) in PLAIN_TYPES.get(setting.type_name.removesuffix(" or null"), ()) and value != MISSING


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
    for given in overrides:
        if plain := _plain_override(given):
            yield plain
            continue
        ((word, override),) = _parse_words([given])
        if word.startswith("~"):
            raise ConfigError(f"{word}: a setting cannot be removed. Give it another value, for example null.")
        if override.is_sweep_override():
            raise ConfigError(
                f"{word} has several values. Add -m to run once for each, or quote it: "
                f"'{override.key_or_group}=\"{word.partition('=')[2]}\"'."
            )
        yield override.key_or_group, override.value()


def _plain_override(word: str) -> tuple[str, Any] | None:
    """Parse key=value of a word, a whole number or a quoted string as Hydra does, whose import takes 0.1 s."""
    match = PLAIN_OVERRIDE.fullmatch(word)
    if match is None or (match["word"] or "").lower() in NO_STRINGS:
        return None
    if match["number"]:
        return match["key"], int(match["number"])
    return match["key"], match["word"] or match["text"]


def _read_file(file: Path | None, overrides: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Read the keys and values of a YAML file, with ${key} resolved to the value that the overrides give it."""
    if file is None:
        return
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.load(file)
        keys = list(flatten(OmegaConf.to_container(content))) if OmegaConf.is_dict(content) else []
        names = {key for key, _ in keys}
        for key, value in overrides:
            if key in names:
                OmegaConf.update(content, key, value)
        resolved: Any = OmegaConf.to_container(content, resolve=True)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as YAML settings: {error}") from None
    if not isinstance(resolved, dict):
        raise ConfigError(f"{file} contains no settings. Write nested keys, such as 'trainer: {{max_epochs: 2}}'.")
    yield from flatten(resolved)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the settings of nested blocks as they are written on the command line."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _escape_interpolations(value: Any) -> Any:
    r"""Make OmegaConf take ${...} in a value as text: \${...}, with the backslashes before it doubled."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", value)
    if isinstance(value, list):
        return [_escape_interpolations(item) for item in value]
    if isinstance(value, dict):
        return {key: _escape_interpolations(item) for key, item in value.items()}
    return value


class _KeyResolver:
    """Resolve written keys to those of a schema; collects unknown keys, and notices about NeMo's."""

    def __init__(self, settings: dict[str, Setting]) -> None:
        self._settings = settings
        self._mappings = [key for key, setting in settings.items() if isinstance(setting.default, dict)]
        self._renamed: dict[str, None] = {}  # in the order in which they came
        self._ignored: dict[str, list[str]] = {}
        self.unknown: dict[str, None] = {}

    def resolve(self, key: str, value: Any) -> list[tuple[str, Any]]:
        """Return the schema's key and its value; nothing where the key has no effect or is unknown."""
        if value == MISSING:
            return []
        key, value, notice = translate(key, value)
        if notice is not None:
            self._renamed[notice] = None
        if key in self._settings or any(key.startswith(f"{mapping}.") for mapping in self._mappings):
            return [(key, value)]
        if key in FILE_BLOCKS and isinstance(value, str | list | None):
            return [(f"{key}.file", value)]
        found = _parent_in(key, RENAMED)
        for name in RENAMED.get(found, "").split():
            resolved = name + key.removeprefix(found)
            if resolved in self._settings or any(resolved.startswith(f"{mapping}.") for mapping in self._mappings):
                self._renamed[f"{found} is named {name} here."] = None
                return [(resolved, value)]
        is_empty = value is None or value is False or value == -1 or value in ([], {})
        if key in ELSEWHERE:
            if not is_empty:
                raise ConfigError(f"{key}={show(value)} is not possible here. {ELSEWHERE[key]}.")
            return []
        found = _parent_in(key, IGNORED)
        if found:
            if not is_empty and key not in self._ignored.setdefault(IGNORED[found], []):
                self._ignored[IGNORED[found]].append(found if found != key else key)
            return []
        inside = next((known for known in self._settings if known.startswith(f"{key}.")), None)
        if inside is None:
            self.unknown[key] = None
        elif not is_empty:
            raise ConfigError(f"{key} is a group of settings and has no value itself. Set, for example, {inside}.")
        return []

    def notices(self) -> list[str]:
        """Return a line for each renamed key and for each reason why keys have no effect."""
        ignored = [
            f"{', '.join(dict.fromkeys(keys))} {'has' if len(set(keys)) == 1 else 'have'} no effect: {reason}."
            for reason, keys in self._ignored.items()
            if keys
        ]
        return [*self._renamed, *ignored]


def _parent_in(key: str, table: Mapping[str, str]) -> str:
    """Return the key, or the group that it is in, that a table has; "" if it has none."""
    parts = key.split(".")
    groups = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    return next((group for group in groups if group in table), "")


def _unknown_keys(keys: Iterable[str], settings: Iterable[str], owner: str) -> str:
    """List unknown keys, each with the nearest name."""
    remedy = f"`megabert config {owner}` lists them all."
    names = list(keys)
    if len(names) == 1:
        return f"{names[0]} is not a setting of {owner}.{did_you_mean(names[0], settings)} {remedy}"
    lines = [f"  {name}{did_you_mean(name, settings)}" for name in names]
    return "\n".join([f"{len(names)} keys are not settings of {owner}:", *lines, remedy])


def _assign(tree: Any, key: str, value: Any, setting: Setting | None) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if key == "trainer.devices":
        OmegaConf.update(tree, "trainer.device_ids", value if isinstance(value, list) else None)
        value = _device_count(value)
    if value is None and setting is not None and setting.default is not None and "null" not in setting.type_name:
        value = setting.default  # NeMo writes null for a default
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
