"""LlamaGen's image tokenizers (`vq_ds8_c2i.pt`, `vq_ds16_c2i.pt`, `vq_ds16_t2i.pt`): VQGANs with other tensor names.

A published file holds the tensors under `model`, a training checkpoint the averaged ones under `ema` as well. Vectors
are normalised before they are compared, so the nearest is the one at the smallest angle.
"""

import dataclasses
import functools
import re
from pathlib import Path

from dalle_mini_impl.interop.image.build import build_image_tokenizer
from dalle_mini_impl.interop.image.taming_vqgan import config_from_tensors
from dalle_mini_impl.interop.read_weights import find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedImageTokenizer


def load(
    path: str | Path, image_size: int = 256, codebook_norm: bool = True, trust_pickle: bool = False
) -> ImportedImageTokenizer:
    """Import an image tokenizer of LlamaGen; from a training checkpoint, the averaged weights if it has them.

    Args:
        path: the file.
        image_size: side of the pictures in pixels; it does not follow from the tensors.
        codebook_norm: whether vectors are compared by angle, as in all published tokenizers; it does not follow from
            the tensors.
        trust_pickle: also read a file that holds more than tensors and plain values.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = read_file(path, trust_pickle)
    tensors = find_tensors(content, str(path), ("ema", "model", "state_dict"))
    weights = select_network(tensors, "encoder.conv_in.weight")
    config = config_from_tensors(weights, image_size, "encoder.conv_blocks", "res", "encoder.mid.1")
    if codebook_norm:
        config = dataclasses.replace(config, quantizer="cosine")
    return build_image_tokenizer(weights, config, functools.partial(foreign_name, n_stages=len(config.channels)))


def foreign_name(name: str, n_stages: int) -> str:
    """Map the name of a tensor in this package to LlamaGen's, which numbers the decoder's stages from the coarsest."""
    name = re.sub(r"^encoder\.(?=quant_conv)|^decoder\.(?=post_quant_conv)", "", name)
    name = re.sub(r"^quantizer", "quantize", name)
    name = re.sub(r"^encoder\.stages\.(\d+)\.resample", r"encoder.conv_blocks.\1.downsample", name)
    name = re.sub(r"^encoder\.stages", "encoder.conv_blocks", name)
    name = re.sub(r"^decoder\.stages\.(\d+)", lambda match: f"decoder.conv_blocks.{n_stages - 1 - int(match[1])}", name)
    return name.replace(".resample.", ".upsample.").replace(".block.", ".res.")
