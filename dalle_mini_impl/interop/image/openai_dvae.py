"""OpenAI's dVAE of DALL-E 1 (package dall-e 0.1): `encoder.pkl` and `decoder.pkl`.

Each is a pickled module, or its state dict. Tensors are called `blocks.….w` and `blocks.….b` in both files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.interop.image.build import build_image_tokenizer
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedImageTokenizer
from dalle_mini_impl.util.errors import UserError

NETWORK_OF_KERNEL = {7: "encoder", 1: "decoder"}
"""The kernel of the first convolution distinguishes the two files, whose tensors have the same names."""


def load(paths: Sequence[str | Path], image_size: int = 256, trust_pickle: bool = False) -> ImportedImageTokenizer:
    """Import the dVAE.

    Args:
        paths: encoder and decoder, in any order.
        image_size: side of the pictures in pixels; it does not follow from the tensors. OpenAI trained with 256.
        trust_pickle: also read files that hold more than tensors and plain values, as OpenAI's do.

    Raises:
        UserError: a file cannot be read or holds something else.
    """
    networks: dict[str, Weights] = {}
    for path in paths:
        tensors = find_tensors(read_file(path, trust_pickle), str(path), ("state_dict",))
        weights = select_network(tensors, "blocks.input.w")
        kernel = weights.size("blocks.input.w", -1)
        networks[NETWORK_OF_KERNEL.get(kernel, f"a network with a first kernel of {kernel}")] = weights
    if len(paths) != 2 or networks.keys() != set(NETWORK_OF_KERNEL.values()):
        raise UserError(
            f"expected two files, an encoder and a decoder, got {' and '.join(networks)} in "
            f"{', '.join(map(str, paths))}; give both"
        )
    combined = Weights(
        source=" and ".join(weights.source for weights in networks.values()),
        tensors={
            f"{network}.{name}": value
            for network, weights in networks.items()
            for name, value in weights.tensors.items()
        },
        ignored=sum(weights.ignored for weights in networks.values()),
    )
    return build_image_tokenizer(combined, config_from_tensors(combined, image_size), foreign_name)


def config_from_tensors(weights: Weights, image_size: int) -> ImageTokenizerConfig:
    """The config of a dVAE, from the shapes of its tensors.

    Args:
        weights: tensors of both networks, with names that begin with `encoder.` and `decoder.`.
        image_size: side of the pictures in pixels.

    Raises:
        UserError: a tensor that determines the config is missing.
    """
    n_groups = max(1, weights.count_indices(r"encoder\.blocks\.group_(\d+)\."))
    widths = [
        weights.size(f"encoder.blocks.group_{group}.block_1.res_path.conv_4.w", 0) for group in range(1, n_groups + 1)
    ]
    return ImageTokenizerConfig(
        network="openai-dvae",
        quantizer="logits",
        likelihood="laplace",
        image_size=image_size,
        factor=2 ** (n_groups - 1),
        channels=tuple(widths),
        encoder_blocks=weights.count_indices(r"encoder\.blocks\.group_1\.block_(\d+)\."),
        decoder_blocks=weights.count_indices(r"decoder\.blocks\.group_1\.block_(\d+)\."),
        codebook_size=weights.size("encoder.blocks.output.conv.w", 0),
        embed_dim=weights.size("decoder.blocks.input.w", 0),
    )


def foreign_name(name: str) -> str:
    """Map the name of a tensor in this package to OpenAI's, after `encoder.` or `decoder.`."""
    name = re.sub(r"\.weight$", ".w", re.sub(r"\.bias$", ".b", name))
    name = re.sub(
        r"\.groups\.(\d+)\.(\d+)", lambda match: f".group_{int(match[1]) + 1}.block_{int(match[2]) + 1}", name
    )
    name = re.sub(r"\.conv\.(\d+)", lambda match: f".res_path.conv_{int(match[1]) + 1}", name)
    name = re.sub(r"\.output\b", ".output.conv", name)
    name = name.replace("quantizer.proj", "encoder.output.conv").replace("quantizer.embed", "decoder.input")
    return re.sub(r"^(encoder|decoder)", r"\1.blocks", name)
