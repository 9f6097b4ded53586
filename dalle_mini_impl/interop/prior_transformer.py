"""Diffusion priors as the PriorTransformer of `diffusers`, in a folder laid out as that library's pipelines are.

    prior/config.json, prior/diffusion_pytorch_model.safetensors    PriorTransformer.from_pretrained(FOLDER, "prior")
    prior_scheduler/scheduler_config.json                           DDPMScheduler.from_pretrained(FOLDER, ...)
    token_embedding.safetensors                                     ours alone: vectors of text ids

A PriorTransformer is given captions as vectors: hidden states of CLIP's text model in UnCLIPPipeline, rows of a table
in priors that were trained here. Reading and writing need no `diffusers`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dalle_mini_impl.checkpoint.check_weights import limited_numbers
from dalle_mini_impl.checkpoint.parts import Part
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.sampling import DIFFUSION_STEPS
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.interop.check_tensors import check_tensors
from dalle_mini_impl.interop.read_weights import Weights, read_file
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.prior import ADDED, DiffusionPrior
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file
from dalle_mini_impl.util.read_files import MAX_TEXT_BYTES
from dalle_mini_impl.util.read_files import read_file as read_bytes

WEIGHTS_FILE = "prior/diffusion_pytorch_model.safetensors"
CONFIG_FILE = "prior/config.json"
SCHEDULER_FILE = "prior_scheduler/scheduler_config.json"
TOKENS_FILE = "token_embedding.safetensors"
TOKENS, QKV = "tokens.weight", "attention.qkv."
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": DIFFUSION_STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
"""As `unclip.schedule` has it."""
NAMES = {
    "trunk.positions": "positional_embedding",
    "query": "prd_embedding",
    "mean": "clip_mean",
    "std": "clip_std",
    "time.0.": "time_embedding.linear_1.",
    "time.2.": "time_embedding.linear_2.",
    "project_noised.": "proj_in.",
    "project_text.": "embedding_proj.",
    "project_tokens.": "encoder_hidden_states_proj.",
    "trunk.norm.": "norm_out.",
    "predict.": "proj_to_clip_embeddings.",
}
"""Our names -> those of PriorTransformer; a dot at the end stands for the names that begin so."""
BLOCK_NAMES = {
    "norm1.": "norm1.",
    "attention.out.": "attn1.to_out.0.",
    "norm2.": "norm3.",
    "widen.": "ff.net.0.proj.",
    "narrow.": "ff.net.2.",
}
"""The same within a block, without the queries, keys and values, which are one matrix here."""
ADDED_AXES = {"trunk.positions": 1, "query": 2, "mean": 1, "std": 1}
"""Tensors of ours that have so many further axes of length 1 there."""
SHAPE = {
    "additional_embeddings": ADDED,
    "added_emb_type": "prd",
    "encoder_hid_proj_type": "linear",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "time_embed_act_fn": "silu",
}
"""What ours has in common with a PriorTransformer of these settings."""
SHARED = ("kind", "n_layer", "n_head", "n_embd", "text_length")
"""Settings of a `PriorConfig` that the config of a PriorTransformer has as well."""
WIDTHS = ("embedding_dim", "num_attention_heads", "attention_head_dim")
"""Keys of a config that the widths of a network follow from."""
MAX_WIDTH = 2**20
"""Largest width of embeddings."""
DEFAULTS_OTHERWISE = ("added_emb_type", "encoder_hid_proj_type")
"""Those of which null is another setting, not the default."""


def export_prior(part: Part, folder: Path) -> None:
    """Write a diffusion prior as a PriorTransformer.

    Args:
        part: the part of a checkpoint.
        folder: created if missing.

    Raises:
        UserError: it is an autoregressive prior, or the folder cannot be written.
    """
    config = from_dict(PriorConfig, part.config.get("prior"), f"{part.path}: prior")
    if config.kind != "diffusion":
        raise UserError(f"expected a diffusion prior in {part.path}, got kind {config.kind}; name another model")
    tensors = {name: value.float() for name, value in part.tensors.items()}
    tokens = tensors.pop(TOKENS)
    theirs: dict[str, Tensor] = {}
    for name, value in tensors.items():
        names = _their_names(name)
        parts = value[(None,) * ADDED_AXES.get(name, 0)].chunk(len(names))
        theirs |= {other: piece.contiguous() for other, piece in zip(names, parts, strict=True)}
    shape = {"num_attention_heads": config.n_head, "attention_head_dim": config.n_embd // config.n_head}
    shape |= {"num_layers": config.n_layer, "embedding_dim": tokens.shape[1], "num_embeddings": config.text_length}
    _write_json(folder / CONFIG_FILE, {"_class_name": "PriorTransformer", **shape, **SHAPE})
    _write_json(folder / SCHEDULER_FILE, SCHEDULER)
    origin = {"config": json.dumps(part.config), "trained_with": json.dumps(part.trained_with)}
    for path, content, header in (
        (folder / WEIGHTS_FILE, theirs, {"format": "pt"}),
        (folder / TOKENS_FILE, {"weight": tokens}, origin),
    ):
        with replace_file(path) as temporary:
            save_file(content, temporary, metadata=header)


def read_prior(folder: str | Path) -> DiffusionPrior:
    """Read a PriorTransformer as a prior of ours, in evaluation mode.

    Args:
        folder: a pipeline's, with `prior/` in it. Without `token_embedding.safetensors`, which only priors trained here
            have, there are no vectors of text ids: `denoise` works with hidden states of the caption, `forward` does
            not.

    Raises:
        UserError: a file is missing or damaged, or the prior has parts that ours lacks.
    """
    folder = Path(folder)
    config, embed_dim = _read_config(folder / CONFIG_FILE)
    weights = Weights(str(folder / WEIGHTS_FILE), _tensors(folder / WEIGHTS_FILE))
    has_tokens = (folder / TOKENS_FILE).is_file()
    tokens = _tensors(folder / TOKENS_FILE).get("weight") if has_tokens else torch.zeros(1, embed_dim)
    if tokens is None or tokens.ndim != 2 or tokens.shape[1] != embed_dim:
        raise UserError(f"expected a weight of width {embed_dim} in {folder / TOKENS_FILE}; export the prior again")
    with limited_numbers(4 * (tokens.numel() + sum(value.numel() for value in weights.tensors.values()))):
        prior = build_prior(config, embed_dim=embed_dim, text_vocab=len(tokens), pad_id=0)
    assert isinstance(prior, DiffusionPrior)
    own = {name: value for name, value in prior.state_dict().items() if name != TOKENS}
    expected: dict[str, tuple[int, ...]] = {}
    for name, value in own.items():
        names = _their_names(name)
        for piece, other in zip(value[(None,) * ADDED_AXES.get(name, 0)].chunk(len(names)), names, strict=True):
            expected[other] = tuple(piece.shape)
    check_tensors(weights, expected)
    tensors = {
        name: torch.cat([weights.tensors[other] for other in _their_names(name)]).view(value.shape)
        for name, value in own.items()
    }
    prior.load_state_dict({**tensors, TOKENS: tokens})
    return prior.eval()


def read_exported(folder: str | Path) -> tuple[DiffusionPrior, dict[str, Any], dict[str, str]]:
    """Read what `export_prior` wrote.

    Returns:
        The prior, the config of its part, and the identities of the parts that it was trained with.

    Raises:
        UserError: as `read_prior`, another program wrote the folder, or its files are of different priors.
    """
    path = Path(folder) / TOKENS_FILE
    if not path.is_file():
        raise UserError(
            f"expected {TOKENS_FILE} in {folder}, which priors trained here have, got none: a PriorTransformer of "
            f"another project reads hidden states of CLIP's text model; load it with interop.prior_transformer"
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        config, trained_with = json.loads(header["config"]), json.loads(header["trained_with"])
        if not isinstance(config, dict) or not isinstance(trained_with, dict):
            raise ValueError("no tables")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); export the prior again") from error
    exported = from_dict(PriorConfig, config.get("prior"), f"{path}: prior")
    found, _ = _read_config(Path(folder) / CONFIG_FILE)
    for name in SHARED:
        if getattr(found, name) != getattr(exported, name):
            raise UserError(
                f"expected {name} {getattr(exported, name)} in {Path(folder) / CONFIG_FILE}, as {path} has it, got "
                f"{getattr(found, name)}; the files are of different priors: export one again"
            )
    return read_prior(folder), config, trained_with


def _their_names(own: str) -> list[str]:
    """The names of the tensors that make up one of ours along its first axis."""
    names = NAMES
    block = ""
    if match := re.fullmatch(r"trunk\.blocks\.(\d+)\.(.+)", own):
        names, block, own = BLOCK_NAMES, f"transformer_blocks.{match[1]}.", match[2]
        if own.startswith(QKV):
            return [f"{block}attn1.to_{one}.{own.removeprefix(QKV)}" for one in "qkv"]
    (prefix,) = (name for name in names if own == name or (name.endswith(".") and own.startswith(name)))
    return [block + names[prefix] + own.removeprefix(prefix)]


def _read_config(path: Path) -> tuple[PriorConfig, int]:
    """The shape in a PriorTransformer's config, and the width of its embeddings.

    Raises:
        UserError: it is missing or damaged, or has parts that ours lacks.
    """
    what, advice = "the config of a PriorTransformer", "copy it again"
    try:
        values = json.loads(read_bytes(path, MAX_TEXT_BYTES, what, advice))
        width, heads, head_dim = (values[name] for name in WIDTHS)
        if not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
            raise UserError(f"expected embedding_dim from 1 to {MAX_WIDTH}, got {width}")
        shape = {"n_layer": values["num_layers"], "n_head": heads, "text_length": values["num_embeddings"]}
        config = from_dict(PriorConfig, {**shape, "n_embd": heads * head_dim}, str(path))
        check_ranges(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected {what}, got {path} ({error}); {advice}") from error
    widths = dict.fromkeys(("embedding_proj_dim", "clip_embed_dim"), width)
    for name, expected in {**SHAPE, **widths, "time_embed_dim": heads * head_dim}.items():
        if (got := values.get(name)) not in (None, expected) or (got is None and name in DEFAULTS_OTHERWISE):
            raise UserError(f"expected {name} {expected} in {path}, got {got}; only such priors can be read")
    return config, width


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"expected tensors in {path}, got something else; copy it again")
    return content


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
