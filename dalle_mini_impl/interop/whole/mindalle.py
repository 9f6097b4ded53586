"""minDALL-E's transformer (kakaobrain/minDALL-E, the published 1.3B): a GPT over 64 text ids and 16×16 image ids.

The published archive unpacks to a folder with `config.yaml` (settings), `stage1_last.ckpt` (VQGAN), `stage2_last.ckpt`
(transformer) and `tokenizer/` (vocabulary and merges). The transformer's tensors lie under `state_dict`; text and image
have separate embeddings (`tok_emb_txt`, `tok_emb_img`), positions (`pos_emb_…`) and heads without bias (`head_…`).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import read_yaml_file
from dalle_mini_impl.interop.check_tensors import check_tensors, weight_and_bias
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedTransformer, ProjectInfo
from dalle_mini_impl.util.errors import UserError

CONFIG_FILE = "config.yaml"
VQGAN_FILE = "stage1_last.ckpt"
TRANSFORMER_FILE = "stage2_last.ckpt"
VOCAB_FILE = "tokenizer/bpe-16k-vocab.json"
"""Paths in the published folder; the merges lie beside the vocabulary."""

DEFAULT_HEADS = 24
"""The project's default, where `config.yaml` does not set `n_heads`."""
LOGIT_OF_UNUSED_ID = -10_000.0
"""So low that the id is never sampled and has no effect on the other probabilities; finite in float16."""
BLOCK_NAMES = {
    "attention_norm": "ln1",
    "attention.out": "attn.proj",
    "mlp_norm": "ln2",
    "mlp.up": "mlp.0",
    "mlp.down": "mlp.2",
}
"""Layers of a block: this package's name -> minDALL-E's, for those that have one counterpart."""
QUERY_KEY_VALUE = ("query", "key", "value")
"""minDALL-E's three layers for which this package has one, `attention.qkv`; in the order of its rows."""
PROJECT = ProjectInfo(
    # Guidance is off because the models were not trained without captions.
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

The transformer's weights are under CC-BY-NC-SA-4.0: no commercial use, and adaptations are shared under the same
licence. The VQGAN was trained further from the ImageNet one of taming-transformers (MIT).
""",
)


def read_head_count(folder: Path) -> int:
    """The number of attention heads, which is in `config.yaml` (`stage2: hparams: n_heads`) and not in the tensors.

    Raises:
        UserError: the file cannot be read, or has a setting that cannot be imported.
    """
    path = folder / CONFIG_FILE
    values = read_yaml_file(path, "minDALL-E's settings", "name the folder that minDALL-E's archive unpacks to")
    for key in ("stage2", "hparams"):
        values = values.get(key) if isinstance(values, Mapping) else None
    hparams = values if isinstance(values, Mapping) else {}
    if hparams.get("gelu_use_approx", False):
        raise UserError(
            f"expected the exact GELU, got gelu_use_approx in {path}; such a model cannot be imported: "
            f"give one with the published settings"
        )
    n_head = hparams.get("n_heads", DEFAULT_HEADS)
    if not isinstance(n_head, int) or n_head < 1:
        raise UserError(f"expected n_heads of 1 or more, got {n_head!r} in {path}; download the file again")
    return n_head


def load(path: str | Path, n_head: int, pad_id: int, trust_pickle: bool = False) -> ImportedTransformer:
    """Import the transformer.

    Args:
        path: its file.
        n_head: attention heads; see `read_head_count`.
        pad_id: text id of `[PAD]` in its text tokenizer.
        trust_pickle: also read a file that holds more than tensors and plain values.

    Raises:
        UserError: the file cannot be read or holds something else, or a number does not fit it.
    """
    tensors = find_tensors(read_file(path, trust_pickle), str(path), ("state_dict",))
    return convert(select_network(tensors, "tok_emb_txt.weight"), n_head, pad_id)


def convert(weights: Weights, n_head: int, pad_id: int) -> ImportedTransformer:
    """Import the transformer from its tensors; for arguments and errors see `load`."""
    text_vocab = weights.size("tok_emb_txt.weight", 0)
    width = weights.size("tok_emb_txt.weight", 1)
    stream = StreamConfig(
        text_length=weights.size("pos_emb_txt.weight", 0),
        text_vocab=text_vocab,
        grid=_grid(weights),
        image_vocab=weights.size("tok_emb_img.weight", 0),
        bos_id=-1,
        pad_id=pad_id,
    )
    config = TransformerConfig(
        n_layer=max(1, weights.count_indices(r"blocks\.(\d+)\.")),
        n_head=n_head,
        n_embd=width,
        position="absolute",
        block=BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False),
    )
    check_tensors(weights, expected_shapes(config, stream))
    if width % n_head:
        raise UserError(
            f"expected a number of heads that divides the width {width} of {weights.source}, got {n_head}; "
            f"give the config.yaml that belongs to it"
        )
    if not 0 <= pad_id < text_vocab:
        raise UserError(
            f"expected a text tokenizer whose padding is one of the ids 0 … {text_vocab - 1} of {weights.source}, got "
            f"id {pad_id}; use the tokenizer that belongs to it"
        )
    return ImportedTransformer(config, stream, _convert_tensors(weights.tensors, config, stream))


def expected_shapes(config: TransformerConfig, stream: StreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a file."""
    C = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb_img.weight": (stream.image_vocab, C),
        "tok_emb_txt.weight": (stream.text_vocab, C),
        "pos_emb_img.weight": (math.prod(stream.grid), C),
        "pos_emb_txt.weight": (stream.text_length, C),
        "head_img.weight": (stream.image_vocab, C),
        "head_txt.weight": (stream.text_vocab, C),
        **weight_and_bias("ln_f", C),
    }
    for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
        shapes |= weight_and_bias(f"{block}.ln1", C) | weight_and_bias(f"{block}.ln2", C)
        for layer in QUERY_KEY_VALUE:
            shapes |= weight_and_bias(f"{block}.attn.{layer}", C, C)
        shapes |= weight_and_bias(f"{block}.attn.proj", C, C)
        shapes |= weight_and_bias(f"{block}.mlp.0", 4 * C, C) | weight_and_bias(f"{block}.mlp.2", C, 4 * C)
    return shapes


def _convert_tensors(
    foreign: Mapping[str, Tensor], config: TransformerConfig, stream: StreamConfig
) -> dict[str, Tensor]:
    """minDALL-E's tensors -> this package's.

    minDALL-E pads captions with `[PAD]` at all positions; this package has one padding id per text position. Each of
    them gets the embedding and the row of the head that `[PAD]` has, and the head's bias makes `[PAD]` itself
    impossible. Among the text ids and the padding of one position, all probabilities are therefore minDALL-E's.
    """

    def join_text_and_image(name: str) -> Tensor:
        text = foreign[f"{name}_txt.weight"]
        paddings = text[stream.pad_id].expand(stream.text_length, -1)
        return torch.cat([text, paddings, foreign[f"{name}_img.weight"]])

    tensors = {"embed.weight": join_text_and_image("tok_emb"), "head.weight": join_text_and_image("head")}
    tensors["head.bias"] = tensors["head.weight"].new_zeros(len(tensors["head.weight"]))
    tensors["head.bias"][stream.pad_id] = LOGIT_OF_UNUSED_ID
    tensors["positions.0.weight"] = torch.cat([foreign["pos_emb_txt.weight"], foreign["pos_emb_img.weight"]])
    for kind in ("weight", "bias"):
        tensors[f"norm.{kind}"] = foreign[f"ln_f.{kind}"]
        for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
            tensors |= {
                f"{block}.{name}.{kind}": foreign[f"{block}.{foreign_name}.{kind}"]
                for name, foreign_name in BLOCK_NAMES.items()
            }
            tensors[f"{block}.attention.qkv.{kind}"] = torch.cat(
                [foreign[f"{block}.attn.{layer}.{kind}"] for layer in QUERY_KEY_VALUE]
            )
    return tensors


def _grid(weights: Weights) -> tuple[int, int]:
    count = weights.size("pos_emb_img.weight", 0)
    side = math.isqrt(count)
    if side**2 != count:
        raise UserError(
            f"expected a square number of image positions, got {count} in {weights.source}; download it again"
        )
    return side, side
