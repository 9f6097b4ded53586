"""Diffusion decoders as the parts of diffusers' UnCLIPPipeline, in a folder laid out as that library's pipelines are.

    model_index.json            which parts there are
    decoder/                    UNet2DConditionModel.from_pretrained(FOLDER, subfolder="decoder")
    text_proj/                  UnCLIPTextProjModel
    decoder_scheduler/          DDIMScheduler
    super_res_first/            UNet2DModel, the upsampler, where there is one
    super_res_scheduler/        DDIMScheduler
    dalle_mini_impl.safetensors ours alone: text ids as vectors, the scale of latents

A UnCLIPTextProjModel is given captions as vectors: hidden states of CLIP's text model in UnCLIPPipeline, rows of a
table in decoders that were trained here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.check_weights import limited_numbers
from dalle_mini_impl.checkpoint.parts import Part, load_module, read_part
from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.interop.check_tensors import check_tensors
from dalle_mini_impl.interop.read_weights import Weights, read_file
from dalle_mini_impl.model.diffusion import PictureDenoiser, PictureUpsampler
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import replace_file
from dalle_mini_impl.util.read_files import MAX_TEXT_BYTES
from dalle_mini_impl.util.read_files import read_file as read_bytes

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OWN_FILE = "dalle_mini_impl.safetensors"
CLASSES = {
    "decoder": "UNet2DConditionModel",
    "text_proj": "UnCLIPTextProjModel",
    "decoder_scheduler": "DDIMScheduler",
    "super_res_first": "UNet2DModel",
    "super_res_scheduler": "DDIMScheduler",
}
"""Folder -> class of the library; the other parts of its pipeline are missing."""
OTHERS = ("prior", "prior_scheduler", "text_encoder", "tokenizer", "super_res_last")
"""Parts of UnCLIPPipeline that are not written."""
TEXT_PARTS = ("embedding_proj", "encoder_hidden_states_proj", "text_encoder_hidden_states_norm")
"""Layers of UnCLIPTextProjModel that a decoder without captions lacks; zeros compute the same."""
UNET, CONTEXT = "unet.", "context."
"""Beginnings of the names of a decoder's tensors that are in `decoder/` and in `text_proj/`."""


def export_decoder(checkpoint: Path, folder: Path) -> None:
    """Write the diffusion decoder of a checkpoint, and its upsampler if it has one, as parts of a UnCLIPPipeline.

    Args:
        checkpoint: its folder.
        folder: created if missing.

    Raises:
        UserError: diffusers is not installed, there is no such part or it is damaged, or the folder cannot be written.
    """
    part = read_part(checkpoint, "diffusion_decoder")
    config = _config(part)
    network = _build(config, part, checkpoint)
    _write(folder / "decoder", network.unet, network.unet.config)
    context = dict(network.context.state_dict())
    width, time_dim = network.embed_dim, 4 * config.channels[0]
    shapes = {"embedding_proj": time_dim, "encoder_hidden_states_proj": config.context_dim}
    if not config.text_length:
        context |= {f"{name}.weight": torch.zeros(rows, width) for name, rows in shapes.items()}
        context |= {f"{name}.bias": torch.zeros(rows) for name, rows in shapes.items()}
        context |= {f"{TEXT_PARTS[2]}.{name}": torch.zeros(config.context_dim) for name in ("weight", "bias")}
    settings = {
        "clip_extra_context_tokens": config.positions,
        "clip_embeddings_dim": width,
        "time_embed_dim": time_dim,
        "cross_attention_dim": config.context_dim,
    }
    _write(folder / "text_proj", context, {"_class_name": CLASSES["text_proj"], **settings})
    _write_scheduler(folder / "decoder_scheduler", config.prediction)
    own = {name: value for name, value in network.state_dict().items() if not name.startswith((UNET, CONTEXT))}
    origin = {"config": json.dumps(part.config), "trained_with": json.dumps(part.trained_with)}
    written = ["decoder", "text_proj", "decoder_scheduler"]
    if (checkpoint / "upsampler.safetensors").is_file():
        upsampler = read_part(checkpoint, "upsampler")
        enlarging_config = _config(upsampler)
        enlarging = load_module(lambda: PictureUpsampler(enlarging_config), upsampler, "cpu")
        _write(folder / "super_res_first", enlarging.unet, enlarging.unet.config)
        _write_scheduler(folder / "super_res_scheduler", enlarging_config.prediction)
        origin["upsampler"] = json.dumps(upsampler.config)
        written += ["super_res_first", "super_res_scheduler"]
    with replace_file(folder / OWN_FILE) as temporary:
        save_file({name: value.contiguous() for name, value in own.items()}, temporary, metadata=origin)
    index = {name: ["diffusers", CLASSES[name]] if name in written else [None, None] for name in (*CLASSES, *OTHERS)}
    _write_json(folder / "model_index.json", {"_class_name": "UnCLIPPipeline", **index})


def read_decoder(folder: str | Path) -> PictureDenoiser:
    """Read the decoder of a UnCLIPPipeline, in evaluation mode.

    Args:
        folder: with `decoder/` and `text_proj/` in it. Without `dalle_mini_impl.safetensors`, which only decoders
            trained here have, there are no vectors of text ids: `denoise` works with hidden states of the caption,
            `forward` does not.

    Raises:
        UserError: diffusers is not installed, a file is missing or damaged, or the decoder has parts that ours lacks.
    """
    folder = Path(folder)
    theirs, projection = (_read_json(folder / name / CONFIG) for name in ("decoder", "text_proj"))
    own = _tensors(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    place = str(folder / "decoder" / CONFIG)
    try:
        channels, side, out = (int(theirs[name]) for name in ("in_channels", "sample_size", "out_channels"))
        down = list(theirs["down_block_types"])
        shape = {
            "channels": list(theirs["block_out_channels"]),
            "blocks": theirs["layers_per_block"],
            "attention_stages": sum("CrossAttn" in str(one) for one in down),
            "head_dim": theirs["attention_head_dim"],
            "context_dim": theirs["cross_attention_dim"],
            "positions": projection["clip_extra_context_tokens"],
            "text_length": len(own["places"]) if "places" in own else 1 - bool(own),
        }
        text = {"text_vocab": len(own["tokens.weight"]) if "tokens.weight" in own else 1, "pad_id": 0}
        width = int(projection["clip_embeddings_dim"])
        config = from_dict(DiffusionDecoderConfig, shape, place)
        check_ranges(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"expected the configs of a UnCLIPPipeline's decoder, got {place} ({error}); copy it"
        ) from error
    if out not in (channels, 2 * channels) or min(channels, side, width) < 1:
        raise UserError(
            f"expected as many channels out as in, or twice as many, got {out} and {channels} in {place}; only such "
            f"decoders can be read"
        )
    files = {UNET: folder / "decoder" / WEIGHTS, CONTEXT: folder / "text_proj" / WEIGHTS}
    found = {prefix: _tensors(path) for prefix, path in files.items()}
    numbers = sum(value.numel() for tensors in (*found.values(), own) for value in tensors.values())
    network = _checked_network(
        config, theirs, place, 4 * numbers, channels=channels, side=side, embed_dim=width, **text
    )
    state: dict[str, Tensor] = dict(network.state_dict())
    for prefix, tensors in found.items():
        expected = {
            name.removeprefix(prefix): tuple(value.shape) for name, value in state.items() if name.startswith(prefix)
        }
        if not config.text_length:
            tensors = {name: value for name, value in tensors.items() if name.split(".")[0] not in TEXT_PARTS}
        check_tensors(Weights(str(files[prefix]), tensors), expected)
        state |= {prefix + name: value for name, value in tensors.items()}
    if own:
        expected = {name: tuple(value.shape) for name, value in state.items() if not name.startswith((UNET, CONTEXT))}
        check_tensors(Weights(str(folder / OWN_FILE), own), expected)
    _load(network, {**state, **own}, str(folder))
    return network.eval()


def read_exported(folder: str | Path) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]], dict[str, str]]:
    """Read what `export_decoder` wrote.

    Returns:
        Networks and configs by the name of their part, and the identities of the parts that the decoder was trained
        with.

    Raises:
        UserError: as `read_decoder`, another program wrote the folder, or its files are of different decoders.
    """
    path = Path(folder) / OWN_FILE
    if not path.is_file():
        raise UserError(
            f"expected {OWN_FILE} in {folder}, which decoders trained here have, got none: a UnCLIPPipeline of another "
            f"project reads hidden states of CLIP's text model; load its decoder with interop.unclip"
        )
    try:
        with safe_open(path, "pt") as file:
            header = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
        configs = {"diffusion_decoder": header["config"]}
        configs |= {"upsampler": header["upsampler"]} if "upsampler" in header else {}
        trained_with = header["trained_with"]
        if not all(isinstance(table, dict) for table in (*configs.values(), trained_with)):
            raise ValueError("no tables")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); export the decoder again") from error
    decoder = read_decoder(folder)
    _check_exported(
        from_dict(DiffusionDecoderConfig, configs["diffusion_decoder"].get("decoder"), str(path)), decoder, path
    )
    networks: dict[str, nn.Module] = {"diffusion_decoder": decoder}
    if "upsampler" in configs:
        config = from_dict(DiffusionDecoderConfig, configs["upsampler"].get("decoder"), f"{path}: upsampler")
        check_ranges(config)
        tensors = _tensors(Path(folder) / "super_res_first" / WEIGHTS)
        with limited_numbers(4 * sum(value.numel() for value in tensors.values())):
            networks["upsampler"] = PictureUpsampler(config)
        _load(networks["upsampler"], {UNET + name: value for name, value in tensors.items()}, str(folder))
    return networks, configs, trained_with


def _check_exported(config: DiffusionDecoderConfig, found: PictureDenoiser, path: Path) -> None:
    """Refuse a decoder that has another shape than the config in our own file."""
    check_ranges(config)
    side = found.side if config.space == "latents" else config.image_size
    shape: dict[str, Any] = {"channels": found.channels, "side": side, "embed_dim": found.embed_dim}
    with torch.device("meta"):  # takes no memory
        expected = PictureDenoiser(config, **shape, text_vocab=1, pad_id=0)
    ours, theirs = (
        json.dumps([dict(one.unet.config), one.context.positions, one.text_length]) for one in (expected, found)
    )
    if ours != theirs:
        raise UserError(
            f"expected a decoder in {path.parent} of the shape that {path} names, got another; export it again"
        )


def _config(part: Part) -> DiffusionDecoderConfig:
    config = from_dict(DiffusionDecoderConfig, part.config.get("decoder"), f"{part.path}: decoder")
    check_ranges(config)
    return config


def _build(config: DiffusionDecoderConfig, part: Part, checkpoint: Path) -> PictureDenoiser:
    """The network of a part, whose shapes follow from its tensors and, for latents, from the image tokenizer."""
    side = config.image_size
    if config.space == "latents":
        values = read_part(checkpoint, "image_tokenizer", weights=False).config
        side = from_dict(ImageTokenizerConfig, values, "image_tokenizer").grid[0]
    vocab = len(part.tensors.get("tokens.weight", ())) or 1
    embed = part.tensors.get(f"{CONTEXT}learned_classifier_free_guidance_embeddings", ())
    shape: dict[str, Any] = {"channels": len(part.tensors.get("mean", ())), "side": side, "embed_dim": len(embed)}
    return load_module(lambda: PictureDenoiser(config, **shape, text_vocab=vocab, pad_id=0), part, "cpu")


def _checked_network(
    config: DiffusionDecoderConfig, theirs: dict[str, Any], place: str, limit: int, **shape: Any
) -> PictureDenoiser:
    """A network of ours that has the shape of a U-Net's config.

    Raises:
        UserError: the config has something that ours lacks.
    """
    has_variance = int(theirs["out_channels"]) == 2 * shape["channels"]
    with limited_numbers(limit):
        network = PictureDenoiser(config, **shape, has_variance=has_variance)
    for name, expected in network.unet.config.items():
        got = theirs.get(name, expected)
        if not name.startswith("_") and json.dumps(got) != json.dumps(expected):
            raise UserError(f"expected {name} {expected} in {place}, got {got}; only such decoders can be read")
    return network


def _load(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the weights in {source} do not fit their config ({reason}); copy them again") from error


def _write(folder: Path, weights: nn.Module | Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """A part of a pipeline: config and weights."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    name = {"_class_name": type(weights).__name__} if isinstance(weights, nn.Module) else {}
    values = {key: value for key, value in config.items() if key not in ("_use_default_values", "_name_or_path")}
    _write_json(folder / CONFIG, {**values, **name})
    with replace_file(folder / WEIGHTS) as temporary:
        save_file({key: value.float().contiguous() for key, value in tensors.items()}, temporary, {"format": "pt"})


def _write_scheduler(folder: Path, prediction: str) -> None:
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise need_extra("diffusers", "unclip") from error
    spacing = "leading" if prediction == "epsilon" else "trailing"  # as unclip.schedule has it
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction, "timestep_spacing": spacing}
    scheduler: Any = DDIMScheduler(**options, clip_sample=False)
    _write_json(folder / "scheduler_config.json", {"_class_name": "DDIMScheduler", **dict(scheduler.config)})


def _read_json(path: Path) -> dict[str, Any]:
    what, advice = "the config of a part of a UnCLIPPipeline", "copy it again"
    try:
        values = json.loads(read_bytes(path, MAX_TEXT_BYTES, what, advice))
    except ValueError as error:
        raise UserError(f"expected {what}, got {path} ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise UserError(f"expected {what}, got {path} without keys; {advice}")
    return values


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"expected tensors in {path}, got something else; copy it again")
    return content


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
