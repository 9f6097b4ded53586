"""Config classes <-> YAML, strictly. Imports no torch.

A file holds only what differs from the defaults. Unknown keys and wrong types are refused with the key's full name, and
`key=value` overrides from the command line pass the same checks. Renamed keys are read under their old names, too
(`config/renamed.py`).
"""

import dataclasses
import difflib
import re
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dalle_mini_impl.config import renamed
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped

C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans, so that the language code `no` stays text (as in YAML 1.2).

    A key that occurs twice in one mapping is refused; plain YAML silently takes the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """Parse a YAML text into plain values; raises `yaml.YAMLError` if it is not valid."""
    return yaml.load(text, _Loader)


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and `key=value` overrides into a config.

    Prints a warning for each renamed key or value that is given under its old name.

    Args:
        kind: the config class.
        path: the YAML file; `configs/…` also finds those that ship with the package.
        overrides: such as `run.steps=50`; the value is read as YAML.

    Raises:
        UserError: the file cannot be read, or a key or value is wrong; the message names it.
    """
    try:
        values = read_yaml(find_shipped(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {values!r}")
    # Renamed before they are merged, so that file and overrides may differ in which names they use.
    values = _with_new_names(kind, values, str(path), warn=True)
    for override in overrides:
        _apply_override(kind, values, override)
    return _build(kind, values, str(path))


def from_dict(kind: type[C], values: Any, where: str = "config", *, warn: bool = False) -> C:
    """Build a config from nested plain values, strictly.

    Args:
        kind: the config class.
        values: a dictionary; renamed keys and values may have their old names.
        where: what error messages call the values.
        warn: print a warning for each old name. Off for checkpoints, whose header the user cannot change.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """
    return _build(kind, _with_new_names(kind, values, where, warn), where)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested values that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def _apply_override(kind: type, values: dict[str, Any], override: str) -> None:
    """Set one key of nested values to what a `key=value` override says."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"expected key=value such as run.steps=50, got {override!r}; write the setting so")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    nested: Any = {last: value}
    for parent in reversed(parents):
        nested = {parent: nested}
    nested = _with_new_names(kind, nested, f"override {override!r}", warn=True)
    for _ in parents:
        ((name, nested),) = nested.items()
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {name!r} is a single value, it has no keys of its own")
    values.update(nested)


def _with_new_names(kind: type, values: Any, where: str, warn: bool) -> Any:
    """Nested values in which renamed keys and values have their new names."""
    if not isinstance(values, dict):
        return values
    hints = typing.get_type_hints(kind)
    new_keys, new_values = renamed.KEYS.get(kind.__name__, {}), renamed.VALUES.get(kind.__name__, {})
    result: dict[str, Any] = {}
    for key, value in values.items():
        name: Any = new_keys.get(key, key)
        if name in result or (name != key and name in values):
            raise UserError(f"{where}: {key!r} is the old name of {name!r}, and both are given; remove {key!r}")
        new_value = new_values.get(name, {}).get(value, value) if isinstance(value, str) else value
        if warn and name != key:
            warnings.warn(f"{where}: {key!r} was renamed to {name!r}; write {name!r}", stacklevel=3)
        if warn and new_value != value:
            warnings.warn(f"{where}: {name} {value!r} was renamed to {new_value!r}; write {new_value!r}", stacklevel=3)
        if dataclasses.is_dataclass(hints.get(name)):
            new_value = _with_new_names(hints[name], new_value, f"{where}: {name}", warn)
        result[name] = new_value
    return result


def _build(kind: type[C], values: Any, where: str) -> C:
    """Build a config from nested values with current names."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(hints)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    required = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise UserError(f"{where}: {missing[0]!r} is missing; add it")
    return kind(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type that a field's hint names."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise UserError(f"{where}: expected {len(arguments)} values, got {value!r}")
        item_hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(item_hint, item, where) for item_hint, item in zip(item_hints, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3, which has no dot, as a string
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise UserError(f"{where}: expected {name or hint}, got {value!r}")
