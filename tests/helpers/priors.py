"""Small priors and diffusion decoders with random weights, and transformers that take what priors draw."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig, DiffusionSamplingConfig
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.sampling import PriorSamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.prior import ARPrior
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.unclip.diffusion_decoder import network_shape
from dalle_mini_impl.unclip.prior import SPACE
from helpers.models import CAPTIONS, TRANSFORMER, make_transformer, randomise


def add_prior(folder: Path, kind: str, **sampling: object) -> Path:
    """Give a checkpoint with a scorer a prior of a kind with random weights."""
    scorer, tokenizer = Scorer.from_pretrained(folder), TextTokenizer(folder / TEXT_TOKENIZER_FILE)
    config = PriorConfig(kind=kind, n_layer=1, n_head=2, n_embd=12, text_length=9, components=5, buckets=16)
    shape = {"text_vocab": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
    network = randomise(build_prior(config, embed_dim=scorer.model.embed_dim, **shape), 11)
    if isinstance(network, ARPrior):
        embeds = scorer.embed_texts(CAPTIONS)
        network.fit(embeds, embeds.flip(0))
    settings = {"prior": to_dict(config), "sampling": to_dict(PriorSamplingConfig(**{"steps": 5, **sampling}))}
    identities = {"text_tokenizer": tokenizer.identity, SPACE: scorer_identity(scorer)}
    identities["scorer"] = read_part(folder, "scorer", weights=False).identity
    save_part(folder, "prior", network, settings, identities, torch.float32)
    return folder


def skip_without(folder: Path, part: str) -> None:
    """Skip a test of a part that only `diffusers` can make, where that is not installed."""
    if not (folder / f"{part}.safetensors").is_file():
        pytest.skip("needs diffusers")


def add_diffusion_decoder(folder: Path, *, sampling: dict[str, object] | None = None, **settings: object) -> Path:
    """Give a checkpoint with a scorer a diffusion decoder with random weights; of latents, unless `space` says more."""
    from dalle_mini_impl.model.diffusion import PictureDenoiser

    scorer, tokenizer = Scorer.from_pretrained(folder), TextTokenizer(folder / TEXT_TOKENIZER_FILE)
    image_tokenizer, image_identity = load_image_tokenizer(folder)
    shape = {"space": "latents", "channels": (16,), "head_dim": 8, "context_dim": 12, "attention_stages": 1}
    config = from_dict(DiffusionDecoderConfig, {**shape, **settings}, "decoder")
    identities = {"scorer": read_part(folder, "scorer", weights=False).identity, SPACE: scorer_identity(scorer)}
    captions = tokenizer if config.text_length else None
    if captions:
        identities["text_tokenizer"] = tokenizer.identity
    if config.space == "latents":
        identities["image_tokenizer"] = image_identity
    vectors = image_tokenizer if config.space == "latents" else None
    with torch.random.fork_rng(devices=[]):  # weights as before training, with which predictions vary slowly
        torch.manual_seed(12)
        network = PictureDenoiser(config, **network_shape(config, vectors, scorer, captions))
        torch.nn.init.normal_(network.context.learned_classifier_free_guidance_embeddings)
    with torch.no_grad():
        for value in network.context.parameters():
            value.mul_(5)  # so that pictures depend on embeddings much
    values = {
        "decoder": to_dict(config),
        "sampling": to_dict(DiffusionSamplingConfig(**{"steps": 4, **(sampling or {})})),
    }
    save_part(folder, "diffusion_decoder", network, values, identities, torch.float32)
    return folder


def add_upsampler(folder: Path, low_size: int, image_size: int) -> Path:
    """Give a checkpoint an upsampler with random weights."""
    from dalle_mini_impl.model.diffusion import PictureUpsampler

    config = DiffusionDecoderConfig(kind="upsampler", low_size=low_size, image_size=image_size, channels=(8, 8))
    values = {"decoder": to_dict(config), "sampling": to_dict(DiffusionSamplingConfig(steps=3))}
    save_part(folder, "upsampler", randomise(PictureUpsampler(config), 13), values, {}, torch.float32)
    return folder


def add_every_part(folder: Path) -> Path:
    """Give a checkpoint with a scorer a prior and, where `diffusers` is installed, the parts that need it."""
    add_prior(folder, "ar")
    if importlib.util.find_spec("diffusers") is not None:
        add_upsampler(add_diffusion_decoder(folder, space="pixels", image_size=8, text_length=4), 8, 16)
    return folder


def take_embeddings(folder: Path) -> Path:
    """Give a checkpoint a transformer that takes embeddings of its scorer, with random weights."""
    width = Scorer.from_pretrained(folder).model.embed_dim
    trained_with = read_part(folder, "transformer", weights=False).trained_with
    (folder / "transformer.safetensors").unlink()
    transformer, stream = make_transformer(embed_dim=width)
    with torch.no_grad():
        transformer.image_prefix.project.weight *= 3  # so that pictures depend on it much
    config = {"stream": to_dict(stream.config), "transformer": to_dict(TRANSFORMER)}
    scorer = read_part(folder, "scorer", weights=False).identity
    save_part(folder, "transformer", transformer, config, {"scorer": scorer, **trained_with})
    return folder
