"""The keys of a config class with type, default and meaning, for help texts. Imports no torch.

The meaning is the docstring below the attribute, read from the source, so that it is written down once.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import typing
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class ConfigKey:
    """One key that a config file may set."""

    name: str
    """Nested keys are joined by dots, as in `run.steps`."""
    kind: str
    """Its type in words, such as `int` or `list of str`."""
    default: str
    """As in YAML; empty if the key must be given."""
    meaning: str
    """One paragraph."""


@dataclass(frozen=True)
class ConfigSection:
    """The keys of one config class."""

    name: str
    """Name of the key that holds the section, with dots; empty for the keys at the top."""
    meaning: str
    """What the section is for."""
    keys: tuple[ConfigKey, ...]


def config_sections(kind: type, name: str = "", meaning: str = "") -> list[ConfigSection]:
    """The keys of a config class and of the classes nested in it, one section per class, the keys at the top first.

    Args:
        kind: a dataclass whose fields all have type hints.
        name: of the key that holds it, with dots.
        meaning: of that key; without one it is the class's own docstring.
    """
    meanings = attribute_docstrings(kind)
    hints = typing.get_type_hints(kind)
    keys, nested = [], []
    for field in dataclasses.fields(kind):
        full_name = f"{name}.{field.name}" if name else field.name
        field_meaning = meanings.get(field.name, "")
        if dataclasses.is_dataclass(hints[field.name]):
            nested += config_sections(hints[field.name], full_name, field_meaning)  # type: ignore[arg-type]
        else:
            keys.append(ConfigKey(full_name, type_name(hints[field.name]), default_of(field), field_meaning))
    own = meaning or one_paragraph(inspect.getdoc(kind) or "")
    return [ConfigSection(name, own, tuple(keys)), *nested]


@functools.cache
def attribute_docstrings(kind: type) -> dict[str, str]:
    """Docstrings below the attributes of a class, by attribute, each as one line."""
    module = sys.modules[kind.__module__]
    tree = ast.parse(inspect.getsource(module))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    found = {}
    for attribute, below in itertools.pairwise(body):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[attribute.target.id] = one_paragraph(below.value.value)
    return found


def one_paragraph(text: str) -> str:
    """The text with single spaces instead of line breaks and indentation."""
    return " ".join(text.split())


def type_name(hint: Any) -> str:
    """A type hint in words: `int`, `list of str`, `[float, float]`, `str: float`, or `list of objects`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {type_name(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin is dict:
        return f"{{{type_name(arguments[0])}: {type_name(arguments[1])}}}"
    return "objects" if dataclasses.is_dataclass(hint) else hint.__name__


def default_of(field: "dataclasses.Field[Any]") -> str:
    """A field's default as YAML in one line; empty if there is none."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]
