"""DALLE-pytorch's `DiscreteVAE` (layout of version 1.6.6), from its own file or from inside a DALLE's.

`vae.pt` holds `hparams` and the tensors under `weights`. `dalle.pt` holds the settings of the VAE under `vae_params`
and its tensors, with names that begin with `vae.`, under `weights`. A plain dictionary of tensors is read as well.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.image.build import build_image_tokenizer
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedImageTokenizer
from dalle_mini_impl.util.errors import UserError

Colour = tuple[float, float, float]
DEFAULT_MEAN = (0.5, 0.5, 0.5)
DEFAULT_STD = (0.5, 0.5, 0.5)
"""The package's default `normalization`: pixels in [0, 1], minus the mean, divided by the standard deviation."""
DEFAULT_IMAGE_SIZE = 256


def load(
    path: str | Path,
    image_size: int | None = None,
    mean: Colour = DEFAULT_MEAN,
    std: Colour = DEFAULT_STD,
    trust_pickle: bool = False,
) -> ImportedImageTokenizer:
    """Import a DiscreteVAE.

    Args:
        path: `vae.pt`, `dalle.pt` or a dictionary of tensors.
        image_size: side of the pictures in pixels; None for the size in the file, or else the package's default, 256.
        mean: first half of the model's `normalization`, which `vae.pt` does not contain; 0 for a model trained with
            `normalization=None`.
        std: second half of it; 1 for a model trained with `normalization=None`.
        trust_pickle: also read a file that holds more than tensors and plain values.

    Raises:
        UserError: the file cannot be read or holds something else, or a number in `std` is 0.
    """
    content = read_file(path, trust_pickle)
    weights = select_network(find_tensors(content, str(path), ("weights",)), "codebook.weight")
    config = config_from_tensors(weights, image_size or _image_size_in_file(content), mean, std)
    return build_image_tokenizer(weights, config, foreign_names(config))


def config_from_tensors(weights: Weights, image_size: int, mean: Colour, std: Colour) -> ImageTokenizerConfig:
    """The config of a DiscreteVAE, from the shapes of its tensors; for the other arguments see `load`.

    Raises:
        UserError: a tensor that determines the config is missing, or a number in `std` is 0.
    """
    if not all(std):
        raise UserError(f"expected std without 0, by which pixels would be divided, got {std}; give other values")
    layers = weights.count_indices(r"encoder\.(\d+)\.0\.weight")
    blocks = weights.count_indices(r"encoder\.(\d+)\.net\.0\.weight")
    return ImageTokenizerConfig(
        network="dalle-pytorch",
        quantizer="logits",
        image_size=image_size,
        factor=2**layers,
        channels=(weights.size("encoder.0.0.weight", 0),) * layers,
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        codebook_size=weights.size("codebook.weight", 0),
        embed_dim=weights.size("codebook.weight", 1),
        imported=ImportedNetworkConfig(mean=mean, std=std),
    )


def foreign_names(config: ImageTokenizerConfig) -> Callable[[str], str]:
    """Make the function that maps the name of a tensor in this package to DALLE-pytorch's."""
    foreign_prefixes = {
        "quantizer.embed": "codebook",
        "quantizer.proj": f"encoder.{len(config.channels) + config.encoder_blocks}",
        "encoder.layers": "encoder",
        "decoder.layers": "decoder",
    }

    def foreign_name(name: str) -> str:
        prefix = next(prefix for prefix in foreign_prefixes if name.startswith(prefix))
        return foreign_prefixes[prefix] + name.removeprefix(prefix)

    return foreign_name


def normalization(settings: Any, mean: Colour | None, std: Colour | None) -> tuple[Colour, Colour]:
    """Mean and standard deviation: as given, or else as in the settings of a DiscreteVAE, or else the defaults.

    Args:
        settings: `vae_params` of a `dalle.pt`, if it has some; a `normalization` of None there means no normalization.
        mean: None for that of the settings.
        std: None for that of the settings.

    Raises:
        UserError: the settings hold something else.
    """
    default = (DEFAULT_MEAN, DEFAULT_STD)
    stored = settings.get("normalization", default) if isinstance(settings, Mapping) else default
    stored = ((0.0,) * 3, (1.0,) * 3) if stored is None else stored
    try:
        # Models for pictures with transparency have a fourth number; only the colours are used.
        stored_mean, stored_std = (tuple(float(number) for number in channels[:3]) for channels in stored)
        if not len(stored_mean) == len(stored_std) == 3 or not all(map(math.isfinite, (*stored_mean, *stored_std))):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"expected a normalization of three means and three standard deviations, got {stored!r:.100}; "
            f"give --mean and --std"
        ) from error
    return mean or cast(Colour, stored_mean), std or cast(Colour, stored_std)


def _image_size_in_file(content: object) -> int:
    settings = (content.get("vae_params") or content.get("hparams")) if isinstance(content, Mapping) else None
    size = settings.get("image_size") if isinstance(settings, Mapping) else None
    return size if type(size) is int and 0 < size < 2**16 else DEFAULT_IMAGE_SIZE
