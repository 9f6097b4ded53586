"""VQGANs of taming-transformers and LlamaGen: names and shapes in their files, and a slow reference for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers.foreign_tensors import Shapes, Tensors, conv, conv_shapes, weight_and_bias


def vqgan_shapes(
    ch: int,
    ch_mult: Sequence[int],
    attention_stages: Sequence[int],
    z_channels: int,
    embed_dim: int,
    n_ids: int,
    *,
    blocks: int = 2,
    gumbel: bool = False,
    middle_attention: bool = True,
) -> Shapes:
    """Names and shapes in a VQGAN file of taming-transformers.

    Args:
        ch: width of the first convolution, as in taming's configs.
        ch_mult: width of each stage as a multiple of `ch`, finest first, as in taming's configs.
        attention_stages: stages in which attention follows each block.
        z_channels: width between the networks and the quantizer's 1×1 convolutions.
        embed_dim: width of a codebook vector.
        n_ids: codebook size.
        blocks: residual blocks per stage of the encoder; the decoder has one more.
        gumbel: whether it is a GumbelVQ.
        middle_attention: whether there is attention between the two middle blocks.
    """
    shapes: Shapes = {}

    def add_conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes.update(conv_shapes(name, inputs, outputs, kernel))

    def add_norm(name: str, width: int) -> None:
        shapes.update(weight_and_bias(name, width))

    def add_block(name: str, inputs: int, outputs: int) -> None:
        add_norm(f"{name}.norm1", inputs)
        add_conv(f"{name}.conv1", inputs, outputs, 3)
        add_norm(f"{name}.norm2", outputs)
        add_conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            add_conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def add_attention(name: str, width: int) -> None:
        add_norm(f"{name}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            add_conv(f"{name}.{layer}", width, width, 1)

    widths = [ch * multiple for multiple in ch_mult]
    for network in ("encoder", "decoder"):
        add_block(f"{network}.mid.block_1", widths[-1], widths[-1])
        if middle_attention:
            add_attention(f"{network}.mid.attn_1", widths[-1])
        add_block(f"{network}.mid.block_2", widths[-1], widths[-1])
        add_norm(f"{network}.norm_out", widths[-1] if network == "encoder" else widths[0])
    add_conv("encoder.conv_in", 3, ch, 3)
    add_conv("encoder.conv_out", widths[-1], z_channels, 3)
    add_conv("decoder.conv_in", z_channels, widths[-1], 3)
    add_conv("decoder.conv_out", widths[0], 3, 3)
    inputs = ch
    for stage, width in enumerate(widths):
        for block in range(blocks):
            add_block(f"encoder.down.{stage}.block.{block}", inputs, width)
            if stage in attention_stages:
                add_attention(f"encoder.down.{stage}.attn.{block}", width)
            inputs = width
        if stage < len(widths) - 1:
            add_conv(f"encoder.down.{stage}.downsample.conv", width, width, 3)
    for stage, width in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            add_block(f"decoder.up.{stage}.block.{block}", inputs, width)
            if stage in attention_stages:
                add_attention(f"decoder.up.{stage}.attn.{block}", width)
            inputs = width
        if stage > 0:
            add_conv(f"decoder.up.{stage}.upsample.conv", width, width, 3)
    add_conv("quant_conv", z_channels, embed_dim, 1)
    add_conv("post_quant_conv", embed_dim, z_channels, 1)
    if gumbel:
        add_conv("quantize.proj", z_channels, n_ids, 1)
    shapes["quantize.embed.weight" if gumbel else "quantize.embedding.weight"] = (n_ids, embed_dim)
    return shapes


def llamagen_names(shapes: Shapes, n_stages: int) -> dict[str, str]:
    """taming-transformers' name -> LlamaGen's, for every tensor."""
    names = {}
    for name in shapes:
        words = name.split(".")
        if words[1] in ("down", "up"):
            stage = int(words[2]) if words[1] == "down" else n_stages - 1 - int(words[2])
            words[1:3] = ["conv_blocks", str(stage)]
            words[3] = {"block": "res"}.get(words[3], words[3])
        elif words[1] == "mid":
            words[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[words[2]]
        names[name] = ".".join(words)
    return names


def _group_norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    variance, mean = torch.var_mean(groups, dim=-1, keepdim=True, correction=0)
    normalised = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return normalised * tensors[f"{name}.weight"][:, None, None] + tensors[f"{name}.bias"][:, None, None]


def _swish(x: Tensor) -> Tensor:
    return x * (1 / (1 + torch.exp(-x)))


def _block(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    h = conv(tensors, f"{name}.conv1", _swish(_group_norm(tensors, f"{name}.norm1", x)), padding=1)
    h = conv(tensors, f"{name}.conv2", _swish(_group_norm(tensors, f"{name}.norm2", h)), padding=1)
    shortcut = conv(tensors, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in tensors else x
    return h + shortcut


def _attention(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """Attention of a stage or of the middle; the identity where the file has none."""
    if f"{name}.norm.weight" not in tensors:
        return x
    normalised = _group_norm(tensors, f"{name}.norm", x)
    q, k, v = (conv(tensors, f"{name}.{layer}", normalised).flatten(2) for layer in "qkv")
    weights = torch.softmax(torch.einsum("bcm,bcn->bmn", q, k) / x.shape[1] ** 0.5, -1)
    return x + conv(tensors, f"{name}.proj_out", torch.einsum("bmn,bcn->bcm", weights, v).reshape(x.shape))


def _middle(tensors: Tensors, network: str, x: Tensor) -> Tensor:
    x = _attention(tensors, f"{network}.mid.attn_1", _block(tensors, f"{network}.mid.block_1", x))
    return _block(tensors, f"{network}.mid.block_2", x)


def vqgan_encode(tensors: Tensors, pixels: Tensor, n_stages: int, blocks: int = 2) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> z (B, D, h, w)."""
    x = conv(tensors, "encoder.conv_in", pixels, padding=1)
    for stage in range(n_stages):
        for block in range(blocks):
            x = _block(tensors, f"encoder.down.{stage}.block.{block}", x)
            x = _attention(tensors, f"encoder.down.{stage}.attn.{block}", x)
        if stage < n_stages - 1:
            x = torch.cat([x, torch.zeros_like(x[..., :1])], -1)
            x = torch.cat([x, torch.zeros_like(x[..., :1, :])], -2)
            x = conv(tensors, f"encoder.down.{stage}.downsample.conv", x, stride=2)
    x = _swish(_group_norm(tensors, "encoder.norm_out", _middle(tensors, "encoder", x)))
    return conv(tensors, "quant_conv", conv(tensors, "encoder.conv_out", x, padding=1))


def vqgan_decode(tensors: Tensors, z: Tensor, n_stages: int, blocks: int = 2) -> Tensor:
    """Z (B, D, h, w) -> pixels (B, 3, H, W)."""
    x = conv(tensors, "decoder.conv_in", conv(tensors, "post_quant_conv", z), padding=1)
    x = _middle(tensors, "decoder", x)
    for stage in reversed(range(n_stages)):
        for block in range(blocks + 1):
            x = _block(tensors, f"decoder.up.{stage}.block.{block}", x)
            x = _attention(tensors, f"decoder.up.{stage}.attn.{block}", x)
        if stage > 0:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = conv(tensors, f"decoder.up.{stage}.upsample.conv", x, padding=1)
    return conv(tensors, "decoder.conv_out", _swish(_group_norm(tensors, "decoder.norm_out", x)), padding=1)


def nearest_ids(z: Tensor, codebook: Tensor) -> Tensor:
    """Z (B, D, h, w) and codebook (K, D) -> ids (B, h, w)."""
    return (z.movedim(1, -1)[..., None, :].double() - codebook.double()).square().sum(-1).argmin(-1)
