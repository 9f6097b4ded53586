"""What composed scenes can be asked for, and their part in a training."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import Share

JUDGED_TASKS = ("single", "two", "position", "counting", "colour", "two_colours", "size", "turned", "look")
"""Kinds of scenes that `dalle evaluate scenes` can judge; the first six are the tasks of GenEval."""
TASKS = (*JUDGED_TASKS, "wearing")
"""Kinds of scenes."""
LANGUAGES = ("en", "de", "no", "sl", "et", "nl")
"""Languages of their captions."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Scenes of the emoji set's pictures in every batch: composed anew for each row of each step, stored nowhere."""

    store: str = ""
    """The emoji set or a picture store of it, of whose training pictures scenes are composed; empty for no scenes."""
    share: Share = 0.5
    """Share of each batch that is scenes."""
    tasks: tuple[str, ...] = TASKS
    """Kinds of scenes; see `dalle data scenes --help`. One that stands twice in the list is twice as frequent."""
    original_placement: Share = 0.0
    """Share of the scenes of one thing, unchanged or recoloured, in which it has the position and the size that it has
    in the vendor's picture; in the others both are random."""
