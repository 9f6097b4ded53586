"""What a checkpoint's `config.yaml` holds."""

from dataclasses import dataclass, field

from dalle_mini_impl.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure."""

    what: str
    """What was measured, and on which pictures."""
    value: float
    """The figure, in the unit that `what` names."""
    command: str
    """The command that prints it."""


@dataclass(frozen=True, kw_only=True)
class AboutConfig:
    """Description of a checkpoint that does not follow from its weights; empty fields are left out of its card."""

    licence: str = ""
    """Licence of the weights, as an SPDX identifier such as `CC-BY-4.0`."""
    languages: tuple[str, ...] = ()
    """Codes of the captions' languages."""
    styles: tuple[str, ...] = ()
    """Words that choose a look of the pictures, after a comma at the end of a caption."""
    data: tuple[str, ...] = ()
    """Training data: one line per source, with its licence."""
    quality: tuple[Figure, ...] = ()
    """Measured figures."""
    measured_on: str = ""
    """Hash, as `dalle info` prints it, of the checkpoint that `quality` was measured on. Shown for another
    checkpoint, the figures are marked as such."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint's `config.yaml`."""

    name: str = ""
    """Name of the model."""
    sampling: SamplingConfig
    """Recommended sampling settings."""
    about: AboutConfig = field(default_factory=AboutConfig)
    """Description of the model."""
