"""What a service may be asked for. Imports no torch, so that `dalle serve --help` is fast."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import Count, Positive

MEGABYTE = 2**20
"""Bytes."""
QUALITIES = {"low": 1, "medium": 4, "high": 16, "auto": 4, "standard": 4, "hd": 16}
"""Word of OpenAI's API for how good pictures shall be -> candidates that are drawn for each one that is returned."""
RANDOM_SEEDS = 2**32
"""Seeds of runs are chosen below this number where a request names none."""


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds of what one request may ask for, and of how many are answered at a time."""

    max_candidates: Count = 64
    """Most candidates of a request."""
    max_prompt: Count = 1000
    """Most characters of a text."""
    max_upload: Positive = 4.0
    """Most megabytes of a request, uploaded pictures included."""
    max_pixels: Count = 2**24
    """Most pixels of an uploaded picture, and of all pictures of an answer together."""
    queue: Count = 64
    """Most requests that are read, wait or are drawn at the same time."""
    upload_seconds: Positive = 30.0
    """Longest time that a client may take to send a request."""
    url_seconds: Positive = 3600.0
    """How long the pictures of answers with addresses are kept."""
    grace: Positive = 60.0
    """Seconds after which a service that shall end gives up what it has not finished."""
