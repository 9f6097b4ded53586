"""Errors that the user can fix."""

import ast
import re
from pathlib import Path

import pytest

import dalle_mini_impl
from dalle_mini_impl.util.errors import need_extra

PACKAGE = Path(dalle_mini_impl.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"


def test_missing_package_is_named_with_commands_that_install_it():
    assert str(need_extra("resvg-py", "emoji")) == (
        "resvg-py is not installed; run: pip install resvg-py (in a clone: pip install -c constraints.txt '.[emoji]')"
    )
    assert "run: pip install transformers protobuf (in" in str(need_extra("transformers", "clip", "protobuf"))


def calls_of_need_extra():
    """Arguments of every call in the package whose arguments are all literal."""
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "need_extra":
                values = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                if len(values) == len(call.args):
                    yield values


def test_every_named_extra_contains_the_named_packages():
    if not PYPROJECT.is_file():
        pytest.skip("the extras are in the checkout's pyproject.toml")
    table = PYPROJECT.read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = {
        name: set(re.findall(r'"([\w-]+)[^"]*"', requirements))
        for name, requirements in re.findall(r"^([\w-]+) = \[(.*)\]", table, re.MULTILINE)
    }
    calls = list(calls_of_need_extra())
    assert len(calls) > 10
    for package, extra, *others in calls:
        assert {package, *others} <= extras[extra], f"extra {extra} lacks a package of {[package, *others]}"
