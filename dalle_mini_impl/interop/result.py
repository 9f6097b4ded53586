"""What importing returns: parts of a checkpoint, and what is known about the project they come from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class ImportedImageTokenizer:
    """An image tokenizer from a file of another project."""

    tokenizer: ImageTokenizer
    dtype: torch.dtype
    """Precision of the weights in the file; in `tokenizer` they are float32."""
    ignored: int
    """Number of tensors in the file that belong to other networks or only to training."""


@dataclass(frozen=True)
class ImportedTransformer:
    """A transformer from a file of another project."""

    config: TransformerConfig
    stream: StreamConfig
    tensors: dict[str, Tensor]
    """Named as in this package, in the precision of the file; mapped from the file where they need no conversion."""


@dataclass(frozen=True)
class ProjectInfo:
    """What is known about the models of a project besides what their files say."""

    sampling: SamplingConfig
    """The settings that the project samples with."""
    about: AboutConfig
    card: str
    """Text of the model card, in Markdown."""
