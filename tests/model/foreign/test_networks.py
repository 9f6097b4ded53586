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
        ({"network": "vqgan"}, "unknown network 'vqgan'; expected vqvae, taming, openai-dvae, dalle-pytorch"),
        ({"factor": 8}, "factor 8 with 3 stages was given, which do not fit network 'taming'"),
        ({"network": "openai-dvae", "factor": 8}, "factor 8 with 3 stages .* 'openai-dvae'"),
        ({"network": "dalle-pytorch"}, "factor 4 with 3 stages .* 'dalle-pytorch'"),
        ({"network": "dalle-pytorch", "channels": (), "factor": 1}, "factor 1 with 0 stages"),
        ({"channels": (32, 48, 64)}, "a width of 48 was given; widths must be multiples of 32"),
        ({"imported": ImportedNetworkConfig(stem=8)}, "a width of 8"),
        ({"quantizer": "vq"}, "unknown quantizer 'vq'; network 'taming' has nearest, cosine or logits"),
        ({"image_size": 30}, "image_size 30 is not a multiple of factor 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ImageTokenizer(imported_config(**changes), commitment=None)


@pytest.mark.parametrize("network", ["taming", "openai-dvae", "dalle-pytorch"])
def test_imported_networks_are_not_trained(network):
    with pytest.raises(UserError, match=f"network '{network}' was given to train, but it can only be imported"):
        ImageTokenizer(imported_config(network=network))


def test_forward_decodes_the_ids_that_encode_returns():
    tokenizer = ImageTokenizer(imported_config(codebook_size=61, embed_dim=7), commitment=None).eval()
    pixels = random_pixels(16, 24)
    with torch.no_grad():
        result = tokenizer(pixels)
    assert torch.equal(result.image_ids, tokenizer.encode(pixels))
    assert torch.equal(result.pixels.clamp(-1, 1), tokenizer.decode(result.image_ids))
