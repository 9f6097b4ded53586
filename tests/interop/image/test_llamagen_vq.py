"""Imported image tokenizers of LlamaGen compute what the slow reference computes."""

import pytest
import torch
from helpers.foreign_examples import assert_matches_reference, random_pixels
from helpers.foreign_tensors import on_meta_device, random_tensors
from helpers.foreign_vqgan import llamagen_names, nearest_ids, vqgan_decode, vqgan_encode, vqgan_shapes
from safetensors.torch import save_file

from dalle_mini_impl.interop.image import llamagen_vq
from dalle_mini_impl.interop.image.build import expected_shapes

N_STAGES = 3


@pytest.mark.parametrize("normalised", [True, False])
def test_llamagen_matches_the_reference_with_and_without_normalised_vectors(normalised):
    shapes = vqgan_shapes(32, (1, 1, 2), (2,), z_channels=13, embed_dim=7, n_ids=61)
    tensors = random_tensors(shapes)
    # Lengths of vectors matter only where they are not normalised
    tensors["quantize.embedding.weight"] *= torch.linspace(0.2, 3, 61)[:, None]
    names = llamagen_names(shapes, N_STAGES)
    save_file({names[name]: value for name, value in tensors.items()}, "vq.safetensors")
    tokenizer = llamagen_vq.load("vq.safetensors", 20, codebook_norm=normalised).tokenizer

    pixels = random_pixels(20, 28)
    z = vqgan_encode(tensors, pixels, N_STAGES)
    codebook = tensors["quantize.embedding.weight"]
    if normalised:
        z = z / z.square().sum(1, keepdim=True).sqrt()
        codebook = codebook / codebook.square().sum(1, keepdim=True).sqrt()
    ids = nearest_ids(z, codebook)
    decoded = vqgan_decode(tensors, codebook[ids].movedim(-1, 1), N_STAGES)
    assert_matches_reference(tokenizer, pixels, ids, decoded)


def test_published_llamagen_has_the_expected_names_shapes_and_config(monkeypatch):
    shapes = vqgan_shapes(128, (1, 1, 2, 2, 4), (4,), z_channels=256, embed_dim=8, n_ids=16384)
    names = llamagen_names(shapes, 5)
    foreign_shapes = {names[name]: shape for name, shape in shapes.items()}
    assert "decoder.conv_blocks.0.attn.2.proj_out.weight" in foreign_shapes
    content = on_meta_device({**foreign_shapes, "quantize.codebook_used": (65536,)})
    built = []
    monkeypatch.setattr(llamagen_vq, "read_file", lambda path, trust: {"model": {}, "ema": content})
    monkeypatch.setattr(
        llamagen_vq,
        "build_image_tokenizer",
        lambda weights, config, foreign_name: built.append((expected_shapes(config, foreign_name), config)),
    )
    llamagen_vq.load("vq_ds16_c2i.pt")
    ((expected, config),) = built
    assert expected == foreign_shapes
    assert (config.factor, config.codebook_size, config.embed_dim, config.quantizer) == (16, 16384, 8, "cosine")
