"""Every number option of every command takes numbers in a range, or ends with one line."""

import click
import pytest
from helpers.commands import all_commands

from dalle_mini_impl.cli.options import CommaSeparated

OPTIONS = [
    (words, option)
    for words, command in all_commands().items()
    for option in command.params
    if isinstance(option, click.Option)
    and isinstance(
        option.type.item if isinstance(option.type, CommaSeparated) else option.type,
        click.types.FloatParamType | click.types.IntParamType,
    )
]


@pytest.mark.parametrize(("words", "option"), OPTIONS, ids=lambda value: str(getattr(value, "name", value)))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "x", ""])
def test_what_is_no_finite_number_is_refused(words, option, value):
    context = click.Context(click.Command(words))
    converted = (value,) if option.multiple else value
    with pytest.raises(click.BadParameter) as caught:
        option.type_cast_value(context, converted)
    assert "\n" not in caught.value.format_message()


def test_options_were_found():
    assert len(OPTIONS) > 30
