"""Where captioned pictures come from, and how they are augmented."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = ""
    """A folder of pictures with captions, a JSONL or CSV file, or WebDataset tars (a folder or a glob)."""
    store: str = ""
    """Folder of decoded pictures; built from `source` if it does not exist yet."""
    store_size: int = 128
    """Side of the stored pictures in pixels; about twice the model's picture size leaves room for random crops."""
    validation: float = 0.05
    """Share of pictures held out for validation, if the source does not say which."""
    skip_kinds: tuple[str, ...] = ()
    """Leave out pictures with these values of the detail `kind` (emoji: `flag`, `person-variant`)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random augmentation of pictures."""

    scale: tuple[float, float] = (0.85, 1.0)
    """Range of the picture's size relative to the frame."""
    shift: float = 0.06
    """Largest shift in each direction, as a share of the frame."""
    flip: float = 0.5
    """Probability of mirroring a picture that may be mirrored."""
    background: float = 0.25
    """Probability of a random colour instead of white behind transparent pictures."""
    crop: bool = False
    """Place pictures larger than the frame (`scale` above 1) at random instead of centred."""
