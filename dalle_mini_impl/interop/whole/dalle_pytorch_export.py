"""A model of ours -> what `torch.save` makes a `dalle.pt` of, where DALLE-pytorch has such models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.config.model import ImageTokenizerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.interop.image.dalle_pytorch import foreign_names
from dalle_mini_impl.interop.whole.dalle_pytorch import ATTENTION, KERNEL, pair_order
from dalle_mini_impl.interop.whole.dalle_pytorch_layout import NESTS, Layout
from dalle_mini_impl.util.errors import UserError

VERSION = "1.6.6"
"""Of the package that reads what is written here."""


@dataclass(frozen=True)
class Model:
    """What is exported."""

    config: TransformerConfig
    stream: StreamConfig
    tensors: Mapping[str, Tensor]
    """The transformer's."""
    image_config: ImageTokenizerConfig
    image_tensors: Mapping[str, Tensor]
    """The image tokenizer's."""


def export(model: Model) -> dict[str, Any]:
    """The content of a `dalle.pt`; all scales are 1, since ours are part of the matrices.

    Raises:
        UserError: DALLE-pytorch has no such models; says why.
    """
    for name, value, known in _needs(model):
        if value not in known:
            raise UserError(
                f"{name} is {value!r}, and DALLE-pytorch has only {', '.join(map(repr, known))}; "
                f"such a model cannot be exported"
            )
    layout, block, config = _layout(model), model.config.block, model.config
    kinds = tuple(config.attention_masks[layer % len(config.attention_masks)] for layer in range(config.n_layer))
    kinds = (*kinds[:-1], config.last_attention_mask or kinds[-1])
    hparams = {
        "num_text_tokens": layout.text_vocab, "text_seq_len": layout.text_length, "dim": layout.n_embd,
        "depth": layout.n_layer, "heads": layout.n_head, "dim_head": layout.head_dim, "reversible": block.reversible,
        "loss_img_weight": 7, "attn_types": kinds, "ff_dropout": 0.0, "attn_dropout": 0.0,
        "stable": config.divide_by_max,
        "sandwich_norm": block.sandwich, "shift_tokens": block.token_shift, "rotary_emb": layout.rotary,
        "shared_attn_ids": None, "shared_ff_ids": None, "share_input_output_emb": False,
    }  # fmt: skip
    foreign_name = foreign_names(model.image_config)
    weights = {f"vae.{foreign_name(name)}": value for name, value in model.image_tensors.items()}
    weights |= _weights(model.tensors, layout)
    return {
        "hparams": hparams,
        "vae_params": _vae_params(model.image_config),
        "epoch": 0,
        "version": VERSION,
        "vae_class_name": "DiscreteVAE",
        "weights": weights,
    }


def _needs(model: Model) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """What must be so: a setting's name, its value, and the values that can be exported."""
    config, stream, image = model.config, model.stream, model.image_config
    block, side = config.block, stream.grid[0]
    yield "block.norm", block.norm, ("layer",)
    yield "block.mlp", block.mlp, ("geglu",)
    yield "block.hidden", block.hidden or 4 * config.n_embd, (4 * config.n_embd,)
    yield "block.bias", block.bias, (True,)
    yield "block.qk_norm", block.qk_norm, (False,)
    yield "position", config.position, ("table", "learned")
    yield "block.rotate_values", block.rotate_values, (config.position == "table",)
    for kind in filter(None, (*config.attention_masks, config.last_attention_mask)):
        yield "attention mask", kind, ATTENTION
        yield "mask_kernel", config.mask_kernel if kind == "conv_like" else KERNEL, (KERNEL,)
    yield "mask_origin", config.mask_origin, ("input",)
    yield "last_norms", config.last_norms, (1,)
    yield "grid", stream.grid, ((side, side),)
    yield "bos_id", stream.bos_id, (0,)
    yield "pad_id", stream.pad_id, (0,)
    yield "the image tokenizer's network", image.network, ("dalle-pytorch",)
    yield "the image tokenizer's image_size", image.image_size, (side * image.factor,)
    powers = tuple(2**power for power in range(1, 15))
    yield "the image tokenizer's image_size", image.image_size, powers
    for layer in range(config.n_layer):
        bias = model.tensors[f"blocks.{layer}.attention.qkv.bias"]
        yield "the largest bias of queries, keys and values", bias.abs().max().item(), (0.0,)


def _layout(model: Model) -> Layout:
    config, stream, block = model.config, model.stream, model.config.block
    return Layout(
        text_vocab=stream.text_vocab,
        text_length=stream.text_length,
        side=stream.grid[0],
        image_vocab=stream.image_vocab,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        head_dim=config.head_dim or config.n_embd // config.n_head,
        rotary=config.position == "table",
        reversible=block.reversible,
        sandwich=block.sandwich,
        nests=NESTS[block.token_shift],
    )


def _vae_params(config: ImageTokenizerConfig) -> dict[str, Any]:
    params: dict[str, Any] = {
        "image_size": config.image_size, "num_layers": len(config.channels), "num_tokens": config.codebook_size,
        "codebook_dim": config.embed_dim, "hidden_dim": config.channels[0], "num_resnet_blocks": config.encoder_blocks,
    }  # fmt: skip
    foreign, plain = config.imported, type(config.imported)()
    if (foreign.mean, foreign.std) != (plain.mean, plain.std):
        params["normalization"] = (foreign.mean, foreign.std)
    return params


def _weights(ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    text = layout.text_vocab + layout.text_length
    theirs = {"text_emb.weight": ours["embed.weight"][:text], "image_emb.weight": ours["embed.weight"][text:]}
    for name in ("weight", "bias"):
        theirs |= {f"to_logits.0.{name}": ours[f"norm.{name}"], f"to_logits.1.{name}": ours[f"head.{name}"]}
    if layout.rotary:
        cos, sin = (ours["table"][:, row, layout.head_dim // 2 :][:, : layout.turned] for row in (0, 1))
        theirs["transformer.pos_emb"] = torch.atan2(sin, cos).repeat_interleave(2, -1)[None]
    else:
        rows, columns = ours["positions.0.weight"], ours["positions.1.weight"]
        prefix = 1 + layout.text_length
        theirs["text_pos_emb.weight"] = rows[:prefix] + columns[:prefix]
        theirs[f"{layout.axial}0"] = rows[prefix:][None, :, None]
        theirs[f"{layout.axial}1"] = columns[prefix:][None, None]
    for number in range(layout.n_layer):
        block = {
            name.removeprefix(f"blocks.{number}."): value
            for name, value in ours.items()
            if name.startswith(f"blocks.{number}.")
        }
        theirs |= _layer(block, layout, number)
    return theirs


def _layer(ours: Mapping[str, Tensor], layout: Layout, number: int) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    halves = dict(zip(("attention", "mlp"), layout.halves(number), strict=True))
    for part, half in halves.items():
        theirs[f"{half}scale"] = torch.ones(1, 1, layout.n_embd)
        for name in ("weight", "bias"):
            theirs[f"{half}fn.norm.{name}"] = ours[f"{part}_norm.{name}"]
            if layout.sandwich:
                theirs[f"{half}fn.norm_out.{name}"] = ours[f"{part}_post.{name}"]
    attention, feed = (half + nest for half, nest in zip(halves.values(), layout.nests, strict=True))
    order, heads = torch.arange(layout.head_dim), (layout.n_head, layout.head_dim)
    if layout.rotary:
        order = pair_order(layout.head_dim).argsort()
    qkv, out = ours["attention.qkv.weight"].unflatten(0, (3, *heads)), ours["attention.out.weight"].unflatten(1, heads)
    theirs[f"{attention}to_qkv.weight"] = qkv[:, :, order].flatten(0, 2)
    theirs[f"{attention}to_out.0.weight"] = out[:, :, order].flatten(1)
    theirs[f"{attention}to_out.0.bias"] = ours["attention.out.bias"]
    for name in ("weight", "bias"):
        theirs[f"{feed}net.0.{name}"] = torch.cat(ours[f"mlp.up.{name}"].chunk(2)[::-1])
        theirs[f"{feed}net.3.{name}"] = ours[f"mlp.down.{name}"]
    return theirs
