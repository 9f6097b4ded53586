"""Config classes <-> YAML, strictly. Imports no torch.

A file holds only what differs from the defaults. Unknown keys and wrong types are refused with the key's full name, and
`key=value` overrides from the command line pass the same checks. Renamed keys are read under their old names, too
(`config/renamed.py`).
"""

import contextlib
import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dalle_mini_impl.config import renamed
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped
from dalle_mini_impl.util.read_files import read_file

C = TypeVar("C")


MAX_YAML_BYTES = 2**18
"""Largest YAML text that is read; the parser takes seconds for so much."""
MAX_YAML_DEPTH = 20
"""Deepest nesting of lists and mappings in a YAML text."""
MAX_INTEGER = 2**63 - 1
"""Largest whole number of a setting."""


class _Loader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans, so that the language code `no` stays text (as in YAML 1.2).

    A key that occurs twice in one mapping is refused; plain YAML silently takes the last. Aliases, with which a few
    lines can stand for gigabytes, and deep nesting are refused, too.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_YAML_DEPTH} levels deep", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key_node.start_mark)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """Parse a YAML text into plain values, in time and memory that its length bounds.

    Raises:
        yaml.YAMLError: it is not valid, has aliases or duplicate keys, or is longer or more deeply nested than configs
            are.
    """
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"{len(text):,} characters; expected up to {MAX_YAML_BYTES:,}")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError, RecursionError) as error:
        # Such as a date with a month 13, a number of 5,000 digits, or a tag on a value of another kind.
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from error


def read_yaml_file(path: str | Path, what: str, advice: str) -> Any:
    """Parse a YAML file into plain values; see `read_yaml`.

    Args:
        path: of the file.
        what: what the file is, for error messages.
        advice: what to do where it cannot be read, for error messages.

    Raises:
        UserError: it cannot be read, or is not YAML in UTF-8.
    """
    content = read_file(path, MAX_YAML_BYTES, what, advice)
    try:
        return read_yaml(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} {path} is not YAML in UTF-8: {reason}; {advice}") from error


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and `key=value` overrides into a config.

    Prints a warning for each renamed key or value that is given under its old name.

    Args:
        kind: the config class.
        path: the YAML file; `configs/…` also finds those that ship with the package.
        overrides: such as `run.steps=50`; the value is read as YAML.

    Raises:
        UserError: the file cannot be read, a key or value is wrong, or a number is out of its range; the message names
            it.
    """
    return build_checked(kind, read_values(kind, path, overrides), str(path))


def read_values(kind: type, path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The first half of `load`: what file and overrides give, as nested plain values with current names.

    Raises:
        UserError: the file cannot be read, or an override is malformed.
    """
    values = read_yaml_file(find_shipped(path), "config", "give an existing YAML file") or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {shown(values)}")
    # Renamed before they are merged, so that file and overrides may differ in which names they use.
    values = _with_new_names(kind, values, str(path), warn=True)
    for override in overrides:
        _apply_override(kind, values, override)
    return values


def build_checked(kind: type[C], values: dict[str, Any], where: str) -> C:
    """The second half of `load`: the config of what `read_values` returned.

    Raises:
        UserError: a key or value is wrong, or a number is out of its range; the message names it.
    """
    config = _build(kind, values, where)
    check_ranges(config)
    return config


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
        raise UserError(f"{where}: expected keys and values, got {shown(values)}")
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
            raise UserError(f"{where}: expected {len(arguments)} values, got {shown(value)}")
        item_hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(item_hint, item, where) for item_hint, item in zip(item_hints, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if type(value) is int and hint in (int, float) and abs(value) > MAX_INTEGER:
        raise UserError(f"{where}: expected a number of at most {MAX_INTEGER}, got one with {len(str(value))} digits")
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3, which has no dot, as a string.
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(value)):
                return number
        raise UserError(f"{where}: expected float, got {shown(value)}")
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise UserError(f"{where}: expected {name or hint}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for an error message, in one line that is not too long."""
    text = reprlib.repr(value) if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
