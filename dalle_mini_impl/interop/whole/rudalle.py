"""ruDALL-E's transformer (Malevich, Emojich, Surrealist, Kandinsky), of its second and third version.

The second opens the stream with BOS, and its masks count image ids from the place that predicts the first. The third
has no BOS, its masks count from the first image id, and the square of its last block ends at the edges. The tensors
are the same; which one a file holds is told by the mask of its last block.
"""

from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import ImportedTransformer, Origin, affine, check
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.util.errors import UserError

BOS = 2
KERNEL = 11
HEADS = {768: 12, 2048: 16, 3840: 60}
"""Attention heads of the project's models by width."""
SCHEDULE = ("row", "column", "row", "row")
MASKS = {"row_mask": "row", "col_mask": "column", "conv_mask": ""}
"""Names of masks in a file, at its top or in `transformer`, and what they hold; the last depends on the version."""
LAST = {"conv_torus": 2, "conv_square": 3}
"""Masks of the last block, and the version that has them."""
BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
"""Our names in a block -> theirs."""
SANDWICH = {"attention_post": "before_first_addition_layernorm", "mlp_post": "before_second_addition_layernorm"}
ORIGIN = Origin(
    sampling=SamplingConfig(top_k=2048, top_p=0.995, guidance=1),
    about=AboutConfig(languages=("ru",)),
    card="""# ruDALL-E

Draws 256×256 pictures for Russian captions. Imported from ruDALL-E (github.com/ai-forever/ru-dalle), by Sber AI and
SberDevices: a Gumbel VQGAN and a transformer.

## Licence

The project and its repository are under Apache-2.0. No licence was found that is about the weights alone; see where you
downloaded them.
""",
)
"""Guidance is left to those who want it: the models have not learned what no caption means."""


def load(path: str | Path, n_head: int | None = None, trust_pickle: bool = False) -> ImportedTransformer:
    """Import the transformer.

    Args:
        path: its file.
        n_head: attention heads, which the tensors cannot tell; None takes what the project's models of that width have.
        trust_pickle: also read a file that holds more than tensors.

    Raises:
        UserError: the file cannot be read or holds something else, or the number of heads is not known or does not fit.
    """
    content = state_dict(read(path, trust_pickle), str(path), ("state_dict",))
    return from_weights(under_prefix(content, "text_pos_embeddings.weight"), n_head)


def from_weights(content: Weights, n_head: int | None = None) -> ImportedTransformer:
    """As `load`, of what is in the file."""
    weights, masks = _without_masks(content)
    width, side = (
        weights.size(f"{name}.weight", axis) for name, axis in (("text_pos_embeddings", 1), ("image_row_embeddings", 0))
    )
    text_length = weights.size("text_pos_embeddings.weight", 0) - 1
    last = _last_mask(masks, text_length, side, weights.source)
    stream = StreamConfig(
        text_length=text_length,
        text_vocab=weights.size("text_embeddings.weight", 0) - text_length,
        grid=(side, side),
        image_vocab=weights.size("image_embeddings.weight", 0),
        bos_id=BOS if LAST[last] == 2 else -1,
        pad_id=0,
    )
    n_head = n_head or HEADS.get(width, 0)
    if not n_head or width % n_head:
        raise UserError(
            f"{weights.source} is {width} wide, which {n_head or 'an unknown number of'} heads share; "
            f"give --heads, a divisor of it"
        )
    layers = max(1, weights.count(r"transformer\.layers\.(\d+)\."))
    config = TransformerConfig(
        n_layer=layers,
        n_head=n_head,
        n_embd=width,
        position="learned",
        attention_masks=SCHEDULE,
        last_attention_mask=last if SCHEDULE[(layers - 1) % 4] == "row" else "",
        mask_kernel=KERNEL,
        mask_origin="target" if stream.bos_id >= 0 else "input",
        last_norms=2,
        block=BlockConfig(
            norm="layer",
            mlp="gelu-tanh",
            bias=True,
            qk_norm=False,
            sandwich=any(SANDWICH["attention_post"] in name for name in weights.tensors),
        ),
    )
    check(weights, layout(config, stream))
    return ImportedTransformer(config, stream, convert(weights.tensors, config, stream))


def layout(config: TransformerConfig, stream: StreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a file but the masks."""
    C, text = config.n_embd, stream.text_vocab + stream.text_length
    shapes = {
        "text_embeddings.weight": (text, C), "image_embeddings.weight": (stream.image_vocab, C),
        "text_pos_embeddings.weight": (stream.text_length + 1, C),
        "image_row_embeddings.weight": (stream.grid[0], C), "image_col_embeddings.weight": (stream.grid[1], C),
        **affine("transformer.final_layernorm", C),
        **affine("to_logits.0", C), **affine("to_logits.1", text + stream.image_vocab, C),
    }  # fmt: skip
    for name in (f"transformer.layers.{layer}" for layer in range(config.n_layer)):
        shapes |= affine(f"{name}.input_layernorm", C) | affine(f"{name}.post_attention_layernorm", C)
        shapes |= affine(f"{name}.attention.query_key_value", 3 * C, C) | affine(f"{name}.attention.dense", C, C)
        shapes |= affine(f"{name}.mlp.dense_h_to_4h", 4 * C, C) | affine(f"{name}.mlp.dense_4h_to_h", C, 4 * C)
        for norm in SANDWICH.values() if config.block.sandwich else ():
            shapes |= affine(f"{name}.{norm}", C)
    return shapes


def convert(theirs: dict[str, Tensor], config: TransformerConfig, stream: StreamConfig) -> dict[str, Tensor]:
    """Their tensors -> ours. Without BOS the last text position is not used."""
    prefix = stream.text_length + (stream.bos_id >= 0)
    text = theirs["text_pos_embeddings.weight"][:prefix]
    ours = {
        "embed.weight": torch.cat([theirs["text_embeddings.weight"], theirs["image_embeddings.weight"]]),
        "positions.0.weight": torch.cat([text, theirs["image_row_embeddings.weight"]]),
        "positions.1.weight": torch.cat([torch.zeros_like(text), theirs["image_col_embeddings.weight"]]),
    }
    names = BLOCK | (SANDWICH if config.block.sandwich else {})
    for kind in ("weight", "bias"):
        ours[f"norm.0.{kind}"] = theirs[f"transformer.final_layernorm.{kind}"]
        ours[f"norm.1.{kind}"] = theirs[f"to_logits.0.{kind}"]
        ours[f"head.{kind}"] = theirs[f"to_logits.1.{kind}"]
        for layer in range(config.n_layer):
            ours |= {
                f"blocks.{layer}.{mine}.{kind}": theirs[f"transformer.layers.{layer}.{other}.{kind}"]
                for mine, other in names.items()
            }
    return ours


def _without_masks(weights: Weights) -> tuple[Weights, dict[str, Tensor]]:
    names = {name: name.removeprefix("transformer.") for name in weights.tensors}
    masks = {short: weights.tensors[name] > 0 for name, short in names.items() if short in MASKS}
    tensors = {name: value for name, value in weights.tensors.items() if names[name] not in MASKS}
    return Weights(weights.source, tensors, weights.left_out), masks


def _last_mask(masks: dict[str, Tensor], text_length: int, side: int, source: str) -> str:
    """Which mask the last block has; all masks of the file must be known."""
    found = "conv_torus"  # of files without masks
    for name, mask in masks.items():
        kinds = (MASKS[name],) if MASKS[name] else tuple(LAST)
        same = [kind for kind in kinds if torch.equal(mask, mask_matrix(kind, text_length, (side, side), KERNEL))]
        if not same:
            raise UserError(
                f"{source}: {name} is none of the masks of ruDALL-E's second and third version; "
                f"such a model cannot be imported"
            )
        found = same[0] if len(kinds) > 1 else found
    return found
