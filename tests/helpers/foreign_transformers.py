"""Transformers of other projects: the layouts of their files, and slow, obvious versions of what they compute.

Written from the layouts alone, with functions on tables of tensors, not with the package's networks.
"""

import torch
from torch import Tensor

from helpers.foreign_image_tokenizers import Shapes, Tensors


def with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def random_transformer(shapes: Shapes, seed: int = 0) -> Tensors:
    """Tensors of these shapes; embeddings and heads are large enough for logits that differ."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        norm = len(shape) == 1 and name.endswith("weight")
        spread = 0.2 if len(shape) == 1 else 1.0 if "emb" in name else 2.5 * shape[1] ** -0.5
        tensors[name] = norm + spread * torch.randn(shape, generator=generator)
    return tensors


def layer_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normal * t[f"{name}.weight"] + t[f"{name}.bias"]


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


# --- minDALL-E


def mindalle_shapes(layers: int, C: int, text: int, ids: int, length: int, side: int) -> Shapes:
    """Names and shapes in a stage2_last.ckpt."""
    shapes: Shapes = {
        "tok_emb_img.weight": (ids, C), "tok_emb_txt.weight": (text, C),
        "pos_emb_img.weight": (side * side, C), "pos_emb_txt.weight": (length, C),
    }  # fmt: skip
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= with_bias(f"{block}.ln1", C) | with_bias(f"{block}.ln2", C)
        for part in ("key", "query", "value", "proj"):
            shapes |= with_bias(f"{block}.attn.{part}", C, C)
        shapes |= with_bias(f"{block}.mlp.0", 4 * C, C) | with_bias(f"{block}.mlp.2", C, 4 * C)
    return shapes | with_bias("ln_f", C) | {"head_img.weight": (ids, C), "head_txt.weight": (text, C)}


def mindalle_logits(t: Tensors, layers: int, heads: int, text_ids: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Padded text ids (L,) and the first image ids (n,) -> logits of text ids 1 … L-1, and of image ids 0 … n."""
    text = t["tok_emb_txt.weight"][text_ids] + t["pos_emb_txt.weight"]
    image = t["tok_emb_img.weight"][image_ids] + t["pos_emb_img.weight"][: len(image_ids)]
    x = torch.cat([text, image])
    width = x.shape[1] // heads
    for layer in range(layers):
        block = f"blocks.{layer}"
        normal = layer_norm(t, f"{block}.ln1", x)
        q, k, v = (linear(t, f"{block}.attn.{part}", normal) for part in ("query", "key", "value"))
        out = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for row in range(len(x)):
                scores = torch.stack([q[row, part] @ k[column, part] * width**-0.5 for column in range(row + 1)])
                out[row, part] = scores.softmax(0) @ v[: row + 1, part]
        x = x + linear(t, f"{block}.attn.proj", out)
        inner = linear(t, f"{block}.mlp.0", layer_norm(t, f"{block}.ln2", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + linear(t, f"{block}.mlp.2", inner)
    x = layer_norm(t, "ln_f", x)
    last = len(text_ids) - 1
    return x[:last] @ t["head_txt.weight"].T, x[last:] @ t["head_img.weight"].T


# --- ruDALL-E


def rudalle_shapes(layers: int, C: int, text: int, ids: int, length: int, side: int, sandwich: bool = True) -> Shapes:
    """Names and shapes in a pytorch_model.bin but the masks; `text` counts the paddings."""
    shapes: Shapes = {
        "text_embeddings.weight": (text, C), "image_embeddings.weight": (ids, C),
        "text_pos_embeddings.weight": (length + 1, C), "image_row_embeddings.weight": (side, C),
        "image_col_embeddings.weight": (side, C),
    }  # fmt: skip
    shapes |= with_bias("to_logits.0", C) | with_bias("to_logits.1", text + ids, C)
    for layer in range(layers):
        block = f"transformer.layers.{layer}"
        shapes |= with_bias(f"{block}.input_layernorm", C)
        if sandwich:
            shapes |= with_bias(f"{block}.before_first_addition_layernorm", C)
            shapes |= with_bias(f"{block}.before_second_addition_layernorm", C)
        shapes |= with_bias(f"{block}.attention.query_key_value", 3 * C, C) | with_bias(
            f"{block}.attention.dense", C, C
        )
        shapes |= with_bias(f"{block}.post_attention_layernorm", C)
        shapes |= with_bias(f"{block}.mlp.dense_h_to_4h", 4 * C, C) | with_bias(f"{block}.mlp.dense_4h_to_h", C, 4 * C)
    return shapes | with_bias("transformer.final_layernorm", C)


def rudalle_masks(length: int, side: int, version: int) -> dict[str, Tensor]:
    """The three masks, place by place: 1 where the row's position may look at the column's."""
    size = length + side * side
    masks = {name: torch.ones(size, size).tril() for name in ("row_mask", "col_mask", "conv_mask")}
    for column in range(length, size):
        for row in range(column + 1, size):
            apart = row - column
            masks["row_mask"][row, column] = apart <= side
            masks["col_mask"][row, column] = apart % side == 0
        masks["conv_mask"][column + 1 :, column] = 0
        y, x = divmod(column - length, side)
        for down in range(-5, 6):
            for right in range(-5, 6):
                if version == 2:
                    there = (y + down) % side * side + (x + right) % side
                else:
                    there = min(max(y + down, 0), side - 1) * side + min(max(x + right, 0), side - 1)
                if length + there > column:
                    masks["conv_mask"][length + there, column] = 1
    return masks


def rudalle_logits(
    t: Tensors, masks: dict[str, Tensor], layers: int, heads: int, version: int, text_ids: Tensor, image_ids: Tensor
) -> Tensor:
    """Text ids (L,), 0 for padding, and the first image ids (n,) -> logits (T, all ids) at all positions."""
    text_vocab, length = len(t["text_embeddings.weight"]), len(text_ids)
    side = len(t["image_row_embeddings.weight"])
    padding = torch.arange(text_vocab - length, text_vocab)
    text = torch.where(text_ids == 0, padding, text_ids)
    if version == 2:
        text = torch.cat([torch.tensor([2]), text])
    text = t["text_embeddings.weight"][text] + t["text_pos_embeddings.weight"][: len(text)]
    place = torch.arange(len(image_ids))
    image = t["image_row_embeddings.weight"][place // side] + t["image_col_embeddings.weight"][place % side]
    x = torch.cat([text, t["image_embeddings.weight"][image_ids] + image])[: length + side * side]
    T, width = len(x), x.shape[1] // heads
    for layer in range(layers):
        block = f"transformer.layers.{layer}"
        kind = "col_mask" if (layer - 1) % 4 == 0 else "row_mask" if layer != layers - 1 else "conv_mask"
        mask = masks[kind][:T, :T]
        normal = layer_norm(t, f"{block}.input_layernorm", x)
        q, k, v = linear(t, f"{block}.attention.query_key_value", normal).view(T, 3, heads, width).unbind(1)
        scores = torch.einsum("rhw,chw->hrc", q / width**0.5, k) * mask - 10000.0 * (1 - mask)
        scores = (scores / 32 - (scores / 32).amax((1, 2), keepdim=True)) * 32
        out = linear(t, f"{block}.attention.dense", torch.einsum("hrc,chw->rhw", scores.softmax(-1), v).flatten(1))
        x = x + sandwich(t, f"{block}.before_first_addition_layernorm", out)
        inner = linear(t, f"{block}.mlp.dense_h_to_4h", layer_norm(t, f"{block}.post_attention_layernorm", x))
        inner = 0.5 * inner * (1 + torch.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner * inner)))
        out = linear(t, f"{block}.mlp.dense_4h_to_h", inner)
        x = x + sandwich(t, f"{block}.before_second_addition_layernorm", out)
    return linear(t, "to_logits.1", layer_norm(t, "to_logits.0", layer_norm(t, "transformer.final_layernorm", x)))


def sandwich(t: Tensors, name: str, x: Tensor) -> Tensor:
    return layer_norm(t, name, x) if f"{name}.weight" in t else x


MIN_LAYERS, MIN_HEADS, PAD = 3, 2, 17


MIN = {"layers": MIN_LAYERS, "C": 22, "text": 29, "ids": 23, "length": 5, "side": 3}


RU_HEADS = 2


def greedy(logits_after, count):
    """The likeliest ids one after the other, given what tells the logits behind the ids so far."""
    ids = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        ids = torch.cat([ids, logits_after(ids)[-1].argmax()[None]])
    return ids


def rudalle_file(path, version, *, masks="transformer.", dtype=torch.float32, **changes):
    """Write a file of a version, its masks at their place or, where that is None, left out.

    Returns:
        What the reference takes: tensors and masks.
    """
    sizes = {**RU, **changes}
    tensors = random_transformer(rudalle_shapes(**sizes), seed=version)
    table = rudalle_masks(sizes["length"], sizes["side"], version)
    stored = {} if masks is None else {f"{masks}{name}": mask.to(dtype) for name, mask in table.items()}
    torch.save({**tensors, **stored}, path)
    return tensors, table


RU = {"layers": 4, "C": 14, "text": 37, "ids": 23, "length": 6, "side": 7}
