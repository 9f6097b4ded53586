import dataclasses
from dataclasses import dataclass, field

import pytest

from dalle_mini_impl.config.keys import ConfigKey, attribute_docstrings, config_sections, type_name
from dalle_mini_impl.train.stages import STAGES


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What the class says."""

    sizes: tuple[int, ...] = (3, 5)
    """Two
    lines."""
    undocumented: bool = False


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    """No default."""
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)
    """What the key says."""
    weights: dict[str, float] = field(default_factory=dict)
    """A map."""


def test_keys_have_name_type_default_and_meaning():
    top, inner, other = config_sections(Outer)
    assert top.keys == (
        ConfigKey("name", "str", "", "No default."),
        ConfigKey("weights", "{str: float}", "{}", "A map."),
    )
    assert inner.keys == (
        ConfigKey("inner.sizes", "list of int", "[3, 5]", "Two lines."),
        ConfigKey("inner.undocumented", "bool", "false", ""),
    )
    assert (inner.name, inner.meaning) == ("inner", "What the class says.")
    assert (other.name, other.meaning) == ("other", "What the key says.")


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (float, "float"),
        (tuple[str, ...], "list of str"),
        (tuple[float, int], "[float, int]"),
        (dict[str, float], "{str: float}"),
        (tuple[Inner, ...], "list of objects"),
    ],
)
def test_type_names(hint, name):
    assert type_name(hint) == name


def config_classes(kind, found):
    """A config class and all that are nested in it."""
    found.add(kind)
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(one.type):
            config_classes(one.type, found)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_every_stage_has_a_meaning(stage):
    for section in config_sections(STAGES[stage].config):
        assert section.meaning
        assert [key.name for key in section.keys if not key.meaning] == []


def test_every_nested_class_is_listed():
    for stage in STAGES.values():
        listed = {key.name for section in config_sections(stage.config) for key in section.keys}
        count = sum(
            not dataclasses.is_dataclass(one.type)
            for kind in config_classes(stage.config, set())
            for one in dataclasses.fields(kind)
        )
        assert len(listed) == count
        assert set(attribute_docstrings(stage.config)) - {"model", "sampling", "about"} <= listed
