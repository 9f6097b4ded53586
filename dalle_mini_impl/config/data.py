"""Where captioned pictures come from, and how they are augmented."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import NonNegative, Positive, Share
from dalle_mini_impl.util.errors import UserError

SMALLEST_STORE_SIZE = 128
"""Side in pixels of stored pictures where nothing asks for more."""
LARGEST_STORE_SIZE = 16384
"""Side in pixels above which one stored picture takes more than a gigabyte."""
FITS = ("auto", "pad", "crop", "stretch")
"""Ways to fit pictures of other proportions into the frame; `data/fit.py` tells what they do."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = ""
    """A folder of pictures with captions, a JSONL or CSV file, or WebDataset tars (a folder or a glob)."""
    store: str = ""
    """Folder of decoded pictures; built from `source` if it does not exist yet. If the source has changed since, the
    store is refused; without a source it is used as it is."""
    store_size: int = 0
    """Side of the stored pictures in pixels. 0 takes a store of any size that is not below the model's picture size,
    and builds one of twice that size, which leaves room for random crops, but at least 128."""
    validation: Share = 0.05
    """Share of pictures held out for validation, if the source does not say which; of two pictures or more at least
    one."""
    fit: str = "auto"
    """How pictures of other proportions are fitted into the model's frame: `pad` (keep the whole picture and continue
    its ground), `crop` (cut out its middle), `stretch`, or `auto`: pad where the ground is transparent or of one plain
    colour, without needlessly wide empty margins, and crop photographs."""
    skip_kinds: tuple[str, ...] = ()
    """Leave out pictures with these values of the detail `kind` (emoji: `flag`, `person-variant`)."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: naming the setting.
        """
        if not 0 <= self.store_size <= LARGEST_STORE_SIZE:
            raise UserError(
                f"data.store_size is {self.store_size}; expected 1 to {LARGEST_STORE_SIZE} pixels, or 0 for a size "
                f"that follows from the model"
            )
        if not 0 <= self.validation <= 1:
            raise UserError(f"data.validation is {self.validation:g}; expected a share from 0 to 1")
        if self.fit not in FITS:
            raise UserError(f"expected data.fit of {', '.join(FITS)}, got {self.fit!r}; change it")

    def size_for(self, picture_size: int) -> int:
        """Side in pixels of the stored pictures of a new store.

        Args:
            picture_size: side of the model's pictures; 0 where the stage uses no pixels.

        Raises:
            UserError: `store_size` is given and is smaller.
        """
        if 0 < self.store_size < picture_size:
            raise UserError(
                f"data.store_size is {self.store_size}, expected at least the {picture_size} pixels of the model's "
                f"pictures; set data.store_size={2 * picture_size}, or 0 for a size that follows from the model"
            )
        return self.store_size or max(SMALLEST_STORE_SIZE, 2 * picture_size)


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
