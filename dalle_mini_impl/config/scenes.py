"""What composed scenes can be asked for."""

TASKS = ("single", "two", "position", "counting", "colour", "two_colours")
"""Kinds of scenes, after the tasks of GenEval."""
LANGUAGES = ("en", "de", "no", "sl", "et", "nl")
"""Languages of their captions."""
