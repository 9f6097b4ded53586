"""Builds networks from configs: the image tokenizer's, the transformer, CLIP, the prior."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.find import find_checkpoint, load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import check_trained_with, load_module, read_part
from dalle_mini_impl.config.model import (
    ImageTokenizerConfig,
    PriorConfig,
    ScorerConfig,
    StreamConfig,
    TransformerConfig,
)
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.model import vqvae
from dalle_mini_impl.model.blocks import Block, make_norm
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.foreign import dalle_pytorch, openai_dvae, taming
from dalle_mini_impl.model.foreign.blocks import shift_sources
from dalle_mini_impl.model.foreign.quantizers import Logits, Nearest, OneHotConvolution
from dalle_mini_impl.model.foreign.transformer import ForeignTransformer
from dalle_mini_impl.model.image_prefix import ImagePrefix
from dalle_mini_impl.model.masks import AttentionMask, contiguous_order, mask_matrix
from dalle_mini_impl.model.patches import PatchLayout, PatchTransformer
from dalle_mini_impl.model.prior import AnyPrior, ARPrior, DiffusionPrior
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.model.quantizers.learned import build_quantizer, encoder_width
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import POSITIONS, Transformer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file

Modules = tuple[nn.Module, nn.Module, Any]
"""Encoder, decoder and `Quantizer`."""

GUMBEL_LOGIT_SCALE = 10.0
"""Factor of the initial weights of the layer that computes the logits of `gumbel`. The largest noise among K values is
about ln K. Logits with much smaller differences have no influence at first, and then only a few ids come into use."""


def build_image_networks(
    config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]
) -> Modules:
    """Build encoder, decoder and quantizer.

    Args:
        config: the shape.
        commitment: weight of the commitment loss in training; None for networks that cannot be trained.
        entropy: weights of the two entropies in training, with `lfq`.

    Raises:
        UserError: the config's values do not fit together, or it has an imported network and `commitment` is given.
    """
    height, width = config.size
    if height % config.factor or width % config.factor:
        name, size = ("image_size", height) if config.image_size else ("height and width", f"{height} and {width}")
        raise UserError(f"expected {name} to be a multiple of factor {config.factor}, got {size}; change one")
    if not config.channels:
        raise UserError("expected channels with a width for each stage, got none; list at least one")
    if config.likelihood not in ("none", "laplace"):
        raise UserError(f"expected likelihood none or laplace, got {config.likelihood!r}; change it")
    if config.network == "vqvae":
        return _vqvae(config, commitment, entropy)
    if config.network not in IMPORTED:
        raise UserError(f"expected network vqvae, {', '.join(IMPORTED)}, got {config.network!r}; change it")
    if commitment is not None:
        raise UserError(
            f"expected network vqvae for training, got {config.network!r}, which can only be imported; change network"
        )
    downsamplings = len(config.channels) - (config.network != "dalle-pytorch")
    if config.factor != 2**downsamplings:
        raise UserError(
            f"expected factor {2**downsamplings} for network {config.network!r} with {len(config.channels)} stages, "
            f"got {config.factor}; change factor or channels"
        )
    return IMPORTED[config.network](config)


def _vqvae(config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]) -> Modules:
    stem = vqvae.stem_factor(config.factor, len(config.channels))
    if stem < 1 or stem * 2 ** (len(config.channels) - 1) != config.factor:
        raise UserError(
            f"expected a factor that is 2**(stages - 1) times a whole number, got factor {config.factor} with "
            f"{len(config.channels)} stages; change factor or channels"
        )
    if unfit := [width for width in config.channels if width % min(width, vqvae.GROUPS)]:
        raise UserError(
            f"expected channels below {vqvae.GROUPS} or multiples of it, which norms divide into groups, "
            f"got {unfit[0]}; change it"
        )
    shape = (config.factor, config.channels)
    out = 6 if config.likelihood == "laplace" else 3
    encoder = vqvae.VqvaeEncoder(*shape, config.encoder_blocks, encoder_width(config))
    decoder = vqvae.VqvaeDecoder(*shape, config.decoder_blocks, config.embed_dim, out)
    quantizer = build_quantizer(config, commitment, entropy)
    if isinstance(quantizer, Gumbel):
        cast(nn.Conv2d, encoder.layers[-1]).weight.data.mul_(GUMBEL_LOGIT_SCALE)
    return vqvae.channels_last(encoder), vqvae.channels_last(decoder), quantizer


def _taming(config: ImageTokenizerConfig) -> Modules:
    imported, codebook_size, embed_dim = config.imported, config.codebook_size, config.embed_dim
    if unfit := [width for width in (imported.stem, *config.channels) if width % 32]:
        raise UserError(f"expected widths that are multiples of 32 for network 'taming', got {unfit[0]}; change it")
    if config.quantizer not in ("nearest", "cosine", "logits"):
        raise UserError(
            f"expected quantizer nearest, cosine or logits for network 'taming', got {config.quantizer!r}; change it"
        )
    options: Any = {name: getattr(imported, name) for name in ("z_channels", "attention", "middle_attention")}
    encoder = taming.TamingEncoder(config.channels, config.encoder_blocks, embed_dim, stem=imported.stem, **options)
    decoder = taming.TamingDecoder(config.channels, config.decoder_blocks, embed_dim, **options)
    if config.quantizer == "logits":
        return encoder, decoder, Logits(embed_dim, codebook_size, nn.Embedding(codebook_size, embed_dim))
    return encoder, decoder, Nearest(codebook_size, embed_dim, cosine=config.quantizer == "cosine")


def _openai_dvae(config: ImageTokenizerConfig) -> Modules:
    encoder = openai_dvae.OpenAIEncoder(config.channels, config.encoder_blocks)
    decoder = openai_dvae.OpenAIDecoder(config.channels, config.decoder_blocks, config.embed_dim)
    embed = OneHotConvolution(config.codebook_size, config.embed_dim)
    return encoder, decoder, Logits(config.channels[-1], config.codebook_size, embed)


def _dalle_pytorch(config: ImageTokenizerConfig) -> Modules:
    normalise = dalle_pytorch.Normalise(config.imported.mean, config.imported.std)
    encoder = dalle_pytorch.DiscreteVaeEncoder(config.channels, config.encoder_blocks, normalise)
    decoder = dalle_pytorch.DiscreteVaeDecoder(config.channels, config.decoder_blocks, config.embed_dim, normalise)
    embed = nn.Embedding(config.codebook_size, config.embed_dim)
    return encoder, decoder, Logits(config.channels[-1], config.codebook_size, embed)


IMPORTED = {"taming": _taming, "openai-dvae": _openai_dvae, "dalle-pytorch": _dalle_pytorch}
"""`ImageTokenizerConfig.network` of an imported network -> its builder."""


def build_transformer(config: TransformerConfig, stream: StreamConfig, *, recompute: bool = False) -> Transformer:
    """The transformer of a config, for a stream with patches of the same size; see `Transformer` for `recompute`.

    Raises:
        UserError: the config's values do not fit together.
    """
    if config.patch != stream.patch:
        raise UserError(f"expected a stream with patch {config.patch} as in the model, got {stream.patch}; change one")
    layout, block = Stream(stream), config.block
    arguments: dict[str, Any] = {
        "vocab_size": layout.vocab_size,
        "coordinates": layout.coordinates(),
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "position": config.position,
        "extent": [layout.prefix_length + side for side in stream.grid],
        "head_dim": config.head_dim,
        "attention_masks": _attention_masks(config, layout),
        "head_bias": block.bias,
        "tied_head": config.tied_head,
        "recompute": recompute,
    }
    block_options: dict[str, Any] = {
        "mlp": block.mlp,
        "hidden": block.hidden,
        "bias": block.bias,
        "qk_norm": block.qk_norm,
    }
    if not _needs_foreign_blocks(config):
        if stream.embed_positions:
            arguments["image_prefix"] = ImagePrefix(stream.embed_positions, stream.embed_dim, config.n_embd)
        arguments |= {
            "make_block": partial(Block, norm=block.norm, **block_options),
            "make_norm": partial(make_norm, block.norm),
        }
        if stream.patch == 1:
            return Transformer(**arguments)
        if any(arguments["attention_masks"]):
            raise UserError("expected attention masks full with patches, got others; change attention_masks or patch")
        shape = (layout.prefix_length, layout.patch_length)
        return PatchTransformer(layout=PatchLayout(*shape), depth_layers=config.depth_layers, **arguments)
    if stream.patch > 1:
        raise UserError(
            f"expected patch 1 with blocks that only imported models have, got {stream.patch}; change patch"
        )
    if stream.embed_positions:
        raise UserError(
            f"expected no positions for an image embedding with blocks that only imported models have, got "
            f"{stream.embed_positions}; set image_embed.positions to 0"
        )
    return ForeignTransformer(
        **arguments,
        norm=block.norm,
        last_norms=config.last_norms,
        reversible=block.reversible,
        divide_by_max=config.divide_by_max,
        sources=shift_sources(layout) if block.token_shift else None,
        block_options={**block_options, "rotate_values": block.rotate_values, "sandwich": block.sandwich},
    )


def _needs_foreign_blocks(config: TransformerConfig) -> bool:
    """Whether the config has anything that only imported models have."""
    block = config.block
    foreign_block = block.rotate_values or block.sandwich or block.token_shift or block.reversible
    return foreign_block or config.divide_by_max or config.last_norms != 1 or config.position not in POSITIONS


def _attention_masks(config: TransformerConfig, layout: Stream) -> list[AttentionMask | None]:
    """The mask of each block; blocks with the same kind share one."""
    if config.mask_origin not in ("input", "target"):
        raise UserError(f"expected mask_origin input or target, got {config.mask_origin!r}; change it")
    kinds = [config.attention_masks[layer % len(config.attention_masks)] for layer in range(config.n_layer)]
    kinds[-1] = config.last_attention_mask or kinds[-1]
    before = layout.prefix_length - (config.mask_origin == "target")
    masks: dict[str, AttentionMask | None] = {"full": None}
    for kind in set(kinds) - {"full"}:
        allowed = mask_matrix(kind, before, layout.config.grid, config.mask_kernel)
        # With `target` the last position, whose output predicts nothing, is not in the matrix.
        missing = layout.length - len(allowed)
        order = contiguous_order(kind, before, layout.config.grid)
        order = torch.cat([order, torch.arange(len(allowed), layout.length)])
        masks[kind] = AttentionMask(F.pad(allowed, (0, missing, 0, missing)).fill_diagonal_(True), order)
    return [masks[kind] for kind in kinds]


def build_clip(config: ScorerConfig, text_vocab: int, *, pad_id: int, eos_id: int) -> CLIP:
    """The CLIP model of a config, for a text tokenizer with these ids; see `CLIP`."""
    shape = {name: value for name, value in to_dict(config).items() if name != "fit"}
    return CLIP(**shape, text_vocab=text_vocab, pad_id=pad_id, eos_id=eos_id)


def build_prior(config: PriorConfig, *, embed_dim: int, text_vocab: int, pad_id: int) -> AnyPrior:
    """The prior of a config, for a scorer of this width and a text tokenizer with these ids.

    Raises:
        UserError: the kind is unknown, or the config's values do not fit together.
    """
    shape: dict[str, Any] = {name: getattr(config, name) for name in ("text_length", "n_layer", "n_head", "n_embd")}
    shape |= {"embed_dim": embed_dim, "text_vocab": text_vocab, "pad_id": pad_id}
    if config.kind == "diffusion":
        return DiffusionPrior(**shape)
    if config.kind != "ar":
        raise UserError(f"expected kind diffusion or ar, got {config.kind!r}; change model.kind")
    return ARPrior(components=config.components, buckets=config.buckets, **shape)


def load_transformer(name: str | Path, device: str = "cpu") -> tuple[Transformer, StreamConfig]:
    """Load the transformer of a checkpoint.

    Args:
        name: as for `find_checkpoint`.
        device: where the weights go.

    Returns:
        The transformer in evaluation mode, and the stream it was trained on.

    Raises:
        UserError: it was trained with other tokenizers than those in the same folder, or with the image embeddings of
            another scorer.
    """
    folder = find_checkpoint(name)
    part = read_part(folder, "transformer")
    check_trained_with(part, "text_tokenizer", load_text_tokenizer(folder).identity)
    check_trained_with(part, "image_tokenizer", read_part(folder, "image_tokenizer", weights=False).image_ids)
    stream = from_dict(StreamConfig, part.config.get("stream"), f"{part.path}: stream")
    if stream.embed_positions and is_file(folder / "scorer.safetensors"):
        check_trained_with(part, "scorer", read_part(folder, "scorer", weights=False).identity)
    config = from_dict(TransformerConfig, part.config.get("transformer"), f"{part.path}: transformer")
    return load_module(lambda: build_transformer(config, stream), part, device), stream
