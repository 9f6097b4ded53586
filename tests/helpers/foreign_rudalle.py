"""ruDALL-E's transformer: names and shapes in its files, its attention masks, and a slow reference for it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.foreign_tensors import Shapes, Tensors, layer_norm, linear, random_gpt_tensors, weight_and_bias

SMALL: dict[str, int] = {"layers": 4, "width": 14, "text_ids": 37, "n_ids": 23, "text_length": 6, "side": 7}
"""Arguments of `rudalle_shapes` for a small model."""
HEADS = 2
"""Attention heads of the small model."""


def rudalle_shapes(
    layers: int, width: int, text_ids: int, n_ids: int, text_length: int, side: int, sandwich: bool = True
) -> Shapes:
    """Names and shapes in a pytorch_model.bin except the masks; `text_ids` counts the paddings, one per position."""
    shapes: Shapes = {
        "text_embeddings.weight": (text_ids, width),
        "image_embeddings.weight": (n_ids, width),
        "text_pos_embeddings.weight": (text_length + 1, width),
        "image_row_embeddings.weight": (side, width),
        "image_col_embeddings.weight": (side, width),
    }
    shapes |= weight_and_bias("to_logits.0", width) | weight_and_bias("to_logits.1", text_ids + n_ids, width)
    for layer in range(layers):
        block = f"transformer.layers.{layer}"
        shapes |= weight_and_bias(f"{block}.input_layernorm", width)
        if sandwich:
            shapes |= weight_and_bias(f"{block}.before_first_addition_layernorm", width)
            shapes |= weight_and_bias(f"{block}.before_second_addition_layernorm", width)
        shapes |= weight_and_bias(f"{block}.attention.query_key_value", 3 * width, width)
        shapes |= weight_and_bias(f"{block}.attention.dense", width, width)
        shapes |= weight_and_bias(f"{block}.post_attention_layernorm", width)
        shapes |= weight_and_bias(f"{block}.mlp.dense_h_to_4h", 4 * width, width)
        shapes |= weight_and_bias(f"{block}.mlp.dense_4h_to_h", width, 4 * width)
    return shapes | weight_and_bias("transformer.final_layernorm", width)


def rudalle_masks(text_length: int, side: int, version: int) -> dict[str, Tensor]:
    """The three masks, entry by entry: 1 where the row's position attends to the column's."""
    size = text_length + side * side
    masks = {name: torch.ones(size, size).tril() for name in ("row_mask", "col_mask", "conv_mask")}
    for column in range(text_length, size):
        for row in range(column + 1, size):
            distance = row - column
            masks["row_mask"][row, column] = distance <= side
            masks["col_mask"][row, column] = distance % side == 0
        masks["conv_mask"][column + 1 :, column] = 0
        y, x = divmod(column - text_length, side)
        for down in range(-5, 6):
            for right in range(-5, 6):
                if version == 2:
                    cell = (y + down) % side * side + (x + right) % side
                else:
                    cell = min(max(y + down, 0), side - 1) * side + min(max(x + right, 0), side - 1)
                if text_length + cell > column:
                    masks["conv_mask"][text_length + cell, column] = 1
    return masks


def rudalle_logits(
    tensors: Tensors,
    masks: dict[str, Tensor],
    layers: int,
    heads: int,
    version: int,
    text_ids: Tensor,
    image_ids: Tensor,
) -> Tensor:
    """Text ids (L,), 0 for padding, and the first image ids (n,) -> logits (T, all ids) at all positions."""
    all_text_ids = len(tensors["text_embeddings.weight"])
    text_length = len(text_ids)
    side = len(tensors["image_row_embeddings.weight"])
    paddings = torch.arange(all_text_ids - text_length, all_text_ids)
    text = torch.where(text_ids == 0, paddings, text_ids)
    if version == 2:
        text = torch.cat([torch.tensor([2]), text])
    text = tensors["text_embeddings.weight"][text] + tensors["text_pos_embeddings.weight"][: len(text)]
    cells = torch.arange(len(image_ids))
    image_positions = (
        tensors["image_row_embeddings.weight"][cells // side] + tensors["image_col_embeddings.weight"][cells % side]
    )
    image = tensors["image_embeddings.weight"][image_ids] + image_positions
    x = torch.cat([text, image])[: text_length + side * side]
    T = len(x)
    head_width = x.shape[1] // heads
    for layer in range(layers):
        block = f"transformer.layers.{layer}"
        mask_name = "col_mask" if (layer - 1) % 4 == 0 else "row_mask" if layer != layers - 1 else "conv_mask"
        mask = masks[mask_name][:T, :T]
        normalised = layer_norm(tensors, f"{block}.input_layernorm", x)
        qkv = linear(tensors, f"{block}.attention.query_key_value", normalised)
        q, k, v = qkv.view(T, 3, heads, head_width).unbind(1)
        scores = torch.einsum("rhw,chw->hrc", q / head_width**0.5, k) * mask - 10000.0 * (1 - mask)
        scores = (scores / 32 - (scores / 32).amax((1, 2), keepdim=True)) * 32
        out = torch.einsum("hrc,chw->rhw", scores.softmax(-1), v).flatten(1)
        out = linear(tensors, f"{block}.attention.dense", out)
        x = x + _sandwich_norm(tensors, f"{block}.before_first_addition_layernorm", out)
        normalised = layer_norm(tensors, f"{block}.post_attention_layernorm", x)
        inner = linear(tensors, f"{block}.mlp.dense_h_to_4h", normalised)
        inner = 0.5 * inner * (1 + torch.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner * inner)))
        out = linear(tensors, f"{block}.mlp.dense_4h_to_h", inner)
        x = x + _sandwich_norm(tensors, f"{block}.before_second_addition_layernorm", out)
    x = layer_norm(tensors, "transformer.final_layernorm", x)
    return linear(tensors, "to_logits.1", layer_norm(tensors, "to_logits.0", x))


def _sandwich_norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """A norm that only some models have."""
    return layer_norm(tensors, name, x) if f"{name}.weight" in tensors else x


def write_rudalle_file(
    path: Path,
    version: int,
    *,
    mask_prefix: str | None = "transformer.",
    mask_dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> tuple[Tensors, dict[str, Tensor]]:
    """Write a small random model of a version.

    Args:
        path: the file to write.
        version: 2 or 3.
        mask_prefix: what precedes the names of the masks; None for a file without masks.
        mask_dtype: dtype of the masks in the file.
        **changes: arguments of `rudalle_shapes` that differ from `SMALL`.

    Returns:
        Tensors and masks, as `rudalle_logits` takes them.
    """
    sizes = {**SMALL, **changes}
    tensors = random_gpt_tensors(rudalle_shapes(**sizes), seed=version)
    masks = rudalle_masks(sizes["text_length"], sizes["side"], version)
    stored = {} if mask_prefix is None else {f"{mask_prefix}{name}": m.to(mask_dtype) for name, m in masks.items()}
    torch.save({**tensors, **stored}, path)
    return tensors, masks
