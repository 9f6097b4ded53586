"""minDALL-E's transformer: names and shapes in its file, and a slow reference for it."""

import torch
from torch import Tensor

from helpers.foreign_tensors import Shapes, Tensors, layer_norm, linear, weight_and_bias

SMALL: dict[str, int] = {"layers": 3, "width": 22, "text_vocab": 29, "n_ids": 23, "text_length": 5, "side": 3}
"""Arguments of `mindalle_shapes` for a small model."""
HEADS = 2
"""Attention heads of the small model."""


def mindalle_shapes(layers: int, width: int, text_vocab: int, n_ids: int, text_length: int, side: int) -> Shapes:
    """Names and shapes in a stage2_last.ckpt."""
    shapes: Shapes = {
        "tok_emb_img.weight": (n_ids, width),
        "tok_emb_txt.weight": (text_vocab, width),
        "pos_emb_img.weight": (side * side, width),
        "pos_emb_txt.weight": (text_length, width),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= weight_and_bias(f"{block}.ln1", width) | weight_and_bias(f"{block}.ln2", width)
        for name in ("key", "query", "value", "proj"):
            shapes |= weight_and_bias(f"{block}.attn.{name}", width, width)
        shapes |= weight_and_bias(f"{block}.mlp.0", 4 * width, width)
        shapes |= weight_and_bias(f"{block}.mlp.2", width, 4 * width)
    heads: Shapes = {"head_img.weight": (n_ids, width), "head_txt.weight": (text_vocab, width)}
    return shapes | weight_and_bias("ln_f", width) | heads


def mindalle_logits(
    tensors: Tensors, layers: int, heads: int, text_ids: Tensor, image_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Padded text ids (L,) and the first image ids (n,) -> logits of text ids 1 … L-1, and of image ids 0 … n."""
    text = tensors["tok_emb_txt.weight"][text_ids] + tensors["pos_emb_txt.weight"]
    image = tensors["tok_emb_img.weight"][image_ids] + tensors["pos_emb_img.weight"][: len(image_ids)]
    x = torch.cat([text, image])
    head_width = x.shape[1] // heads
    for layer in range(layers):
        block = f"blocks.{layer}"
        normalised = layer_norm(tensors, f"{block}.ln1", x)
        q, k, v = (linear(tensors, f"{block}.attn.{name}", normalised) for name in ("query", "key", "value"))
        out = torch.zeros_like(x)
        for head in range(heads):
            channels = slice(head * head_width, (head + 1) * head_width)
            for position in range(len(x)):
                scores = torch.stack(
                    [q[position, channels] @ k[other, channels] * head_width**-0.5 for other in range(position + 1)]
                )
                out[position, channels] = scores.softmax(0) @ v[: position + 1, channels]
        x = x + linear(tensors, f"{block}.attn.proj", out)
        inner = linear(tensors, f"{block}.mlp.0", layer_norm(tensors, f"{block}.ln2", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + linear(tensors, f"{block}.mlp.2", inner)
    x = layer_norm(tensors, "ln_f", x)
    last_text = len(text_ids) - 1
    return x[:last_text] @ tensors["head_txt.weight"].T, x[last_text:] @ tensors["head_img.weight"].T
