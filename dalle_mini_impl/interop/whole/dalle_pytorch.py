"""A whole DALLE of DALLE-pytorch, from `dalle.pt`: transformer and the image tokenizer within."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, ImageTokenizerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.image import dalle_pytorch, openai_dvae, taming
from dalle_mini_impl.interop.read_weights import Weights, read, state_dict, under_prefix
from dalle_mini_impl.interop.result import Imported, ImportedTransformer, Origin, check, fill
from dalle_mini_impl.interop.whole.dalle_pytorch_layout import Layout, layout_of
from dalle_mini_impl.model.attention import rotary_from_angles
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.util.errors import UserError

ATTENTION = ("full", "axial_row", "axial_col", "conv_like")
KERNEL = 5
"""Side of the square of `conv_like`, which the package fixes."""
ORIGIN = Origin(
    sampling=SamplingConfig(guidance=1),
    about=AboutConfig(),
    card="""# A DALLE of DALLE-pytorch

Image tokenizer and transformer were imported from a dalle.pt of DALLE-pytorch (github.com/lucidrains/DALLE-pytorch),
which says nothing of the pictures and captions that they were trained on, nor of a licence. An image tokenizer that
is OpenAI's or taming-transformers' has a licence of its own.
""",
)
"""Guidance is left to those who want it: the package's own training never leaves captions out."""
CONSOLIDATE = (
    "run the zero_to_fp32.py in the folder to make one file of its weights, and then give the folder's "
    "auxiliary.pt and that file as --weights"
)


def load(
    path: str | Path,
    weights: str | Path | None = None,
    mean: dalle_pytorch.Colour | None = None,
    std: dalle_pytorch.Colour | None = None,
    trust_pickle: bool = False,
) -> tuple[Imported, ImportedTransformer]:
    """Import a DALLE.

    Args:
        path: `dalle.pt`.
        weights: another file with its weights, where DeepSpeed kept them apart.
        mean: of a DiscreteVAE, as `dalle_pytorch.load` has it; None takes what the file says, or 0.5.
        std: its other half.
        trust_pickle: also read a file that holds more than tensors.

    Raises:
        UserError: a file cannot be read or holds something else, or the model has what ours cannot do.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, as DeepSpeed writes it; {CONSOLIDATE}")
    content = read(path, trust_pickle)
    if not isinstance(content, Mapping) or not isinstance(content.get("hparams"), Mapping):
        raise UserError(
            f"{path} has no hparams, which tell the shape of the model; give the dalle.pt that DALLE-pytorch saved"
        )
    if weights is not None:
        tensors = state_dict(read(weights, trust_pickle), str(weights), ("weights", "module", "state_dict"))
    elif isinstance(content.get("weights"), str):
        raise UserError(f"{path} has no weights: DeepSpeed kept them apart; {CONSOLIDATE}")
    else:
        tensors = state_dict(content, str(path), ("weights",))
    settings = content.get("vae_params") or {}
    normalization = dalle_pytorch.normalization(settings, mean, std)
    return convert(content["hparams"], tensors, normalization)


def convert(
    hparams: Mapping[str, Any], weights: Weights, normalization: tuple[dalle_pytorch.Colour, dalle_pytorch.Colour]
) -> tuple[Imported, ImportedTransformer]:
    """Import a DALLE that was read.

    Args:
        hparams: what the package was given to make it.
        weights: all its tensors.
        normalization: mean and std of a DiscreteVAE.

    Raises:
        UserError: as `load`.
    """
    whole = under_prefix(weights, "to_logits.1.weight")
    inner = {name.removeprefix("vae."): value for name, value in whole.tensors.items() if name.startswith("vae.")}
    tensors = {
        name: value for name, value in whole.tensors.items() if not name.startswith("vae.") and name != "logits_mask"
    }
    outer = Weights(whole.source, tensors)
    vae, image, foreign_name = _image_tokenizer(Weights(whole.source, inner), normalization)
    layout = layout_of(hparams, outer, image.codebook_size)
    check(outer, layout.shapes())
    stream = StreamConfig(
        text_length=layout.text_length,
        text_vocab=layout.text_vocab,
        grid=(layout.side, layout.side),
        image_vocab=image.codebook_size,
        bos_id=0,
        pad_id=0,
    )
    config = _transformer_config(hparams, layout, whole.source)
    with torch.device("meta"):
        build_transformer(config, stream)  # refuses numbers that do not fit
    image = dataclasses.replace(image, image_size=layout.side * image.factor)
    return fill(vae, image, foreign_name), ImportedTransformer(config, stream, _tensors(outer.tensors, layout))


def _image_tokenizer(
    weights: Weights, normalization: tuple[dalle_pytorch.Colour, dalle_pytorch.Colour]
) -> tuple[Weights, ImageTokenizerConfig, Callable[[str], str]]:
    """Tensors, shape (but for the size of pictures) and names of what is under `vae.`."""
    if "codebook.weight" in weights.tensors:
        config = dalle_pytorch.config_of(weights, 0, *normalization)
        return weights, config, dalle_pytorch.foreign_names(config)
    if "model.encoder.conv_in.weight" in weights.tensors:
        weights = under_prefix(weights, "encoder.conv_in.weight")
        return weights, taming.config_of(weights, 0), taming.foreign_name
    if "enc.blocks.input.w" in weights.tensors:
        roles = {"enc": "encoder", "dec": "decoder"}
        tensors = {roles.get(name[:3], name[:3]) + name[3:]: value for name, value in weights.tensors.items()}
        weights = Weights(weights.source, tensors)
        return weights, openai_dvae.config_of(weights, 0), openai_dvae.foreign_name
    raise UserError(
        f"{weights.source} has no image tokenizer: expected one of DiscreteVAE, VQGanVAE and "
        f"OpenAIDiscreteVAE among its tensors, with names that begin with vae."
    )


def _transformer_config(hparams: Mapping[str, Any], layout: Layout, source: str) -> TransformerConfig:
    kinds = hparams.get("attn_types") or ("full",)
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if unknown := [kind for kind in kinds if kind not in ATTENTION]:
        raise UserError(
            f"{source} has attn_types {unknown[0]!r}; only {', '.join(ATTENTION)} can be imported "
            f"(sparse chose blocks at random, which no file tells, and runs in no current version)"
        )
    block = BlockConfig(
        norm="layer",
        mlp="geglu",
        bias=True,
        qk_norm=False,
        rotate_values=layout.rotary,
        sandwich=layout.sandwich,
        token_shift=layout.shift,
        reversible=layout.reversible,
    )
    return TransformerConfig(
        n_layer=layout.n_layer,
        n_head=layout.n_head,
        n_embd=layout.n_embd,
        head_dim=layout.head_dim,
        position="table" if layout.rotary else "learned",
        attention_masks=kinds,
        mask_kernel=KERNEL,
        block=block,
        divide_by_max=bool(hparams.get("stable")),
    )


def pair_order(head_dim: int) -> Tensor:
    """Theirs turn neighbouring channels of a head with each other, ours those half a head apart: first the even ones
    of theirs, then the odd ones.
    """
    return torch.arange(head_dim).view(-1, 2).T.flatten()


def _tensors(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors: their own where they are used as they are, else made anew one by one, so nothing is there twice."""
    head, C = theirs["to_logits.1.weight"], layout.n_embd
    ours = {f"norm.{name}": theirs[f"to_logits.0.{name}"] for name in ("weight", "bias")}
    ours |= {"head.weight": head, "head.bias": theirs["to_logits.1.bias"]}
    embed = [theirs["text_emb.weight"], theirs["image_emb.weight"]] if not layout.tied else [head]
    ours["embed.weight"] = torch.cat(embed)
    if layout.rotary:
        angles = theirs["transformer.pos_emb"][0, :, ::2].float()
        ours["table"] = rotary_from_angles(F.pad(angles, (0, layout.head_dim // 2 - layout.turned)))
    else:
        text = theirs["text_pos_emb.weight"]
        rows, columns = (theirs[f"{layout.axial}{axis}"].view(-1, C) for axis in (0, 1))
        ours["positions.0.weight"] = torch.cat([text, rows])
        ours["positions.1.weight"] = torch.cat([torch.zeros_like(text), columns])
    for number in range(layout.n_layer):
        attention, feed = _attention(theirs, layout, number), _feed(theirs, layout, number)
        ours |= {f"blocks.{number}.{name}": value for name, value in {**attention, **feed}.items()}
    return ours


def _attention(theirs: Mapping[str, Tensor], layout: Layout, number: int) -> dict[str, Tensor]:
    half, heads = layout.halves(number)[0], (layout.n_head, layout.head_dim)
    inner = half + layout.nests[0]
    order = pair_order(layout.head_dim) if layout.rotary else torch.arange(layout.head_dim)
    qkv = theirs[f"{inner}to_qkv.weight"].unflatten(0, (3, *heads))[:, :, order].flatten(0, 2)
    out = theirs[f"{inner}to_out.0.weight"].unflatten(1, heads)[:, :, order].flatten(1)
    ours = {"attention.qkv.weight": qkv, "attention.qkv.bias": qkv.new_zeros(len(qkv))}
    last = {"attention.out.weight": out, "attention.out.bias": theirs[f"{inner}to_out.0.bias"]}
    return ours | _around(theirs, half, "attention", last)


def _feed(theirs: Mapping[str, Tensor], layout: Layout, number: int) -> dict[str, Tensor]:
    half = layout.halves(number)[1]
    inner = half + layout.nests[1]
    ours, last = {}, {}
    for name in ("weight", "bias"):
        value, gate = theirs[f"{inner}net.0.{name}"].chunk(2)
        ours[f"mlp.up.{name}"] = torch.cat([gate, value])
        last[f"mlp.down.{name}"] = theirs[f"{inner}net.3.{name}"]
    return ours | _around(theirs, half, "mlp", last)


def _around(theirs: Mapping[str, Tensor], half: str, part: str, last: dict[str, Tensor]) -> dict[str, Tensor]:
    """The norms of half a layer and what it ends with, by which its scale is multiplied.

    What is scaled is kept in float32: scales are as small as 1e-6.
    """
    ours = {f"{part}_norm.{name}": theirs[f"{half}fn.norm.{name}"] for name in ("weight", "bias")}
    if f"{half}fn.norm_out.weight" in theirs:
        ours |= {name: value.clone() for name, value in last.items()}  # layers may share them
        last = {f"{part}_post.{name}": theirs[f"{half}fn.norm_out.{name}"] for name in ("weight", "bias")}
    scale = theirs[f"{half}scale"].flatten().float()
    return ours | {name: value * (scale[:, None] if value.ndim > 1 else scale) for name, value in last.items()}
