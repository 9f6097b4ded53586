"""What composed scenes can be asked for."""

JUDGED_TASKS = ("single", "two", "position", "counting", "colour", "two_colours")
"""Kinds of scenes after the tasks of GenEval, which `dalle evaluate scenes` can judge."""
TASKS = (*JUDGED_TASKS, "size", "turned", "look", "wearing")
"""Kinds of scenes."""
LANGUAGES = ("en", "de", "no", "sl", "et", "nl")
"""Languages of their captions."""
