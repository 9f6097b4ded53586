"""Imported VQGANs of taming-transformers and latent-diffusion compute what the slow reference computes."""

from typing import Any

import pytest
import torch
from helpers.foreign_examples import assert_matches_reference, random_pixels
from helpers.foreign_tensors import conv, on_meta_device, random_tensors
from helpers.foreign_vqgan import nearest_ids, vqgan_decode, vqgan_encode, vqgan_shapes
from safetensors.torch import save_file

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.check_tensors import check_tensors
from dalle_mini_impl.interop.image.build import expected_shapes
from dalle_mini_impl.interop.image.taming_vqgan import config_from_tensors, foreign_name, load
from dalle_mini_impl.interop.read_weights import Weights

SIZES: dict[str, Any] = {
    "ch": 32, "ch_mult": (1, 1, 2), "attention_stages": (2,), "z_channels": 13, "embed_dim": 7, "n_ids": 61,
}  # fmt: skip
N_STAGES = 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_stages": (0, 2), "embed_dim": 13},
        {"attention_stages": (), "middle_attention": False, "blocks": 1},
        {"ch_mult": (2, 1, 3)},
    ],
    ids=["f4", "attention in two stages", "no attention", "a first stage wider than the first convolution"],
)
def test_nearest_vqgan_matches_the_reference(changes):
    sizes = {**SIZES, **changes}
    blocks = sizes.get("blocks", 2)
    tensors = random_tensors(vqgan_shapes(**sizes))
    save_file(tensors, "vqgan.safetensors")
    tokenizer = load("vqgan.safetensors", 20).tokenizer

    pixels = random_pixels(20, 28)
    codebook = tensors["quantize.embedding.weight"]
    ids = nearest_ids(vqgan_encode(tensors, pixels, N_STAGES, blocks), codebook)
    decoded = vqgan_decode(tensors, codebook[ids].movedim(-1, 1), N_STAGES, blocks)
    assert_matches_reference(tokenizer, pixels, ids, decoded)
    assert ids.shape == (2, 5, 7)
    assert (tokenizer.codebook_size, tokenizer.config.factor, tokenizer.config.grid) == (61, 4, (5, 5))


def test_gumbel_vqgan_takes_the_id_with_the_largest_logit():
    tensors = random_tensors(vqgan_shapes(**{**SIZES, "embed_dim": 13}, gumbel=True))
    save_file(tensors, "gumbel.safetensors")
    tokenizer = load("gumbel.safetensors", 20).tokenizer

    pixels = random_pixels(20, 28)
    ids = conv(tensors, "quantize.proj", vqgan_encode(tensors, pixels, N_STAGES)).argmax(1)
    decoded = vqgan_decode(tensors, tensors["quantize.embed.weight"][ids].movedim(-1, 1), N_STAGES)
    assert_matches_reference(tokenizer, pixels, ids, decoded)
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels))


# --- full size: names and numbers of published models, without memory for the tensors

F16: dict[str, Any] = {
    "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "attention_stages": (4,), "z_channels": 256, "embed_dim": 256,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "imagenet f16-1024": ({**F16, "n_ids": 1024}, 343, 72_141_699),
    "imagenet f16-16384": ({**F16, "n_ids": 16384}, 343, 76_073_859),
    "gumbel f8": (
        {**F16, "ch_mult": (1, 1, 2, 4), "attention_stages": (3,), "n_ids": 8192, "gumbel": True}, 301, 68_995_971,
    ),
    "LDM f8-256": (
        {**F16, "ch_mult": (1, 2, 2, 4), "attention_stages": (3,), "z_channels": 4, "embed_dim": 4, "n_ids": 256},
        299, 67_652_783,
    ),
}  # fmt: skip
"""Sizes, number of tensors and number of parameters."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vqgan_has_the_expected_names_shapes_and_config(name):
    sizes, n_tensors, n_parameters = PUBLISHED[name]
    shapes = vqgan_shapes(**sizes)
    weights = Weights("a file", on_meta_device(shapes))
    assert (len(shapes), sum(value.numel() for value in weights.tensors.values())) == (n_tensors, n_parameters)
    config = config_from_tensors(weights, 256)
    assert expected_shapes(config, foreign_name) == shapes
    check_tensors(weights, expected_shapes(config, foreign_name))
    assert config == ImageTokenizerConfig(
        network="taming",
        quantizer="logits" if sizes.get("gumbel") else "nearest",
        image_size=256,
        factor=2 ** (len(sizes["ch_mult"]) - 1),
        channels=tuple(128 * multiple for multiple in sizes["ch_mult"]),
        encoder_blocks=2,
        decoder_blocks=3,
        codebook_size=sizes["n_ids"],
        embed_dim=sizes["embed_dim"],
        imported=ImportedNetworkConfig(stem=128, z_channels=sizes["z_channels"], attention=sizes["attention_stages"]),
    )
