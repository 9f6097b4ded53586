"""What `dalle train all` chooses among, and how it divides the minutes: the classes of `configs/presets.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path

from dalle_mini_impl.config.ranges import Count, Natural, NonNegative, Positive, Share
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.util.errors import UserError

PRESETS_FILE = "configs/presets.yaml"
"""Where the table of presets ships."""


@dataclass(frozen=True, kw_only=True)
class SharesConfig:
    """How the time is divided. Only the ratios count: what one part leaves or takes is divided among those after it."""

    image_tokenizer: Positive = 0.4
    """Stage 2."""
    encode: Positive = 0.04
    """Stage 3; as many variants of each picture as fit, up to those of the preset."""
    transformer: Positive = 0.36
    """Stage 4."""
    scorer: Positive = 0.12
    """Stage 5."""
    prior: Positive = 0.05
    """Stage 6, of presets that have one."""
    report: Positive = 0.08
    """Choosing the sampling settings, and drawing and measuring the pictures of the report."""


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Settings for sets of some sizes."""

    least: Natural = 0
    """Fewest training pictures that the rule is for."""
    most: Natural = 0
    """Most training pictures that the rule is for; 0 sets no limit."""
    settings: tuple[str, ...] = ()
    """`STAGE.KEY=VALUE` each, as on the command line."""


@dataclass(frozen=True, kw_only=True)
class PresetConfig:
    """A folder of configs, and for what it is."""

    name: str
    """Of the folder in `configs`, or its path."""
    automatic: bool = True
    """Whether it is chosen where none is named."""
    least_minutes: NonNegative = 0.0
    """Fewest minutes for which it is chosen."""
    least_pictures: Natural = 0
    """Fewest training pictures for which it is chosen."""
    least_side: Natural = 0
    """Least median of the pictures' shorter sides, in pixels, for which it is chosen."""
    least_steps: Natural = 0
    """If fewer steps of a stage fit into the time, the preset before it is chosen instead."""
    shares: SharesConfig = field(default_factory=SharesConfig)
    sizes: tuple[SizeRule, ...] = ()
    """Rules by the number of training pictures; all that fit are applied, in order."""


@dataclass(frozen=True, kw_only=True)
class PresetTable:
    """The content of `configs/presets.yaml`."""

    presets: tuple[PresetConfig, ...]
    """From the smallest to the largest; the last one whose limits are met is chosen."""
    accelerator_factor: Positive = 1.0
    """A minute on a GPU counts as so many in `least_minutes`."""
    looked_at: Count = 500
    """Pictures that are looked at before the preset is chosen; all where there are fewer."""
    reading: Share = 0.1
    """Largest share of the time for reading pictures; of sets that take longer, every n-th picture is used."""
    probe: Share = 0.003
    """Share of the time in which the speed of a stage is measured, each time."""
    validations: Count = 5
    """Validations in each stage, at the most."""
    sheets: Count = 3
    """Sheets of sample pictures in each stage, at the most."""
    watching: Share = 0.06
    """Largest share of a stage for its validations, and for its sheets; but the last ones are always made."""
    saving: Share = 0.05
    """Share of a stage between two resumable states; but at least half a minute."""
    validation: Share = 0.05
    """Share of the pictures to hold out."""
    validation_pictures: Count = 512
    """Most pictures to hold out."""
    vocab_per_character: Positive = 1.5
    """Text ids, at least, for each distinct character of the captions, beside the 260 special and byte ids."""
    text_lengths: tuple[Count, Count] = (8, 64)
    """Fewest and most text positions; between them they follow from the captions."""
    start_from: tuple[str, ...] = ()
    """Settings of a training that starts from a checkpoint, `STAGE.KEY=VALUE` each."""
    caption_share: Share = 0.99
    """Share of the captions that must fit into the text positions."""


def load_presets() -> PresetTable:
    """Read the shipped table.

    Raises:
        UserError: it is damaged.
    """
    return load(PresetTable, PRESETS_FILE)


def find_preset(table: PresetTable, name: str) -> PresetConfig:
    """The preset of a name; a folder of configs has the shares and sizes of the preset of its last name, or the first.

    Raises:
        UserError: `name` is neither.
    """
    plain = name.rstrip("/").removeprefix("configs/")
    by_name = {preset.name: preset for preset in table.presets}
    if plain in by_name:
        return by_name[plain]
    if not Path(name).is_dir():
        raise UserError(f"expected --preset {', '.join(by_name)} or a folder of configs, got {name!r}; choose one")
    first = table.presets[0]
    known = by_name.get(plain.rpartition("/")[2], first)
    return PresetConfig(name=name if "/" in name else f"./{name}", shares=known.shares, sizes=known.sizes)


def suited_presets(table: PresetTable, minutes: float, pictures: int, side: float) -> list[PresetConfig]:
    """Presets that fit the time and the pictures, the largest first; never empty.

    Args:
        table: of all presets.
        minutes: of training; those on an accelerator multiplied by `accelerator_factor`.
        pictures: number of training pictures.
        side: median of the pictures' shorter sides in pixels.
    """
    suited = [
        preset
        for preset in table.presets
        if preset.automatic
        and minutes >= preset.least_minutes
        and pictures >= preset.least_pictures
        and side >= preset.least_side
    ]
    return (suited or list(table.presets[:1]))[::-1]
