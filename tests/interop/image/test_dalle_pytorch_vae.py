"""Imported DiscreteVAEs of DALLE-pytorch compute what the slow reference computes."""

import pytest
import torch
from helpers.foreign_dalle_pytorch_vae import discrete_vae_shapes, run_discrete_vae
from helpers.foreign_examples import assert_matches_reference, random_pixels
from helpers.foreign_tensors import random_tensors
from safetensors.torch import save_file

from dalle_mini_impl.interop.image.dalle_pytorch_vae import load

NORMALIZATIONS = {
    "default": ((0.5,) * 3, (0.5,) * 3),
    "one per colour": ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


@pytest.mark.parametrize(("layers", "blocks"), [(1, 0), (3, 0), (2, 2), (3, 1)])
@pytest.mark.parametrize(("mean", "std"), NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_discrete_vae_matches_the_reference(layers, blocks, mean, std):
    tensors = random_tensors(discrete_vae_shapes(layers, blocks, hidden=11, embed_dim=7, n_ids=61), gain=1.6)
    save_file(tensors, "vae.safetensors")
    tokenizer = load("vae.safetensors", 24, mean, std).tokenizer

    pixels = random_pixels(24, 40)
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    ids = run_discrete_vae(tensors, "encoder", ((pixels + 1) / 2 - shift) / scale).argmax(1)
    out = run_discrete_vae(tensors, "decoder", tensors["codebook.weight"][ids].movedim(-1, 1))
    assert_matches_reference(tokenizer, pixels, ids, 2 * (out * scale + shift) - 1)
    assert tokenizer.config.factor == 2**layers
