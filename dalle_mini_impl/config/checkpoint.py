"""What a checkpoint's `config.yaml` holds."""

from dataclasses import dataclass, field

from dalle_mini_impl.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure."""

    what: str
    """What was measured, and on what."""
    value: float
    """The figure, in the unit that `what` names."""
    command: str
    """What prints it."""


@dataclass(frozen=True, kw_only=True)
class AboutConfig:
    """What a checkpoint says of itself that its weights cannot tell; what is empty is not said."""

    licence: str = ""
    """Of the weights, as an SPDX identifier such as `CC-BY-4.0`."""
    languages: tuple[str, ...] = ()
    """Codes of the captions' languages."""
    data: tuple[str, ...] = ()
    """What it was trained on: a line for each source, best with its licence."""
    quality: tuple[Figure, ...] = ()
    """What was measured."""
    measured_on: str = ""
    """Hash, as `dalle info` prints it, of the checkpoint that `quality` was measured on; of another it says nothing."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint's `config.yaml`."""

    name: str = ""
    """Of the model."""
    sampling: SamplingConfig
    """The settings it recommends."""
    about: AboutConfig = field(default_factory=AboutConfig)
    """What it says of itself."""
