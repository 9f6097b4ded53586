"""A whole DALLE of DALLE-pytorch, from `dalle.pt`: the transformer, and the image tokenizer inside it.

`dalle.pt` of version 1.6.6 is a dictionary: `hparams` (arguments of the class `DALLE`), `vae_params` (those of a
`DiscreteVAE`, or None), `weights` (all tensors; the image tokenizer's begin with `vae.`), `version`, `vae_class_name`
and the state of training. Earlier files, from 1.0.0, are read too, and computed as the version that wrote them did:

- before 1.5.0 the square of `conv_like` lies around the position; without a `version` the file is older than that;
- before 1.1.2 the rotary table has no row for the last position and one axis more.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.model import BlockConfig, ImageTokenizerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.check_tensors import check_tensors
from dalle_mini_impl.interop.image import dalle_pytorch_vae, openai_dvae, taming_vqgan
from dalle_mini_impl.interop.image.build import build_image_tokenizer
from dalle_mini_impl.interop.image.dalle_pytorch_vae import Colour
from dalle_mini_impl.interop.read_weights import Weights, find_tensors, read_file, select_network
from dalle_mini_impl.interop.result import ImportedImageTokenizer, ImportedTransformer, ProjectInfo
from dalle_mini_impl.interop.whole.dalle_pytorch_layout import TensorLayout, layout_from_file
from dalle_mini_impl.model.attention import rotary_from_angles
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.util.errors import UserError

ATTENTION_TYPES = ("full", "axial_row", "axial_col", "conv_like")
"""Values of `attn_types` that can be imported; this package has attention masks of the same names."""
MASK_KERNEL = 5
"""Side of the square of `conv_like`; DALLE-pytorch has no setting for it."""
ATTENTION_MASKS_BEFORE_1_5 = {"conv_like": "conv_square"}
"""Attention types that meant another mask before version 1.5.0, and that mask."""
PROJECT = ProjectInfo(
    # Guidance is off because DALLE-pytorch's training command never trains without captions.
    sampling=SamplingConfig(guidance=1),
    about=AboutConfig(),
    card="""# A DALLE of DALLE-pytorch

Image tokenizer and transformer were imported from a dalle.pt of DALLE-pytorch (github.com/lucidrains/DALLE-pytorch),
which does not say what pictures and captions they were trained on, nor under which licence they are. An image tokenizer
of OpenAI or taming-transformers has its own licence.
""",
)
DEEPSPEED_REMEDY = (
    "run the zero_to_fp32.py in the folder to make one file of its weights, and then give the folder's "
    "auxiliary.pt and that file as --weights"
)


def load(
    path: str | Path,
    weights: str | Path | None = None,
    mean: Colour | None = None,
    std: Colour | None = None,
    trust_pickle: bool = False,
) -> tuple[ImportedImageTokenizer, ImportedTransformer]:
    """Import a DALLE.

    Args:
        path: `dalle.pt`, or the `auxiliary.pt` of a DeepSpeed checkpoint.
        weights: a separate file with the weights, for a DeepSpeed checkpoint.
        mean: first half of the `normalization` of a DiscreteVAE; None for that in the file, or else 0.5.
        std: second half of it, likewise.
        trust_pickle: also read files that hold more than tensors and plain values.

    Raises:
        UserError: a file cannot be read or holds something else, or the model has an option that this package does not
            have.
    """
    if Path(path).is_dir():
        raise UserError(f"expected a file, got {path}, a folder as DeepSpeed writes it; {DEEPSPEED_REMEDY}")
    content = read_file(path, trust_pickle)
    if not isinstance(content, Mapping) or not isinstance(content.get("hparams"), Mapping):
        raise UserError(
            f"expected hparams, which determine the shape of the model, got none in {path}; "
            f"give the dalle.pt that DALLE-pytorch saved"
        )
    if weights is not None:
        tensors = find_tensors(read_file(weights, trust_pickle), str(weights), ("weights", "module", "state_dict"))
    elif isinstance(content.get("weights"), str):  # a message in their place
        raise UserError(f"expected weights, got none in {path}: DeepSpeed stored them apart; {DEEPSPEED_REMEDY}")
    else:
        tensors = find_tensors(content, str(path), ("weights",))
    normalization = dalle_pytorch_vae.normalization(content.get("vae_params"), mean, std)
    return convert(content["hparams"], tensors, normalization, content.get("version"))


def convert(
    hparams: Mapping[str, Any], weights: Weights, normalization: tuple[Colour, Colour], version: object = None
) -> tuple[ImportedImageTokenizer, ImportedTransformer]:
    """Import a DALLE from its settings and tensors.

    Args:
        hparams: arguments of the class `DALLE`.
        weights: all its tensors.
        normalization: mean and standard deviation of a DiscreteVAE.
        version: of DALLE-pytorch, such as "1.6.6"; None for one before 1.5.0, which did not record it.

    Raises:
        UserError: as for `load`.
    """
    model = select_network(weights, "to_logits.1.weight")
    vae_tensors = {name.removeprefix("vae."): value for name, value in model.tensors.items() if name.startswith("vae.")}
    transformer_tensors = {
        name: value
        for name, value in model.tensors.items()
        if not name.startswith("vae.") and name != "logits_mask"  # a constant that early versions stored
    }
    if "transformer.pos_emb" in transformer_tensors:
        transformer_tensors["transformer.pos_emb"] = _complete_rotary_table(transformer_tensors["transformer.pos_emb"])
    transformer_weights = Weights(model.source, transformer_tensors)
    vae_weights, image_config, foreign_name = _image_tokenizer(Weights(model.source, vae_tensors), normalization)
    layout = layout_from_file(hparams, transformer_weights, image_config.codebook_size)
    check_tensors(transformer_weights, layout.shapes())
    stream = StreamConfig(
        text_length=layout.text_length,
        text_vocab=layout.text_vocab,
        grid=(layout.side, layout.side),
        image_vocab=image_config.codebook_size,
        bos_id=0,
        pad_id=0,
    )
    config = _transformer_config(hparams, layout, version, model.source)
    with torch.device("meta"):
        build_transformer(config, stream)  # refuses sizes that do not fit together
    image_config = dataclasses.replace(image_config, image_size=layout.side * image_config.factor)
    image_tokenizer = build_image_tokenizer(vae_weights, image_config, foreign_name)
    return image_tokenizer, ImportedTransformer(config, stream, _convert_tensors(transformer_tensors, layout))


def _image_tokenizer(
    weights: Weights, normalization: tuple[Colour, Colour]
) -> tuple[Weights, ImageTokenizerConfig, Callable[[str], str]]:
    """Tensors, config (with an image size of 0) and name mapping of the image tokenizer, recognised by its tensors."""
    if "codebook.weight" in weights.tensors:
        config = dalle_pytorch_vae.config_from_tensors(weights, 0, *normalization)
        return weights, config, dalle_pytorch_vae.foreign_names(config)
    if "model.encoder.conv_in.weight" in weights.tensors:
        weights = select_network(weights, "encoder.conv_in.weight")
        return weights, taming_vqgan.config_from_tensors(weights, 0), taming_vqgan.foreign_name
    if "enc.blocks.input.w" in weights.tensors:
        networks = {"enc": "encoder", "dec": "decoder"}
        tensors = {networks.get(name[:3], name[:3]) + name[3:]: value for name, value in weights.tensors.items()}
        weights = Weights(weights.source, tensors)
        return weights, openai_dvae.config_from_tensors(weights, 0), openai_dvae.foreign_name
    raise UserError(
        f"expected the tensors of a DiscreteVAE, VQGanVAE or OpenAIDiscreteVAE, with names that begin with vae., got "
        f"none in {weights.source}; give the dalle.pt that DALLE-pytorch saved"
    )


def _complete_rotary_table(table: Tensor) -> Tensor:
    """The rotary table (1, T, D) of any version; those before 1.1.2 have shape (1, 1, T - 1, D).

    The row that they lack belongs to the last position, which predicts nothing and to which none attends.
    """
    if table.ndim != 4 or table.shape[1] != 1 or not table.shape[2]:
        return table
    return torch.cat([table[0], table[0, :, -1:]], 1)


def _transformer_config(
    hparams: Mapping[str, Any], layout: TensorLayout, version: object, source: str
) -> TransformerConfig:
    attention_types = _attention_types(hparams, source)
    if not _is_from_1_5(version, source):
        attention_types = tuple(ATTENTION_MASKS_BEFORE_1_5.get(kind, kind) for kind in attention_types)
    block = BlockConfig(
        norm="layer",
        mlp="geglu",
        bias=True,
        qk_norm=False,
        rotate_values=layout.rotary,
        sandwich=layout.sandwich,
        token_shift=layout.token_shift,
        reversible=layout.reversible,
    )
    return TransformerConfig(
        n_layer=layout.n_layer,
        n_head=layout.n_head,
        n_embd=layout.n_embd,
        head_dim=layout.head_dim,
        position="table" if layout.rotary else "learned",
        attention_masks=attention_types,
        mask_kernel=MASK_KERNEL,
        block=block,
        divide_by_max=bool(hparams.get("stable")),
    )


def _attention_types(hparams: Mapping[str, Any], source: str) -> tuple[str, ...]:
    attention_types = hparams.get("attn_types") or ("full",)
    if not isinstance(attention_types, (str, list, tuple)):
        raise UserError(
            f"expected attn_types to be a list of names, got {attention_types!r} in {source}; "
            f"give the file that DALLE-pytorch saved"
        )
    attention_types = (attention_types,) if isinstance(attention_types, str) else tuple(attention_types)
    if unknown := [kind for kind in attention_types if kind not in ATTENTION_TYPES]:
        raise UserError(
            f"expected attn_types among {', '.join(ATTENTION_TYPES)}, got {unknown[0]!r} in {source}; such a model "
            f"cannot be imported (sparse attends to random blocks, which are not in the file; neither it nor mlp runs "
            f"in a current version)"
        )
    return attention_types


def _is_from_1_5(version: object, source: str) -> bool:
    """Whether DALLE-pytorch 1.5.0 or a later version wrote the file."""
    if version is None:
        return False
    if not (match := re.match(r"(\d{1,9})\.(\d{1,9})", str(version))):
        raise UserError(
            f"expected a version of DALLE-pytorch such as 1.6.6, got {version!r:.80} in {source}; "
            f"give the file that DALLE-pytorch saved"
        )
    return (int(match[1]), int(match[2])) >= (1, 5)


def rotary_channel_order(head_dim: int) -> Tensor:
    """For each channel of a head in this package, its index in DALLE-pytorch.

    DALLE-pytorch rotates neighbouring channels (0 with 1, 2 with 3), this package channels half a head apart; so its
    even channels come first, then its odd ones.
    """
    return torch.arange(head_dim).view(-1, 2).T.flatten()


def _convert_tensors(foreign: Mapping[str, Tensor], layout: TensorLayout) -> dict[str, Tensor]:
    """DALLE-pytorch's tensors -> this package's; those that need no conversion are not copied."""
    C = layout.n_embd
    head = foreign["to_logits.1.weight"]
    tensors = {
        "norm.weight": foreign["to_logits.0.weight"],
        "norm.bias": foreign["to_logits.0.bias"],
        "head.weight": head,
        "head.bias": foreign["to_logits.1.bias"],
    }
    embeddings = [head] if layout.tied else [foreign["text_emb.weight"], foreign["image_emb.weight"]]
    tensors["embed.weight"] = torch.cat(embeddings)
    if layout.rotary:
        angles = foreign["transformer.pos_emb"][0, :, ::2].float()  # each is there twice, for both channels of a pair
        unrotated_pairs = layout.head_dim // 2 - layout.rotated_pairs
        tensors["table"] = rotary_from_angles(F.pad(angles, (0, unrotated_pairs)))
    else:
        text = foreign["text_pos_emb.weight"]
        rows, columns = (foreign[f"{layout.axial_prefix}{axis}"].view(-1, C) for axis in (0, 1))
        tensors["positions.0.weight"] = torch.cat([text, rows])
        tensors["positions.1.weight"] = torch.cat([torch.zeros_like(text), columns])
    for layer in range(layout.n_layer):
        block = {**_attention_tensors(foreign, layout, layer), **_feed_forward_tensors(foreign, layout, layer)}
        tensors |= {f"blocks.{layer}.{name}": value for name, value in block.items()}
    return tensors


def _attention_tensors(foreign: Mapping[str, Tensor], layout: TensorLayout, layer: int) -> dict[str, Tensor]:
    prefix = layout.sublayer_prefixes(layer)[0]
    inner_prefix = prefix + layout.wrappers[0]
    heads = (layout.n_head, layout.head_dim)
    order = rotary_channel_order(layout.head_dim) if layout.rotary else torch.arange(layout.head_dim)
    qkv = foreign[f"{inner_prefix}to_qkv.weight"].unflatten(0, (3, *heads))[:, :, order].flatten(0, 2)
    out = foreign[f"{inner_prefix}to_out.0.weight"].unflatten(1, heads)[:, :, order].flatten(1)
    tensors = {"attention.qkv.weight": qkv, "attention.qkv.bias": qkv.new_zeros(len(qkv))}
    output_layer = {"attention.out.weight": out, "attention.out.bias": foreign[f"{inner_prefix}to_out.0.bias"]}
    return tensors | _norms_and_scaled_output(foreign, prefix, "attention", output_layer)


def _feed_forward_tensors(foreign: Mapping[str, Tensor], layout: TensorLayout, layer: int) -> dict[str, Tensor]:
    prefix = layout.sublayer_prefixes(layer)[1]
    inner_prefix = prefix + layout.wrappers[1]
    tensors = {}
    output_layer = {}
    for kind in ("weight", "bias"):
        value, gate = foreign[f"{inner_prefix}net.0.{kind}"].chunk(2)
        tensors[f"mlp.up.{kind}"] = torch.cat([gate, value])
        output_layer[f"mlp.down.{kind}"] = foreign[f"{inner_prefix}net.3.{kind}"]
    return tensors | _norms_and_scaled_output(foreign, prefix, "mlp", output_layer)


def _norms_and_scaled_output(
    foreign: Mapping[str, Tensor], prefix: str, sublayer: str, output_layer: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The norms of a sublayer, and its output layer multiplied by LayerScale, which this package does not have.

    With sandwich norms the second norm comes after the output layer, so the norm is multiplied instead. The products
    stay in float32, because scales are as small as 1e-6.
    """
    tensors = {f"{sublayer}_norm.{kind}": foreign[f"{prefix}fn.norm.{kind}"] for kind in ("weight", "bias")}
    scaled = output_layer
    if f"{prefix}fn.norm_out.weight" in foreign:
        # Copied, because layers that share their weights need tensors of their own to be saved.
        tensors |= {name: value.clone() for name, value in output_layer.items()}
        scaled = {f"{sublayer}_post.{kind}": foreign[f"{prefix}fn.norm_out.{kind}"] for kind in ("weight", "bias")}
    scale = foreign[f"{prefix}scale"].flatten().float()
    return tensors | {name: value * (scale[:, None] if value.ndim > 1 else scale) for name, value in scaled.items()}
