"""Where captioned pictures come from, and how they are augmented."""

import math
from dataclasses import dataclass
from typing import Annotated

from dalle_mini_impl.config.ranges import Count, Interval, NonNegative, Positive, Share, check_ranges
from dalle_mini_impl.util.errors import UserError

SMALLEST_STORE_SIZE = 128
"""Side in pixels of stored pictures where nothing asks for more."""
LARGEST_STORE_SIZE = 16384
"""Side in pixels above which one stored picture takes more than a gigabyte."""
FITS = ("auto", "pad", "crop", "stretch")
"""Ways to fit pictures of other proportions into the frame; `data/fit.py` tells what they do."""
STORE_FORMATS = ("auto", "pixels", "png", "jpeg")
"""What a store may hold; `auto` takes any, and builds one of pixels."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several sources."""

    path: str
    """As `source`."""
    weight: Positive = 1.0
    """How often its training pictures are shown, relative to those of the other sources: with 2 beside 1, twice as
    often."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = ""
    """A folder of pictures with captions, a JSONL or CSV file, or WebDataset tars (a folder or a glob), here or at an
    address such as `s3://bucket/set`."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sources in place of `source`, each with a weight: `[{path: a, weight: 2}, {path: b}]`. All are in one
    store; weights may be changed without building it anew, and take effect in every stage that reads it."""
    store: str = ""
    """Folder of pictures of one size; built from `source` if it does not exist yet. If the source has changed since,
    the store is refused; without a source it is used as it is. Empty: there is none, and the encode stage reads the
    pictures straight from `source`, as large sets need."""
    store_size: Annotated[int, Interval(0, LARGEST_STORE_SIZE)] = 0
    """Side of the stored pictures in pixels. 0 takes a store of any size that is not below the model's picture size,
    and builds one of twice that size, which leaves room for random crops, but at least 128."""
    store_height: Annotated[int, Interval(0, LARGEST_STORE_SIZE)] = 0
    """With `store_width`, the size of stored pictures that are not square, in place of `store_size`."""
    store_width: Annotated[int, Interval(0, LARGEST_STORE_SIZE)] = 0
    """See `store_height`."""
    store_format: str = "auto"
    """What a store holds. `pixels`: 4 bytes each, which are read fastest. `png`: the same pictures in less space,
    decoded whenever they are needed, best by `run.workers`. `jpeg`: in still less, not exactly the same; pictures with
    transparency stay PNG. Files that have the stored size already are kept as they are. `auto`: takes a store of any
    kind, and builds one of pixels."""
    validation: Share = 0.05
    """Share of pictures held out for validation, if the source does not say which; of two pictures or more at least
    one."""
    fit: str = "auto"
    """How pictures of other proportions are fitted into the model's frame: `pad` (keep the whole picture and continue
    its ground), `crop` (cut out its middle), `stretch`, or `auto`: pad where the ground is transparent or of one plain
    colour, without needlessly wide empty margins, and crop photographs."""
    every: Count = 1
    """Use every n-th picture of the source, as all pictures of a large one may take too long to read."""
    skip_kinds: tuple[str, ...] = ()
    """Leave out pictures with these values of the detail `kind` (emoji: `flag`, `person-variant`)."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: naming the setting.
        """
        check_ranges(self, "data")
        sides = (self.store_height, self.store_width)
        if any(sides) and (not all(sides) or self.store_size):
            raise UserError(
                f"expected data.store_size, or data.store_height and data.store_width, got {self.store_size}, "
                f"{sides[0]} and {sides[1]}; leave out the one or the others"
            )
        if self.source and self.sources:
            raise UserError(
                f"expected data.source or data.sources, got both, {self.source!r} and {len(self.sources)} more; "
                f"set one of them"
            )
        if not all(source.path for source in self.sources):
            raise UserError("expected a path for each of data.sources, got an empty one; name it or leave it out")
        if self.fit not in FITS:
            raise UserError(f"expected data.fit of {', '.join(FITS)}, got {self.fit!r}; change it")
        if self.store_format not in STORE_FORMATS:
            raise UserError(
                f"expected data.store_format of {', '.join(STORE_FORMATS)}, got {self.store_format!r}; change it"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """The sources, one or several; none where a store is used as it is."""
        return tuple(source.path for source in self.sources) or ((self.source,) if self.source else ())

    @property
    def stores_encoded(self) -> bool:
        """Whether a store that is built holds pictures as PNG or JPEG."""
        return self.store_format in ("png", "jpeg")

    @property
    def store_frame(self) -> tuple[int, int]:
        """Height and width of stored pictures; zeros where they follow from the model."""
        return self.store_height or self.store_size, self.store_width or self.store_size

    def frame_for(self, picture: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the stored pictures of a new store.

        Args:
            picture: height and width of the model's pictures; zeros where the stage uses no pixels.

        Raises:
            UserError: they are given, and are smaller or of other proportions.
        """
        frame = self.store_frame
        if not any(frame):
            if picture[0] == picture[1]:
                return (max(SMALLEST_STORE_SIZE, 2 * picture[0]),) * 2
            factor = max(2, math.ceil(SMALLEST_STORE_SIZE / max(picture)))
            return factor * picture[0], factor * picture[1]
        if any(picture) and not fits_into(picture, frame):
            suited = size_settings((2 * picture[0], 2 * picture[1]))
            typed = " ".join(f"data.{key}={value}" for key, value in suited.items())
            raise UserError(
                f"stored pictures have {frame[0]}×{frame[1]} pixels (data.store_size, or store_height and "
                f"store_width), expected at least the {picture[0]}×{picture[1]} of the model's pictures, in their "
                f"proportions; set {typed}, or all to 0 for a size that follows from the model"
            )
        return frame


def fits_into(picture: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Whether stored pictures of a frame's (height, width) can be reduced to those of a model, in their proportions."""
    # Half a pixel of the stored picture may be missing to the exact proportions.
    same = abs(frame[0] * picture[1] - frame[1] * picture[0]) <= max(picture) / 2
    return same and picture[0] <= frame[0] and picture[1] <= frame[1]


def size_settings(frame: tuple[int, int]) -> dict[str, int]:
    """The settings of a store with pictures of (height, width)."""
    height, width = frame
    return {"store_size": height} if height == width else {"store_height": height, "store_width": width}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random augmentation of pictures."""

    scale: tuple[Positive, Positive] = (0.85, 1.0)
    """Range of the picture's size relative to the frame."""
    shift: NonNegative = 0.06
    """Largest shift in each direction, as a share of the frame."""
    flip: Share = 0.0
    """Probability of mirroring a picture that may be mirrored (detail `may_flip`). Mirrored letters, and captions that
    say left or right, show in samples."""
    background: Share = 0.0
    """Probability of a random colour instead of white behind transparent pictures. Above 0, samples have coloured
    backgrounds as well."""
    crop: bool = False
    """Place pictures larger than the frame (`scale` above 1) at random instead of centred."""
    keep_inside: bool = True
    """Shift drawings only as far as all that is drawn stays inside the frame, and continue their ground; enlarge
    photographs by 1 / scale instead of making them smaller, so that nothing but picture is in the frame. If false,
    drawings are cut off at the frame, and the outermost pixels of any picture are repeated around it."""
