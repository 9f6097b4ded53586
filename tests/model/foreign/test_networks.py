"""Configs of imported image tokenizers: those that do not fit are refused, and none is trained."""

import pytest
import torch
from helpers.foreign_examples import random_pixels

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.errors import UserError


def imported_config(**changes):
    settings = {"network": "taming", "quantizer": "nearest", "image_size": 32, "factor": 4, "channels": (32, 32, 64)}
    return ImageTokenizerConfig(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vqgan"}, "expected network vqvae, taming, openai-dvae, dalle-pytorch, got 'vqgan'"),
        ({"factor": 8}, "expected factor 4 for network 'taming' with 3 stages, got 8"),
        ({"network": "openai-dvae", "factor": 8}, "expected factor 4 for network 'openai-dvae' with 3 stages, got 8"),
        ({"network": "dalle-pytorch"}, "expected factor 8 for network 'dalle-pytorch' with 3 stages, got 4"),
        (
            {"network": "dalle-pytorch", "channels": (), "factor": 1},
            "expected channels with a width for each stage, got none",
        ),
        ({"channels": (32, 48, 64)}, "expected widths that are multiples of 32 for network 'taming', got 48"),
        (
            {"imported": ImportedNetworkConfig(stem=8)},
            "expected widths that are multiples of 32 for network 'taming', got 8",
        ),
        ({"quantizer": "vq"}, "expected quantizer nearest, cosine or logits for network 'taming', got 'vq'"),
        ({"image_size": 30}, "expected image_size to be a multiple of factor 4, got 30"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ImageTokenizer(imported_config(**changes), commitment=None)


@pytest.mark.parametrize("network", ["taming", "openai-dvae", "dalle-pytorch"])
def test_imported_networks_are_not_trained(network):
    with pytest.raises(UserError, match=f"expected network vqvae for training, got '{network}'"):
        ImageTokenizer(imported_config(network=network))


def test_forward_decodes_the_ids_that_encode_returns():
    tokenizer = ImageTokenizer(imported_config(codebook_size=61, embed_dim=7), commitment=None).eval()
    pixels = random_pixels(16, 24)
    with torch.no_grad():
        result = tokenizer(pixels)
    assert torch.equal(result.image_ids, tokenizer.encode(pixels))
    assert torch.equal(result.pixels.clamp(-1, 1), tokenizer.decode(result.image_ids))
