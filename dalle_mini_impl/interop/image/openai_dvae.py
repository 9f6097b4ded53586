"""OpenAI's dVAE of DALL-E 1: two files, each a pickled module or its state dict."""

import re
from collections.abc import Sequence
from pathlib import Path

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import Imported, fill
from dalle_mini_impl.util.errors import UserError

ROLES = {7: "encoder", 1: "decoder"}
"""The files are told apart by the kernel of their first convolution."""


def load(paths: Sequence[str | Path], image_size: int = 256, trust_pickle: bool = False) -> Imported:
    """Import the dVAE.

    Args:
        paths: encoder and decoder, in any order.
        image_size: side of the pictures in pixels; the tensors cannot tell it, it was trained with 256.
        trust_pickle: also read files that hold more than tensors, as OpenAI's own do.

    Raises:
        UserError: a file cannot be read or holds something else.
    """
    found: dict[str, Weights] = {}
    for path in paths:
        weights = under_prefix(state_dict(read(path, trust_pickle), str(path), ("state_dict",)), "blocks.input.w")
        role = ROLES.get(weights.size("blocks.input.w", -1), "neither encoder nor decoder")
        found[role] = weights
    if len(paths) != 2 or found.keys() != set(ROLES.values()):
        raise UserError(
            f"{', '.join(map(str, paths))}: found {' and '.join(found)}; give two files, an encoder and a decoder"
        )
    tensors = {f"{role}.{name}": value for role, part in found.items() for name, value in part.tensors.items()}
    source = " and ".join(part.source for part in found.values())
    weights = Weights(source, tensors, sum(part.left_out for part in found.values()))
    return fill(weights, config_of(weights, image_size), foreign_name)


def config_of(weights: Weights, image_size: int) -> ImageTokenizerConfig:
    """The shape of a dVAE, from its tensors.

    Raises:
        UserError: a tensor that tells it is missing.
    """
    groups = range(1, 1 + max(1, weights.count(r"encoder\.blocks\.group_(\d+)\.")))
    widths = [weights.size(f"encoder.blocks.group_{group}.block_1.res_path.conv_4.w", 0) for group in groups]
    return ImageTokenizerConfig(
        network="openai-dvae",
        quantizer="logits",
        likelihood="laplace",
        image_size=image_size,
        factor=2 ** (len(widths) - 1),
        channels=tuple(widths),
        encoder_blocks=weights.count(r"encoder\.blocks\.group_1\.block_(\d+)\."),
        decoder_blocks=weights.count(r"decoder\.blocks\.group_1\.block_(\d+)\."),
        codebook_size=weights.size("encoder.blocks.output.conv.w", 0),
        embed_dim=weights.size("decoder.blocks.input.w", 0),
    )


def foreign_name(name: str) -> str:
    """Our name of a tensor -> OpenAI's, after the part it is in."""
    name = re.sub(r"\.weight$", ".w", re.sub(r"\.bias$", ".b", name))
    name = re.sub(r"\.groups\.(\d+)\.(\d+)", lambda at: f".group_{int(at[1]) + 1}.block_{int(at[2]) + 1}", name)
    name = re.sub(r"\.conv\.(\d+)", lambda at: f".res_path.conv_{int(at[1]) + 1}", name)
    name = re.sub(r"\.output\b", ".output.conv", name)
    name = name.replace("quantizer.proj", "encoder.output.conv").replace("quantizer.embed", "decoder.input")
    return re.sub(r"^(encoder|decoder)", r"\1.blocks", name)
