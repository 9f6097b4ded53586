"""The tabs of the page, one file each: a file that is added here is a tab.

A tab has `TITLE`, its name on the page; `PLACE`, tabs being ordered by it; and `build(shared)`, which lays out its
components within the tab and says what happens when they are used.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol, cast

from dalle_mini_impl.app.shared import Shared


class Tab(Protocol):
    """What the module of a tab has."""

    TITLE: str
    PLACE: int
    build: Callable[[Shared], None]


def find_tabs() -> list[tuple[str, Tab]]:
    """All tabs with the names of their modules, in their order on the page."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    tabs = [(name, cast(Tab, importlib.import_module(f"{__name__}.{name}"))) for name in names]
    return sorted(tabs, key=lambda tab: tab[1].PLACE)
