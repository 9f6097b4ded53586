"""VQGANs in the layout of taming-transformers: its own (nearest vector or Gumbel) and latent-diffusion's VQ models.

A Lightning checkpoint holds the tensors under `state_dict`, with names that begin with `first_stage_model.` in the file
of a larger model; DALLE-pytorch's `dalle.pt` holds them under `weights`, with names that begin with `vae.model.`. A
plain dictionary of tensors is read as well. ruDALL-E's `vqgan.gumbelf8-sber.model.ckpt` is such a Gumbel VQGAN.
"""

import dataclasses
import re
from pathlib import Path

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.image.build import build_image_tokenizer
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedImageTokenizer
from dalle_mini_impl.util.errors import UserError

FOREIGN_NAMES = (
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
"""Patterns in this package's tensor names and what taming-transformers has in their place; applied in this order."""


def load(
    path: str | Path, image_size: int = 256, trust_pickle: bool = False, grid_side: int = 0
) -> ImportedImageTokenizer:
    """Import a VQGAN, from its own file or from inside that of a larger model.

    Args:
        path: the file.
        image_size: side of the pictures in pixels; it does not follow from the tensors. All published ones have 256.
        trust_pickle: also read a file that holds more than tensors and plain values.
        grid_side: image ids on each side of a picture, if a transformer determines it; 0 for `image_size` / factor.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = read_file(path, trust_pickle)
    tensors = find_tensors(content, str(path), ("state_dict", "weights"))
    weights = select_network(tensors, "encoder.conv_in.weight")
    if any(name.startswith("decoder.idwt.") for name in weights.tensors):
        raise UserError(
            f"expected a VQGAN that decodes to pixels, got {path}, ruDALL-E's VQGAN that decodes to wavelets (dwt); "
            f"give the other one, vqgan.gumbelf8-sber.model.ckpt"
        )
    config = config_from_tensors(weights, image_size)
    if grid_side:
        config = dataclasses.replace(config, image_size=grid_side * config.factor)
    return build_image_tokenizer(weights, config, foreign_name)


def config_from_tensors(
    weights: Weights,
    image_size: int,
    stage_prefix: str = "encoder.down",
    block_name: str = "block",
    middle_attention_name: str = "encoder.mid.attn_1",
) -> ImageTokenizerConfig:
    """The config of a VQGAN, from the shapes of its tensors.

    Args:
        weights: the tensors.
        image_size: side of the pictures in pixels.
        stage_prefix: what precedes the number of a stage of the encoder in tensor names.
        block_name: what the residual blocks of a stage are called.
        middle_attention_name: what the attention between the two middle blocks is called.

    Raises:
        UserError: a tensor that determines the config is missing.
    """
    quantizer = "nearest"
    codebook = "quantize.embedding.weight"
    if "quantize.proj.weight" in weights.tensors:
        quantizer = "logits"
        codebook = "quantize.embed.weight"
    elif codebook not in weights.tensors:
        raise UserError(
            f"expected {codebook} or quantize.proj.weight, got neither in {weights.source}; an autoencoder without a "
            f"codebook has no image ids: give a VQGAN"
        )
    n_stages = max(1, weights.count_indices(rf"{re.escape(stage_prefix)}\.(\d+)\."))
    stages = [f"{stage_prefix}.{stage}" for stage in range(n_stages)]
    attention = [stage for stage, name in enumerate(stages) if f"{name}.attn.0.q.weight" in weights.tensors]
    blocks = weights.count_indices(rf"{re.escape(stages[0])}\.{block_name}\.(\d+)\.")
    return ImageTokenizerConfig(
        network="taming",
        quantizer=quantizer,
        image_size=image_size,
        factor=2 ** (n_stages - 1),
        channels=tuple(weights.size(f"{name}.{block_name}.0.conv2.weight", 0) for name in stages),
        encoder_blocks=blocks,
        decoder_blocks=blocks + 1,
        codebook_size=weights.size(codebook, 0),
        embed_dim=weights.size("quant_conv.weight", 0),
        imported=ImportedNetworkConfig(
            stem=weights.size("encoder.conv_in.weight", 0),
            z_channels=weights.size("encoder.conv_out.weight", 0),
            attention=tuple(attention),
            middle_attention=f"{middle_attention_name}.q.weight" in weights.tensors,
        ),
    )


def foreign_name(name: str) -> str:
    """Map the name of a tensor in this package to taming-transformers'."""
    for pattern, replacement in FOREIGN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
