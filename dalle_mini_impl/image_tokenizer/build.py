"""Networks and quantizer of an image tokenizer, from its config."""

from typing import Any, cast

from torch import nn

from dalle_mini_impl.config import ImageTokenizerConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.image_tokenizer import dalle_pytorch, networks, openai_dvae, taming
from dalle_mini_impl.image_tokenizer.gumbel import Gumbel
from dalle_mini_impl.image_tokenizer.imported import Logits, Nearest, OneHotConvolution
from dalle_mini_impl.image_tokenizer.quantizers import build_quantizer, encoder_width

Modules = tuple[nn.Module, nn.Module, Any]
"""Encoder, decoder and `Quantizer`."""

LOGIT_SPREAD = 10.0
"""How much further apart than PyTorch would have them the logits of `gumbel` start. The largest noise among K is about
ln K; logits that are much closer together than that choose nothing at first, and then only a few ids are learned."""


def build(config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]) -> Modules:
    """Make encoder, decoder and quantizer.

    Args:
        config: the shape.
        commitment: weight of the commitment loss in training; None makes what is only used.
        entropy: weights of the two entropies in training, with `lfq`.

    Raises:
        UserError: the config's numbers do not fit together, or an imported network was given to train.
    """
    if config.image_size % config.factor:
        raise UserError(f"image_size {config.image_size} is not a multiple of factor {config.factor}")
    if config.likelihood not in ("none", "laplace"):
        raise UserError(f"likelihood {config.likelihood!r} was given; expected none or laplace")
    if config.network == "ours":
        return _ours(config, commitment, entropy)
    if config.network not in IMPORTED:
        raise UserError(f"unknown network {config.network!r}; expected ours, {', '.join(IMPORTED)}")
    if commitment is not None:
        raise UserError(f"network {config.network!r} was given to train, but it can only be imported; "
                        f"train network 'ours'")  # fmt: skip
    halvings = len(config.channels) - (config.network != "dalle-pytorch")
    if not config.channels or config.factor != 2**halvings:
        raise UserError(f"factor {config.factor} with {len(config.channels)} stages was given, "
                        f"which do not fit network {config.network!r}")  # fmt: skip
    return IMPORTED[config.network](config)


def _ours(config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]) -> Modules:
    stem = networks.stem_factor(config.factor, len(config.channels))
    if not config.channels or stem < 1 or stem * 2 ** (len(config.channels) - 1) != config.factor:
        raise UserError(f"factor {config.factor} with {len(config.channels)} stages was given; "
                        f"the factor must be 2**(stages-1) times a whole number")  # fmt: skip
    shape, out = (config.factor, config.channels), 6 if config.likelihood == "laplace" else 3
    encoder = networks.Encoder(*shape, config.encoder_blocks, encoder_width(config))
    decoder = networks.Decoder(*shape, config.decoder_blocks, config.embed_dim, out)
    quantizer = build_quantizer(config, commitment, entropy)
    if isinstance(quantizer, Gumbel):
        cast(nn.Conv2d, encoder.layers[-1]).weight.data.mul_(LOGIT_SPREAD)
    return networks.channels_last(encoder), networks.channels_last(decoder), quantizer


def _taming(config: ImageTokenizerConfig) -> Modules:
    extra, codebook_size, embed_dim = config.foreign, config.codebook_size, config.embed_dim
    if odd := [width for width in (extra.stem, *config.channels) if width % 32]:
        raise UserError(f"network 'taming' with a width of {odd[0]} was given; widths must be multiples of 32")
    if config.quantizer not in ("nearest", "cosine", "logits"):
        raise UserError(f"unknown quantizer {config.quantizer!r}; network 'taming' has nearest, cosine or logits")
    shared: Any = {name: getattr(extra, name) for name in ("z_channels", "attention", "middle_attention")}
    encoder = taming.Encoder(config.channels, config.encoder_blocks, embed_dim, stem=extra.stem, **shared)
    decoder = taming.Decoder(config.channels, config.decoder_blocks, embed_dim, **shared)
    if config.quantizer == "logits":
        return encoder, decoder, Logits(embed_dim, codebook_size, nn.Embedding(codebook_size, embed_dim))
    return encoder, decoder, Nearest(codebook_size, embed_dim, cosine=config.quantizer == "cosine")


def _openai_dvae(config: ImageTokenizerConfig) -> Modules:
    encoder = openai_dvae.Encoder(config.channels, config.encoder_blocks)
    decoder = openai_dvae.Decoder(config.channels, config.decoder_blocks, config.embed_dim)
    embed = OneHotConvolution(config.codebook_size, config.embed_dim)
    return encoder, decoder, Logits(config.channels[-1], config.codebook_size, embed)


def _dalle_pytorch(config: ImageTokenizerConfig) -> Modules:
    normalise = dalle_pytorch.Normalise(config.foreign.mean, config.foreign.std)
    encoder = dalle_pytorch.Encoder(config.channels, config.encoder_blocks, normalise)
    decoder = dalle_pytorch.Decoder(config.channels, config.decoder_blocks, config.embed_dim, normalise)
    embed = nn.Embedding(config.codebook_size, config.embed_dim)
    return encoder, decoder, Logits(config.channels[-1], config.codebook_size, embed)


IMPORTED = {"taming": _taming, "openai-dvae": _openai_dvae, "dalle-pytorch": _dalle_pytorch}
