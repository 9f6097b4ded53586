"""What a visitor may ask for at once, and what a field's value is told where it is not allowed. Imports no torch."""

import math
from typing import Any

MAX_CANDIDATES = 128
"""Pictures that one request draws."""
MAX_PROMPT = 1000
"""Characters of a prompt."""
MAX_STRIP = 16
"""Pictures of a strip from one picture to another."""
MAX_LABELS = 1000
"""Labels of a classification."""
MAX_LABEL_TEXT = 20_000
"""Characters of all labels."""
MAX_PAINT_STEPS = 1000
"""Steps of a painting."""
MAX_UPLOAD_BYTES = 32 * 2**20
"""Size of an uploaded file."""
MAX_REQUEST_BYTES = 512 * 2**20
"""Size of one request that uploads files."""
MAX_BODY_BYTES = 2 * 2**20
"""Size of any other request."""
MAX_FILES = 1000
"""Pictures of a folder that is uploaded."""
MAX_PIXELS = 40_000_000
"""Pixels of an uploaded picture."""
MAX_RETURNED_PIXELS = 2**22
"""Pixels of a picture of the page that it sends back, as where it is chosen."""
MAX_STORED_BYTES = 4 * 2**30
"""Uploaded files that are kept at the same time."""
UPLOADS_KEPT_SECONDS = 3600
"""How long an uploaded file is kept."""
MAX_WAITING = 200
"""Requests that wait in line."""
MAX_SESSIONS = 1000
"""Visitors whose last choices are remembered."""
MAX_SEED = 2**31 - 1
"""Largest seed of a run that the page asks for; browsers round integers above 2**53."""
KEPT = 8
"""Pictures shown of a request, the best of its candidates."""


def prompt_problem(prompt: Any, *, required: bool = True) -> str:
    """What is wrong with a prompt, in words for the place below its field; empty if nothing is."""
    if not isinstance(prompt, str) or (required and not prompt.strip()):
        return "Expected a description, got none; write what the picture shows, such as: a red heart"
    if len(prompt) > MAX_PROMPT:
        return f"Expected at most {MAX_PROMPT} characters, got {len(prompt)}; shorten it"
    return ""


def number_problem(value: Any, least: float, most: float, *, whole: bool = False) -> str:
    """What is wrong with a number, in words for the place below its field; empty if nothing is.

    Args:
        value: what the field holds.
        least: smallest number allowed.
        most: largest number allowed.
        whole: whether it has to be an integer.
    """
    kind = "a whole number" if whole else "a number"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (whole and value != int(value)):
        return f"Expected {kind}, got {value if value is not None else 'none'}; type one from {least} to {most}"
    if not least <= value <= most:
        return f"Expected {kind} from {least} to {most}, got {value}; change it"
    return ""


def read_labels(text: str) -> list[str]:
    """Labels, one per line or separated by commas, each once."""
    parts = (part.strip() for line in text.splitlines() for part in line.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def labels_problem(text: Any) -> str:
    """What is wrong with labels, in words for the place below their field; empty if nothing is."""
    labels = read_labels(text) if isinstance(text, str) else []
    if len(labels) < 2:
        return "Expected at least two labels, got fewer; write such as: a heart, a star"
    if len(labels) > MAX_LABELS or len(text) > MAX_LABEL_TEXT:
        return f"Expected at most {MAX_LABELS} labels and {MAX_LABEL_TEXT} characters, got more; leave some out"
    return ""
