"""Image tokenizers of other projects: the layouts of their files, and slow, obvious versions of what they compute.

Written from the layouts alone, with functions on tables of tensors, not with the package's networks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def random_tensors(shapes: Shapes, seed: int = 0, gain: float = 1.0) -> Tensors:
    """Tensors of these shapes, with which signals neither vanish nor explode.

    `gain` makes up for what ReLUs take away.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        spread = gain * torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.1
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = centre + spread * torch.randn(shape, generator=generator)
    return tensors


def conv_shapes(name: str, inputs: int, outputs: int, side: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


# --- VQGAN


def vqgan_shapes(
    ch: int,
    ch_mult: tuple[int, ...],
    attention: tuple[int, ...],
    z: int,
    embed: int,
    ids: int,
    *,
    blocks: int = 2,
    gumbel: bool = False,
    middle: bool = True,
) -> Shapes:
    """Names and shapes in a VQGAN file; `attention` names stages."""
    shapes: Shapes = {}

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def conv(name, inputs, outputs, side):
        shapes.update(conv_shapes(name, inputs, outputs, side))

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attend(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    widths, last = [ch * factor for factor in ch_mult], len(ch_mult) - 1
    for half in ("encoder", "decoder"):
        block(f"{half}.mid.block_1", widths[-1], widths[-1])
        if middle:
            attend(f"{half}.mid.attn_1", widths[-1])
        block(f"{half}.mid.block_2", widths[-1], widths[-1])
        norm(f"{half}.norm_out", widths[-1] if half == "encoder" else widths[0])
    conv("encoder.conv_in", 3, ch, 3)
    conv("encoder.conv_out", widths[-1], z, 3)
    conv("decoder.conv_in", z, widths[-1], 3)
    conv("decoder.conv_out", widths[0], 3, 3)
    before = ch
    for stage, width in enumerate(widths):
        for number in range(blocks):
            block(f"encoder.down.{stage}.block.{number}", before, width)
            if stage in attention:
                attend(f"encoder.down.{stage}.attn.{number}", width)
            before = width
        if stage < last:
            conv(f"encoder.down.{stage}.downsample.conv", width, width, 3)
    for stage, width in reversed(list(enumerate(widths))):
        for number in range(blocks + 1):
            block(f"decoder.up.{stage}.block.{number}", before, width)
            if stage in attention:
                attend(f"decoder.up.{stage}.attn.{number}", width)
            before = width
        if stage > 0:
            conv(f"decoder.up.{stage}.upsample.conv", width, width, 3)
    conv("quant_conv", z, embed, 1)
    conv("post_quant_conv", embed, z, 1)
    if gumbel:
        conv("quantize.proj", z, ids, 1)
    shapes["quantize.embed.weight" if gumbel else "quantize.embedding.weight"] = (ids, embed)
    return shapes


def llamagen_names(shapes: Shapes, stages: int) -> dict[str, str]:
    """VQGAN name -> LlamaGen's, for each."""
    renamed = {}
    for name in shapes:
        words = name.split(".")
        if words[1] in ("down", "up"):
            stage = int(words[2]) if words[1] == "down" else stages - 1 - int(words[2])
            words[1:3] = ["conv_blocks", str(stage)]
            words[3] = {"block": "res"}.get(words[3], words[3])
        elif words[1] == "mid":
            words[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[words[2]]
        renamed[name] = ".".join(words)
    return renamed


def group_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    variance, mean = torch.var_mean(groups, dim=-1, keepdim=True, correction=0)
    normal = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return normal * t[f"{name}.weight"][:, None, None] + t[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * (1 / (1 + torch.exp(-x)))


def conv(t: Tensors, name: str, x: Tensor, **options) -> Tensor:
    return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], **options)


def vqgan_block(t: Tensors, name: str, x: Tensor) -> Tensor:
    h = conv(t, f"{name}.conv1", swish(group_norm(t, f"{name}.norm1", x)), padding=1)
    h = conv(t, f"{name}.conv2", swish(group_norm(t, f"{name}.norm2", h)), padding=1)
    return h + (conv(t, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in t else x)


def vqgan_attention(t: Tensors, name: str, x: Tensor) -> Tensor:
    if f"{name}.norm.weight" not in t:
        return x
    normal = group_norm(t, f"{name}.norm", x)
    q, k, v = (conv(t, f"{name}.{part}", normal).flatten(2) for part in "qkv")
    weights = torch.softmax(torch.einsum("bcm,bcn->bmn", q, k) / x.shape[1] ** 0.5, -1)
    return x + conv(t, f"{name}.proj_out", torch.einsum("bmn,bcn->bcm", weights, v).reshape(x.shape))


def vqgan_middle(t: Tensors, half: str, x: Tensor) -> Tensor:
    x = vqgan_attention(t, f"{half}.mid.attn_1", vqgan_block(t, f"{half}.mid.block_1", x))
    return vqgan_block(t, f"{half}.mid.block_2", x)


def vqgan_encode(t: Tensors, pixels: Tensor, stages: int, blocks: int = 2) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> z (B, D, h, w)."""
    x = conv(t, "encoder.conv_in", pixels, padding=1)
    for stage in range(stages):
        for number in range(blocks):
            x = vqgan_block(t, f"encoder.down.{stage}.block.{number}", x)
            x = vqgan_attention(t, f"encoder.down.{stage}.attn.{number}", x)
        if stage < stages - 1:
            x = torch.cat([x, torch.zeros_like(x[..., :1])], -1)
            x = torch.cat([x, torch.zeros_like(x[..., :1, :])], -2)
            x = conv(t, f"encoder.down.{stage}.downsample.conv", x, stride=2)
    x = swish(group_norm(t, "encoder.norm_out", vqgan_middle(t, "encoder", x)))
    return conv(t, "quant_conv", conv(t, "encoder.conv_out", x, padding=1))


def vqgan_decode(t: Tensors, z: Tensor, stages: int, blocks: int = 2) -> Tensor:
    """Z (B, D, h, w) -> pixels (B, 3, H, W)."""
    x = conv(t, "decoder.conv_in", conv(t, "post_quant_conv", z), padding=1)
    x = vqgan_middle(t, "decoder", x)
    for stage in reversed(range(stages)):
        for number in range(blocks + 1):
            x = vqgan_block(t, f"decoder.up.{stage}.block.{number}", x)
            x = vqgan_attention(t, f"decoder.up.{stage}.attn.{number}", x)
        if stage > 0:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = conv(t, f"decoder.up.{stage}.upsample.conv", x, padding=1)
    return conv(t, "decoder.conv_out", swish(group_norm(t, "decoder.norm_out", x)), padding=1)


def nearest_ids(z: Tensor, table: Tensor) -> Tensor:
    """(B, D, h, w) and (K, D) -> (B, h, w)."""
    return (z.movedim(1, -1)[..., None, :].double() - table.double()).square().sum(-1).argmin(-1)


# --- OpenAI's dVAE


def openai_shapes(hidden: int, init: int, ids: int, blocks: int = 2) -> tuple[Shapes, Shapes]:
    """Names and shapes in encoder.pkl and in decoder.pkl."""
    both: list[Shapes] = []
    for widths, first, sides in (
        ([1, 2, 4, 8], hidden, (3, 3, 3, 1)),
        ([8, 4, 2, 1], init, (1, 3, 3, 3)),
    ):
        shapes: Shapes = {}

        def add(name, inputs, outputs, side, shapes=shapes):
            shapes.update({f"blocks.{name}.w": (outputs, inputs, side, side), f"blocks.{name}.b": (outputs,)})

        before = first
        add("input", *((3, hidden, 7) if not both else (ids, init, 1)))
        for group, factor in enumerate(widths, 1):
            for block in range(1, blocks + 1):
                name, width = f"group_{group}.block_{block}", factor * hidden
                if before != width:
                    add(f"{name}.id_path", before, width, 1)
                inner = [before, width // 4, width // 4, width // 4, width]
                for number in range(4):
                    add(f"{name}.res_path.conv_{number + 1}", inner[number], inner[number + 1], sides[number])
                before = width
        add("output.conv", before, ids if not both else 6, 1)
        both.append(shapes)
    return both[0], both[1]


def openai_run(t: Tensors, x: Tensor, resize) -> Tensor:
    """Either network of the dVAE, with two blocks in each of four groups."""

    def layer(name, x):
        weight = t[f"blocks.{name}.w"]
        return F.conv2d(x, weight, t[f"blocks.{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = layer("input", x)
    for group in range(1, 5):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            h = x
            for number in range(1, 5):
                h = layer(f"{name}.res_path.conv_{number}", h.clamp(min=0))
            x = (layer(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in t else x) + h / 64
        if group < 4:
            x = resize(x)
    return layer("output.conv", x.clamp(min=0))


def openai_encode(t: Tensors, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> ids (B, H/8, W/8)."""
    mapped = 0.8 * (pixels * 0.5 + 0.5) + 0.1

    def largest_of_four(x):
        return x.unfold(-2, 2, 2).unfold(-2, 2, 2).amax((-1, -2))

    return openai_run(t, mapped, largest_of_four).argmax(1)


def openai_decode(t: Tensors, image_ids: Tensor) -> Tensor:
    """Ids (B, h, w) -> pixels (B, 3, 8h, 8w) in [-1, 1]."""
    one_hot = F.one_hot(image_ids, t["blocks.input.w"].shape[1]).movedim(-1, 1).float()
    numbers = openai_run(t, one_hot, lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return 2 * ((torch.sigmoid(numbers[:, :3]) - 0.1) / 0.8).clamp(0, 1) - 1


# --- DALLE-pytorch's DiscreteVAE


def dalle_pytorch_shapes(layers: int, blocks: int, hidden: int, embed: int, ids: int) -> Shapes:
    """Names and shapes in the weights of a vae.pt."""
    shapes: Shapes = {"codebook.weight": (ids, embed)}
    for layer in range(layers):
        shapes |= conv_shapes(f"encoder.{layer}.0", hidden if layer else 3, hidden, 4)
    for block in range(blocks):
        for half, start in (("encoder", layers), ("decoder", 1)):
            for number, side in ((0, 3), (2, 3), (4, 1)):
                shapes |= conv_shapes(f"{half}.{start + block}.net.{number}", hidden, hidden, side)
    shapes |= conv_shapes(f"encoder.{layers + blocks}", hidden, ids, 1)
    first = 0
    if blocks:
        shapes |= conv_shapes("decoder.0", embed, hidden, 1)
        first = 1 + blocks
    for layer in range(layers):
        inputs = hidden if layer or blocks else embed
        name = f"decoder.{first + layer}.0"
        shapes |= {f"{name}.weight": (inputs, hidden, 4, 4), f"{name}.bias": (hidden,)}
    return shapes | conv_shapes(f"decoder.{first + layers}", hidden, 3, 1)


def dalle_pytorch_run(t: Tensors, half: str, x: Tensor) -> Tensor:
    """Either network, layer by layer as the names tell."""
    for number in range(1 + max(int(name.split(".")[1]) for name in t if name.startswith(half))):
        name = f"{half}.{number}"
        if f"{name}.net.0.weight" in t:
            h = conv(t, f"{name}.net.0", x, padding=1).relu()
            x = x + conv(t, f"{name}.net.4", conv(t, f"{name}.net.2", h, padding=1).relu())
        elif f"{name}.weight" in t:
            x = conv(t, name, x)
        elif half == "encoder":
            x = conv(t, f"{name}.0", x, stride=2, padding=1).relu()
        else:
            x = F.conv_transpose2d(x, t[f"{name}.0.weight"], t[f"{name}.0.bias"], stride=2, padding=1).relu()
    return x
