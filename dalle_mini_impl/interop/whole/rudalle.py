"""ruDALL-E's transformer (ai-forever/ru-dalle 1.1.3: Malevich, Emojich, Surrealist, Kandinsky), versions v2 and v3.

A `pytorch_model.bin` is a dictionary of tensors. Version v2 opens the stream with BOS, and its attention masks count
image ids from the position that predicts the first one. Version v3 has no BOS, its masks count from the first image id,
and the square of its last block ends at the edges of the picture instead of continuing at the opposite one. The tensors
have the same names and shapes; the mask of the last block, which is in the file, distinguishes the versions.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.check_tensors import check_tensors, weight_and_bias
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedTransformer, ProjectInfo
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.util.errors import UserError

BOS_ID = 2
MASK_KERNEL = 11
"""Side of the square that the last block attends to."""
HEADS_OF_WIDTH = {768: 12, 2048: 16, 3840: 60}
"""Attention heads of the project's models, by their width."""
MASKS_OF_BLOCKS = ("row", "column", "row", "row")
"""Attention masks of the blocks, repeated; if the last block's turn is `row`, it has the square mask instead."""
MASK_TENSORS = {"row_mask": "row", "col_mask": "column", "conv_mask": ""}
"""Mask tensors in a file, with or without the prefix `transformer.`; what the last one holds depends on the version."""
VERSION_OF_LAST_MASK = {"conv_torus": 2, "conv_square": 3}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
"""Layers of a block: this package's name -> ruDALL-E's."""
SANDWICH_NORM_NAMES = {
    "attention_post": "before_first_addition_layernorm",
    "mlp_post": "before_second_addition_layernorm",
}
"""The same for the two norms that only blocks with sandwich norms have."""
PROJECT = ProjectInfo(
    # Guidance is off because the models were not trained without captions.
    sampling=SamplingConfig(top_k=2048, top_p=0.995, guidance=1),
    about=AboutConfig(languages=("ru",)),
    card="""# ruDALL-E

Draws 256×256 pictures for Russian captions. Imported from ruDALL-E (github.com/ai-forever/ru-dalle), by Sber AI and
SberDevices: a Gumbel VQGAN and a transformer.

## Licence

The project and its repository are under Apache-2.0. No separate licence of the weights was found; check the page that
you downloaded them from.
""",
)


def load(path: str | Path, n_head: int | None = None, trust_pickle: bool = False) -> ImportedTransformer:
    """Import the transformer.

    Args:
        path: its file.
        n_head: attention heads, which do not follow from the tensors; None for those of the project's models of the
            same width.
        trust_pickle: also read a file that holds more than tensors and plain values.

    Raises:
        UserError: the file cannot be read or holds something else, or the number of heads is unknown or does not fit.
    """
    tensors = find_tensors(read_file(path, trust_pickle), str(path), ("state_dict",))
    return convert(select_network(tensors, "text_pos_embeddings.weight"), n_head)


def convert(content: Weights, n_head: int | None = None) -> ImportedTransformer:
    """Import the transformer from its tensors and masks; for arguments and errors see `load`."""
    weights, masks = _split_off_masks(content)
    width = weights.size("text_pos_embeddings.weight", 1)
    side = weights.size("image_row_embeddings.weight", 0)
    text_length = weights.size("text_pos_embeddings.weight", 0) - 1
    last_mask = _last_mask(masks, text_length, side, weights.source)
    stream = StreamConfig(
        text_length=text_length,
        text_vocab=weights.size("text_embeddings.weight", 0) - text_length,
        grid=(side, side),
        image_vocab=weights.size("image_embeddings.weight", 0),
        bos_id=BOS_ID if VERSION_OF_LAST_MASK[last_mask] == 2 else -1,
        pad_id=0,
    )
    n_head = n_head or HEADS_OF_WIDTH.get(width, 0)
    if not n_head or width % n_head:
        raise UserError(
            f"expected a number of heads that divides the width {width} of {weights.source}, got "
            f"{n_head or 'no known one'}; give --heads"
        )
    n_layer = max(1, weights.count_indices(r"transformer\.layers\.(\d+)\."))
    config = TransformerConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=width,
        position="learned",
        attention_masks=MASKS_OF_BLOCKS,
        last_attention_mask=last_mask if MASKS_OF_BLOCKS[(n_layer - 1) % len(MASKS_OF_BLOCKS)] == "row" else "",
        mask_kernel=MASK_KERNEL,
        mask_origin="target" if stream.bos_id >= 0 else "input",
        last_norms=2,
        block=BlockConfig(
            norm="layer",
            mlp="gelu-tanh",
            bias=True,
            qk_norm=False,
            sandwich=any(SANDWICH_NORM_NAMES["attention_post"] in name for name in weights.tensors),
        ),
    )
    check_tensors(weights, expected_shapes(config, stream))
    return ImportedTransformer(config, stream, _convert_tensors(weights.tensors, config, stream))


def expected_shapes(config: TransformerConfig, stream: StreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a file except the masks."""
    C = config.n_embd
    text_ids = stream.text_vocab + stream.text_length
    shapes: dict[str, tuple[int, ...]] = {
        "text_embeddings.weight": (text_ids, C),
        "image_embeddings.weight": (stream.image_vocab, C),
        "text_pos_embeddings.weight": (stream.text_length + 1, C),
        "image_row_embeddings.weight": (stream.grid[0], C),
        "image_col_embeddings.weight": (stream.grid[1], C),
        **weight_and_bias("transformer.final_layernorm", C),
        **weight_and_bias("to_logits.0", C),
        **weight_and_bias("to_logits.1", text_ids + stream.image_vocab, C),
    }
    for block in (f"transformer.layers.{layer}" for layer in range(config.n_layer)):
        shapes |= weight_and_bias(f"{block}.input_layernorm", C)
        shapes |= weight_and_bias(f"{block}.attention.query_key_value", 3 * C, C)
        shapes |= weight_and_bias(f"{block}.attention.dense", C, C)
        shapes |= weight_and_bias(f"{block}.post_attention_layernorm", C)
        shapes |= weight_and_bias(f"{block}.mlp.dense_h_to_4h", 4 * C, C)
        shapes |= weight_and_bias(f"{block}.mlp.dense_4h_to_h", C, 4 * C)
        if config.block.sandwich:
            for norm in SANDWICH_NORM_NAMES.values():
                shapes |= weight_and_bias(f"{block}.{norm}", C)
    return shapes


def _convert_tensors(
    foreign: Mapping[str, Tensor], config: TransformerConfig, stream: StreamConfig
) -> dict[str, Tensor]:
    """ruDALL-E's tensors -> this package's; a model without BOS does not use the last text position."""
    prefix_length = stream.text_length + (stream.bos_id >= 0)
    text_positions = foreign["text_pos_embeddings.weight"][:prefix_length]
    tensors = {
        "embed.weight": torch.cat([foreign["text_embeddings.weight"], foreign["image_embeddings.weight"]]),
        "positions.0.weight": torch.cat([text_positions, foreign["image_row_embeddings.weight"]]),
        "positions.1.weight": torch.cat([torch.zeros_like(text_positions), foreign["image_col_embeddings.weight"]]),
    }
    block_names = BLOCK_NAMES | (SANDWICH_NORM_NAMES if config.block.sandwich else {})
    for kind in ("weight", "bias"):
        tensors[f"norm.0.{kind}"] = foreign[f"transformer.final_layernorm.{kind}"]
        tensors[f"norm.1.{kind}"] = foreign[f"to_logits.0.{kind}"]
        tensors[f"head.{kind}"] = foreign[f"to_logits.1.{kind}"]
        for layer in range(config.n_layer):
            tensors |= {
                f"blocks.{layer}.{name}.{kind}": foreign[f"transformer.layers.{layer}.{foreign_name}.{kind}"]
                for name, foreign_name in block_names.items()
            }
    return tensors


def _split_off_masks(weights: Weights) -> tuple[Weights, dict[str, Tensor]]:
    """The tensors without the masks, and the masks as booleans under the names of `MASK_TENSORS`."""
    short_names = {name: name.removeprefix("transformer.") for name in weights.tensors}
    masks = {short: weights.tensors[name] > 0 for name, short in short_names.items() if short in MASK_TENSORS}
    tensors = {name: value for name, value in weights.tensors.items() if short_names[name] not in MASK_TENSORS}
    return Weights(weights.source, tensors, weights.ignored), masks


def _last_mask(masks: Mapping[str, Tensor], text_length: int, side: int, source: str) -> str:
    """Which mask the last block has; checks that all masks of the file are known ones."""
    last_mask = "conv_torus"  # older files of v2 contain no masks
    for name, mask in masks.items():
        candidates = (MASK_TENSORS[name],) if MASK_TENSORS[name] else tuple(VERSION_OF_LAST_MASK)
        equal = [
            kind for kind in candidates if torch.equal(mask, mask_matrix(kind, text_length, (side, side), MASK_KERNEL))
        ]
        if not equal:
            raise UserError(
                f"expected the attention masks of ruDALL-E's v2 or v3, got another {name} in {source}; "
                f"such a model cannot be imported: give one of those versions"
            )
        if name == "conv_mask":
            last_mask = equal[0]
    return last_mask
