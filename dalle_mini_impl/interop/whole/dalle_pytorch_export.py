"""A model of this package -> the content of a `dalle.pt` for DALLE-pytorch 1.6.6, if that package has such models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.config.model import (
    ImageTokenizerConfig,
    ImportedNetworkConfig,
    StreamConfig,
    TransformerConfig,
)
from dalle_mini_impl.interop.image.dalle_pytorch_vae import foreign_names
from dalle_mini_impl.interop.whole.dalle_pytorch import ATTENTION_TYPES, MASK_KERNEL, rotary_channel_order
from dalle_mini_impl.interop.whole.dalle_pytorch_layout import WRAPPERS, TensorLayout
from dalle_mini_impl.util.errors import UserError

VERSION = "1.6.6"
"""The version of DALLE-pytorch whose layout is written."""


@dataclass(frozen=True)
class ExportedModel:
    """The two parts that a `dalle.pt` consists of."""

    config: TransformerConfig
    stream: StreamConfig
    tensors: Mapping[str, Tensor]
    """The transformer's."""
    image_config: ImageTokenizerConfig
    image_tensors: Mapping[str, Tensor]
    """The image tokenizer's."""


def to_dalle_pytorch(model: ExportedModel) -> dict[str, Any]:
    """The content of a `dalle.pt`, to be written by `torch.save`.

    All LayerScales are 1, because this package multiplies them into the matrices.

    Raises:
        UserError: DALLE-pytorch has no such models; names the setting.
    """
    for name, value, supported in _settings(model):
        if value not in supported:
            raise UserError(
                f"expected {name} to be {' or '.join(map(repr, supported))}, as in DALLE-pytorch, got {value!r}; "
                f"such a model cannot be exported: choose another one"
            )
    layout = _layout(model)
    foreign_name = foreign_names(model.image_config)
    weights = {f"vae.{foreign_name(name)}": value for name, value in model.image_tensors.items()}
    weights |= _convert_tensors(model.tensors, layout)
    return {
        "hparams": _hparams(model.config, layout),
        "vae_params": _vae_params(model.image_config),
        "epoch": 0,
        "version": VERSION,
        "vae_class_name": "DiscreteVAE",
        "weights": weights,
    }


def _settings(model: ExportedModel) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """For each setting that DALLE-pytorch restricts: its name, its value in the model, and the supported values."""
    config = model.config
    stream = model.stream
    image = model.image_config
    block = config.block
    side = stream.grid[0]
    yield "block.norm", block.norm, ("layer",)
    yield "block.mlp", block.mlp, ("geglu",)
    yield "block.hidden", block.hidden or 4 * config.n_embd, (4 * config.n_embd,)
    yield "block.bias", block.bias, (True,)
    yield "block.qk_norm", block.qk_norm, (False,)
    yield "position", config.position, ("table", "learned")
    yield "block.rotate_values", block.rotate_values, (config.position == "table",)
    for kind in filter(None, (*config.attention_masks, config.last_attention_mask)):
        yield "attention mask", kind, ATTENTION_TYPES
        if kind == "conv_like":
            yield "mask_kernel", config.mask_kernel, (MASK_KERNEL,)
    yield "mask_origin", config.mask_origin, ("input",)
    yield "last_norms", config.last_norms, (1,)
    yield "tied_head", config.tied_head, (False,)
    yield "patch", stream.patch, (1,)
    yield "image_embed.positions", stream.embed_positions, (0,)
    yield "grid", stream.grid, ((side, side),)
    yield "bos_id", stream.bos_id, (0,)
    yield "pad_id", stream.pad_id, (0,)
    yield "the image tokenizer's network", image.network, ("dalle-pytorch",)
    yield "the image tokenizer's picture size", image.size, ((side * image.factor,) * 2,)
    powers_of_two = tuple(2**power for power in range(1, 15))  # DiscreteVAE refuses other sizes
    yield "the image tokenizer's image_size", image.image_size, powers_of_two
    for layer in range(config.n_layer):
        bias = model.tensors[f"blocks.{layer}.attention.qkv.bias"]  # DALLE-pytorch has none
        yield "the largest bias of queries, keys and values", bias.abs().max().item(), (0.0,)


def _layout(model: ExportedModel) -> TensorLayout:
    config = model.config
    stream = model.stream
    return TensorLayout(
        text_vocab=stream.text_vocab,
        text_length=stream.text_length,
        side=stream.grid[0],
        image_vocab=stream.image_vocab,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        head_dim=config.head_dim or config.n_embd // config.n_head,
        rotary=config.position == "table",
        reversible=config.block.reversible,
        sandwich=config.block.sandwich,
        wrappers=WRAPPERS[config.block.token_shift],
    )


def _hparams(config: TransformerConfig, layout: TensorLayout) -> dict[str, Any]:
    """Arguments of the class `DALLE`; those that only training uses have its training command's defaults."""
    attention_types = [config.attention_masks[layer % len(config.attention_masks)] for layer in range(config.n_layer)]
    if config.last_attention_mask:
        attention_types[-1] = config.last_attention_mask
    return {
        "num_text_tokens": layout.text_vocab,
        "text_seq_len": layout.text_length,
        "dim": layout.n_embd,
        "depth": layout.n_layer,
        "heads": layout.n_head,
        "dim_head": layout.head_dim,
        "reversible": config.block.reversible,
        "loss_img_weight": 7,
        "attn_types": tuple(attention_types),
        "ff_dropout": 0.0,
        "attn_dropout": 0.0,
        "stable": config.divide_by_max,
        "sandwich_norm": config.block.sandwich,
        "shift_tokens": config.block.token_shift,
        "rotary_emb": layout.rotary,
        "shared_attn_ids": None,
        "shared_ff_ids": None,
        "share_input_output_emb": False,
    }


def _vae_params(config: ImageTokenizerConfig) -> dict[str, Any]:
    """Arguments of the class `DiscreteVAE`."""
    params: dict[str, Any] = {
        "image_size": config.image_size,
        "num_layers": len(config.channels),
        "num_tokens": config.codebook_size,
        "codebook_dim": config.embed_dim,
        "hidden_dim": config.channels[0],
        "num_resnet_blocks": config.encoder_blocks,
    }
    normalization = (config.imported.mean, config.imported.std)
    defaults = ImportedNetworkConfig()
    if normalization != (defaults.mean, defaults.std):
        params["normalization"] = normalization
    return params


def _convert_tensors(tensors: Mapping[str, Tensor], layout: TensorLayout) -> dict[str, Tensor]:
    """Convert the transformer's tensors to DALLE-pytorch's."""
    text_ids = layout.text_vocab + layout.text_length
    foreign = {
        "text_emb.weight": tensors["embed.weight"][:text_ids],
        "image_emb.weight": tensors["embed.weight"][text_ids:],
    }
    for kind in ("weight", "bias"):
        foreign[f"to_logits.0.{kind}"] = tensors[f"norm.{kind}"]
        foreign[f"to_logits.1.{kind}"] = tensors[f"head.{kind}"]
    if layout.rotary:
        # `rotate` needs the sines of the first half of the channels negated; those of the second half are not.
        second_half = tensors["table"][:, :, layout.head_dim // 2 :]
        cos, sin = (second_half[:, row, : layout.rotated_pairs] for row in (0, 1))
        foreign["transformer.pos_emb"] = torch.atan2(sin, cos).repeat_interleave(2, -1)[None]
    else:
        rows = tensors["positions.0.weight"]
        columns = tensors["positions.1.weight"]
        prefix_length = 1 + layout.text_length
        foreign["text_pos_emb.weight"] = rows[:prefix_length] + columns[:prefix_length]
        foreign[f"{layout.axial_prefix}0"] = rows[prefix_length:][None, :, None]
        foreign[f"{layout.axial_prefix}1"] = columns[prefix_length:][None, None]
    for layer in range(layout.n_layer):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        foreign |= _convert_block(block, layout, layer)
    return foreign


def _convert_block(block: Mapping[str, Tensor], layout: TensorLayout, layer: int) -> dict[str, Tensor]:
    foreign: dict[str, Tensor] = {}
    prefixes = layout.sublayer_prefixes(layer)
    for sublayer, prefix in zip(("attention", "mlp"), prefixes, strict=True):
        foreign[f"{prefix}scale"] = torch.ones(1, 1, layout.n_embd)
        for kind in ("weight", "bias"):
            foreign[f"{prefix}fn.norm.{kind}"] = block[f"{sublayer}_norm.{kind}"]
            if layout.sandwich:
                foreign[f"{prefix}fn.norm_out.{kind}"] = block[f"{sublayer}_post.{kind}"]
    attention, feed_forward = (prefix + wrapper for prefix, wrapper in zip(prefixes, layout.wrappers, strict=True))
    heads = (layout.n_head, layout.head_dim)
    order = torch.arange(layout.head_dim)
    if layout.rotary:
        order = rotary_channel_order(layout.head_dim).argsort()
    qkv = block["attention.qkv.weight"].unflatten(0, (3, *heads))
    out = block["attention.out.weight"].unflatten(1, heads)
    foreign[f"{attention}to_qkv.weight"] = qkv[:, :, order].flatten(0, 2)
    foreign[f"{attention}to_out.0.weight"] = out[:, :, order].flatten(1)
    foreign[f"{attention}to_out.0.bias"] = block["attention.out.bias"]
    for kind in ("weight", "bias"):
        gate, value = block[f"mlp.up.{kind}"].chunk(2)
        foreign[f"{feed_forward}net.0.{kind}"] = torch.cat([value, gate])
        foreign[f"{feed_forward}net.3.{kind}"] = block[f"mlp.down.{kind}"]
    return foreign
