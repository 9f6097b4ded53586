"""DALLE-pytorch's DiscreteVAE, from its own checkpoint or from inside a DALLE's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import Imported, fill
from dalle_mini_impl.util.errors import UserError

Colour = tuple[float, float, float]
HALF = (0.5, 0.5, 0.5)


def load(
    path: str | Path,
    image_size: int | None = None,
    mean: Colour = HALF,
    std: Colour = HALF,
    trust_pickle: bool = False,
) -> Imported:
    """Import a DiscreteVAE.

    Args:
        path: the file: `vae.pt`, `dalle.pt` or a state dict.
        image_size: side of the pictures in pixels; None takes what the file says, or else the package's default, 256.
        mean: the model's `normalization`, which no file tells; HALF is the package's default, 0 for `None`.
        std: its other half; HALF is the default, 1 for `None`.
        trust_pickle: also read a file that holds more than tensors.

    Raises:
        UserError: the file cannot be read or holds something else, or `std` has a zero.
    """
    content = read(path, trust_pickle)
    weights = under_prefix(state_dict(content, str(path), ("weights",)), "codebook.weight")
    config = config_of(weights, image_size or _image_size(content), mean, std)
    return fill(weights, config, foreign_names(config))


def config_of(weights: Weights, image_size: int, mean: Colour, std: Colour) -> ImageTokenizerConfig:
    """The shape of a DiscreteVAE, from its tensors; the rest as `load` has it.

    Raises:
        UserError: a tensor that tells it is missing, or `std` has a zero.
    """
    if not all(std):
        raise UserError(f"std {std} was given; pixels are divided by it, so nothing in it can be 0")
    layers, blocks = weights.count(r"encoder\.(\d+)\.0\.weight"), weights.count(r"encoder\.(\d+)\.net\.0\.weight")
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
    """What turns our name of a tensor into theirs."""
    names = {
        "quantizer.embed": "codebook",
        "quantizer.proj": f"encoder.{len(config.channels) + config.encoder_blocks}",
        "encoder.layers": "encoder",
        "decoder.layers": "decoder",
    }

    def foreign_name(name: str) -> str:
        ours = next(ours for ours in names if name.startswith(ours))
        return names[ours] + name.removeprefix(ours)

    return foreign_name


def normalization(settings: Mapping[str, Any], mean: Colour | None, std: Colour | None) -> tuple[Colour, Colour]:
    """Mean and std as given, or else as the settings of a DiscreteVAE say, or else the package's default."""
    said = settings.get("normalization", (HALF, HALF)) or ((0.0,) * 3, (1.0,) * 3)
    said_mean, said_std = (cast(Colour, tuple(colour[:3])) for colour in said)
    return mean or said_mean, std or said_std


def _image_size(content: object) -> int:
    settings = (content.get("vae_params") or content.get("hparams")) if isinstance(content, Mapping) else None
    size = settings.get("image_size") if isinstance(settings, Mapping) else None
    return size if isinstance(size, int) else 256
