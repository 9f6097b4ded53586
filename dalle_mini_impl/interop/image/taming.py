"""VQGANs in the layout of taming-transformers: its own, nearest or Gumbel, and latent diffusion's VQ models."""

import dataclasses
import re
from pathlib import Path

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import Imported, fill
from dalle_mini_impl.util.errors import UserError

RENAMED = (
    (r"^encoder\.quant_conv", "quant_conv"),
    (r"^decoder\.post_quant_conv", "post_quant_conv"),
    (r"^encoder\.stages\.(\d+)\.resample", r"encoder.down.\1.downsample"),
    (r"^decoder\.stages\.(\d+)\.resample", r"decoder.up.\1.upsample"),
    (r"^encoder\.stages", "encoder.down"),
    (r"^decoder\.stages", "decoder.up"),
    (r"\.mid\.0", ".mid.block_1"),
    (r"\.mid\.1", ".mid.attn_1"),
    (r"\.mid\.2", ".mid.block_2"),
    (r"^quantizer", "quantize"),
)


def load(path: str | Path, image_size: int = 256, trust_pickle: bool = False, side: int = 0) -> Imported:
    """Import a VQGAN from a Lightning checkpoint, alone or inside a transformer's, from a `dalle.pt` of
    DALLE-pytorch, or from a plain state dict.

    Args:
        path: the file.
        image_size: side of the pictures in pixels; the tensors cannot tell it, all published ones have 256.
        trust_pickle: also read a file that holds more than tensors.
        side: image ids on each side, where a transformer tells it; 0 leaves it to `image_size`.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = read(path, trust_pickle)
    weights = under_prefix(state_dict(content, str(path), ("state_dict", "weights")), "encoder.conv_in.weight")
    if any(name.startswith("decoder.idwt.") for name in weights.tensors):
        raise UserError(
            f"{path} is ruDALL-E's VQGAN that decodes wavelets (dwt); "
            f"only the one without can be imported, vqgan.gumbelf8-sber.model.ckpt"
        )
    config = config_of(weights, image_size)
    if side:
        config = dataclasses.replace(config, image_size=side * config.factor)
    return fill(weights, config, foreign_name)


def config_of(
    weights: Weights,
    image_size: int,
    stage: str = "encoder.down",
    block: str = "block",
    middle: str = "encoder.mid.attn_1",
) -> ImageTokenizerConfig:
    """The shape of a VQGAN, from its tensors.

    Args:
        weights: the tensors.
        image_size: side of the pictures in pixels.
        stage: what stages are called in the names, before their number.
        block: what their blocks are called.
        middle: what the attention of the middle is called.

    Raises:
        UserError: a tensor that tells it is missing.
    """
    quantizer, table = "nearest", "quantize.embedding.weight"
    if "quantize.proj.weight" in weights.tensors:
        quantizer, table = "logits", "quantize.embed.weight"
    elif table not in weights.tensors:
        raise UserError(
            f"{weights.source} has neither {table} nor quantize.proj.weight; "
            f"an autoencoder without a codebook has no image ids"
        )
    stages = [f"{stage}.{number}" for number in range(max(1, weights.count(rf"{re.escape(stage)}\.(\d+)\.")))]
    foreign = ImportedNetworkConfig(
        stem=weights.size("encoder.conv_in.weight", 0),
        z_channels=weights.size("encoder.conv_out.weight", 0),
        attention=tuple(number for number, name in enumerate(stages) if f"{name}.attn.0.q.weight" in weights.tensors),
        middle_attention=f"{middle}.q.weight" in weights.tensors,
    )
    blocks = weights.count(rf"{re.escape(stages[0])}\.{block}\.(\d+)\.")
    return ImageTokenizerConfig(
        network="taming",
        quantizer=quantizer,
        image_size=image_size,
        factor=2 ** (len(stages) - 1),
        channels=tuple(weights.size(f"{name}.{block}.0.conv2.weight", 0) for name in stages),
        encoder_blocks=blocks,
        decoder_blocks=blocks + 1,
        codebook_size=weights.size(table, 0),
        embed_dim=weights.size("quant_conv.weight", 0),
        imported=foreign,
    )


def foreign_name(name: str) -> str:
    """Our name of a tensor -> taming's."""
    for ours, theirs in RENAMED:
        name = re.sub(ours, theirs, name)
    return name
