"""LlamaGen's image tokenizer: a VQGAN under other names, whose vectors are compared by angle."""

import dataclasses
import functools
import re
from pathlib import Path

from dalle_mini_impl.interop.image.taming import config_of
from dalle_mini_impl.interop.read_weights import read, state_dict, under_prefix
from dalle_mini_impl.interop.result import Imported, fill


def load(path: str | Path, image_size: int = 256, codebook_norm: bool = True, trust_pickle: bool = False) -> Imported:
    """Import a tokenizer of LlamaGen; of a training checkpoint the averaged weights, where it has them.

    Args:
        path: the file.
        image_size: side of the pictures in pixels; the tensors cannot tell it.
        codebook_norm: whether vectors are compared by angle, as in all published ones; the tensors cannot tell it.
        trust_pickle: also read a file that holds more than tensors.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = read(path, trust_pickle)
    weights = under_prefix(state_dict(content, str(path), ("ema", "model", "state_dict")), "encoder.conv_in.weight")
    config = config_of(weights, image_size, "encoder.conv_blocks", "res", "encoder.mid.1")
    if codebook_norm:
        config = dataclasses.replace(config, quantizer="cosine")
    return fill(weights, config, functools.partial(foreign_name, stages=len(config.channels)))


def foreign_name(name: str, stages: int) -> str:
    """Our name of a tensor -> LlamaGen's, which numbers the stages of the decoder from the coarsest."""
    name = re.sub(r"^encoder\.(?=quant_conv)|^decoder\.(?=post_quant_conv)", "", name)
    name = re.sub(r"^quantizer", "quantize", name)
    name = re.sub(r"^encoder\.stages\.(\d+)\.resample", r"encoder.conv_blocks.\1.downsample", name)
    name = re.sub(r"^encoder\.stages", "encoder.conv_blocks", name)
    name = re.sub(r"^decoder\.stages\.(\d+)", lambda at: f"decoder.conv_blocks.{stages - 1 - int(at[1])}", name)
    return name.replace(".resample.", ".upsample.").replace(".block.", ".res.")
