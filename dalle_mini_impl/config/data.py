"""Where captioned pictures come from, and how they are augmented."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = ""
    """A folder of pictures with captions, a JSONL/CSV file, or WebDataset tars (a folder or a glob)."""
    store: str = ""
    """Folder of decoded pictures, built from `source` when it does not exist yet."""
    store_size: int = 128
    """Side in pixels at which pictures are stored; about twice what the models see leaves room to crop."""
    validation: float = 0.05
    """Share of pictures held out, where the source does not say which."""
    skip_kinds: tuple[str, ...] = ()
    """Pictures to leave out by their `kind` detail (emoji: `flag`, `person-variant`)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random variants of a picture."""

    scale: tuple[float, float] = (0.85, 1.0)
    """Range of the picture's size relative to the frame."""
    shift: float = 0.06
    """Largest shift in either direction, as a share of the frame."""
    flip: float = 0.5
    """Chance of mirroring pictures that may be mirrored."""
    background: float = 0.25
    """Chance of a random colour instead of white behind transparent pictures."""
    crop: bool = False
    """Of pictures larger than the frame (`scale` above 1) show any part, not the middle."""
