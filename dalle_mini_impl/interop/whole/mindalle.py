"""minDALL-E's transformer: a GPT over 64 text ids and 16×16 image ids, with tables and heads of their own for each."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import read_yaml
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import ImportedTransformer, Origin, affine, check
from dalle_mini_impl.util.errors import UserError

CONFIG, STAGE1, STAGE2 = "config.yaml", "stage1_last.ckpt", "stage2_last.ckpt"
TEXT_TOKENIZER = "tokenizer/bpe-16k-vocab.json"
"""Files of the published folder: settings, VQGAN, transformer; of the tokenizer the merges are beside it."""

HEADS = 24
"""What the project takes where `config.yaml` does not say."""
OFF = -10_000.0
"""Score of an id that cannot come."""
BLOCK = {
    "attention_norm": "ln1",
    "attention.out": "attn.proj",
    "mlp_norm": "ln2",
    "mlp.up": "mlp.0",
    "mlp.down": "mlp.2",
}
"""Our names in a block -> theirs, where one is one."""
QKV = ("query", "key", "value")
ORIGIN = Origin(
    sampling=SamplingConfig(top_k=256, guidance=1),
    about=AboutConfig(
        licence="CC-BY-NC-SA-4.0",
        languages=("en",),
        data=("14 million pictures of Conceptual Captions, CC3M and CC12M",),
    ),
    card="""# minDALL-E

Draws 256×256 pictures for English captions. Imported from Kakao Brain's minDALL-E (github.com/kakaobrain/minDALL-E):
a VQGAN and a transformer of 1.3 billion parameters, trained by its authors on 14 million captioned pictures of
Conceptual Captions (CC3M and CC12M).

## Licence

The transformer's weights are under CC-BY-NC-SA-4.0: no commercial use, and what is made from them is shared alike. The
VQGAN continues the ImageNet one of taming-transformers (MIT).
""",
)
"""Guidance is left to those who want it: the models have not learned what no caption means."""


def heads(folder: Path) -> int:
    """Attention heads, which only `config.yaml` tells.

    Raises:
        UserError: it cannot be read, or asks for what is not known here.
    """
    path = folder / CONFIG
    try:
        values: Any = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} is missing or damaged ({' '.join(str(error).split())}); "
            f"name the folder that minDALL-E's archive unpacks to"
        ) from error
    for key in ("stage2", "hparams"):
        values = values.get(key) if isinstance(values, Mapping) else None
    settings = values if isinstance(values, Mapping) else {}
    if settings.get("gelu_use_approx", False):
        raise UserError(f"{path} says gelu_use_approx; only models with the exact GELU, as published, can be imported")
    number = settings.get("n_heads", HEADS)
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{path}: n_heads is {number!r}, expected 1 or more")
    return number


def load(path: str | Path, n_head: int, pad_id: int, trust_pickle: bool = False) -> ImportedTransformer:
    """Import the transformer.

    Its one [PAD] takes the place of every text position's padding here.

    Args:
        path: its file.
        n_head: attention heads; see `heads`.
        pad_id: the text id of [PAD].
        trust_pickle: also read a file that holds more than tensors.

    Raises:
        UserError: the file cannot be read or holds something else, or a number does not fit it.
    """
    content = state_dict(read(path, trust_pickle), str(path), ("state_dict",))
    return from_weights(under_prefix(content, "tok_emb_txt.weight"), n_head, pad_id)


def from_weights(weights: Weights, n_head: int, pad_id: int) -> ImportedTransformer:
    """As `load`, of what is in the file."""
    text_vocab, width = weights.size("tok_emb_txt.weight", 0), weights.size("tok_emb_txt.weight", 1)
    stream = StreamConfig(
        text_length=weights.size("pos_emb_txt.weight", 0),
        text_vocab=text_vocab,
        grid=_grid(weights),
        image_vocab=weights.size("tok_emb_img.weight", 0),
        bos_id=-1,
        pad_id=pad_id,
    )
    config = TransformerConfig(
        n_layer=max(1, weights.count(r"blocks\.(\d+)\.")),
        n_head=n_head,
        n_embd=width,
        position="absolute",
        block=BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False),
    )
    check(weights, layout(config, stream))
    if width % n_head:
        raise UserError(
            f"{weights.source} is {width} wide, which {n_head} heads cannot share; give the config.yaml it came with"
        )
    if not 0 <= pad_id < text_vocab:
        raise UserError(
            f"the text tokenizer's padding is id {pad_id}, but {weights.source} has ids 0 … "
            f"{text_vocab - 1}; use the tokenizer it came with"
        )
    return ImportedTransformer(config, stream, convert(weights.tensors, config, stream, pad_id))


def layout(config: TransformerConfig, stream: StreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a file."""
    C = config.n_embd
    shapes = {
        "tok_emb_img.weight": (stream.image_vocab, C), "tok_emb_txt.weight": (stream.text_vocab, C),
        "pos_emb_img.weight": (math.prod(stream.grid), C), "pos_emb_txt.weight": (stream.text_length, C),
        "head_img.weight": (stream.image_vocab, C), "head_txt.weight": (stream.text_vocab, C), **affine("ln_f", C),
    }  # fmt: skip
    for name in (f"blocks.{layer}" for layer in range(config.n_layer)):
        shapes |= affine(f"{name}.ln1", C) | affine(f"{name}.ln2", C) | affine(f"{name}.attn.proj", C, C)
        shapes |= affine(f"{name}.mlp.0", 4 * C, C) | affine(f"{name}.mlp.2", C, 4 * C)
        for part in QKV:
            shapes |= affine(f"{name}.attn.{part}", C, C)
    return shapes


def convert(
    theirs: Mapping[str, Tensor], config: TransformerConfig, stream: StreamConfig, pad_id: int
) -> dict[str, Tensor]:
    """Their tensors -> ours.

    [PAD] itself can no longer come, so that among the text ids and the padding of one position its probability is the
    one it had.
    """

    def joined(name: str) -> Tensor:
        text, image = theirs[f"{name}_txt.weight"], theirs[f"{name}_img.weight"]
        return torch.cat([text, text[pad_id].expand(stream.text_length, -1), image])

    ours = {"embed.weight": joined("tok_emb"), "head.weight": joined("head")}
    ours["head.bias"] = ours["head.weight"].new_zeros(len(ours["head.weight"]))
    ours["head.bias"][pad_id] = OFF
    ours["positions.0.weight"] = torch.cat([theirs["pos_emb_txt.weight"], theirs["pos_emb_img.weight"]])
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = theirs[f"ln_f.{kind}"]
        for name in (f"blocks.{layer}" for layer in range(config.n_layer)):
            ours |= {f"{name}.{mine}.{kind}": theirs[f"{name}.{other}.{kind}"] for mine, other in BLOCK.items()}
            ours[f"{name}.attention.qkv.{kind}"] = torch.cat([theirs[f"{name}.attn.{part}.{kind}"] for part in QKV])
    return ours


def _grid(weights: Weights) -> tuple[int, int]:
    count = weights.size("pos_emb_img.weight", 0)
    if (side := math.isqrt(count)) ** 2 != count:
        raise UserError(f"{weights.source} is for {count} image ids; expected a square")
    return side, side
