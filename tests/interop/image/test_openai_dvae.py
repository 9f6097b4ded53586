"""OpenAI's dVAE, imported, computes what the slow reference computes."""

import math

from helpers.foreign_examples import assert_matches_reference, random_pixels
from helpers.foreign_openai_dvae import dvae_decode, dvae_encode, dvae_shapes
from helpers.foreign_tensors import on_meta_device, random_tensors
from safetensors.torch import save_file

from dalle_mini_impl.interop.image.build import expected_shapes
from dalle_mini_impl.interop.image.openai_dvae import config_from_tensors, foreign_name, load
from dalle_mini_impl.interop.read_weights import Weights


def test_dvae_matches_the_reference():
    shapes = dvae_shapes(hidden=16, init=11, n_ids=61)
    encoder, decoder = (random_tensors(part, seed, gain=1.6) for seed, part in enumerate(shapes))
    for tensors in (encoder, decoder):
        # Residual paths are divided by 64, so that they would have no visible effect
        tensors.update({name: 40 * value for name, value in tensors.items() if name.endswith("conv_4.w")})
    save_file(decoder, "decoder.safetensors")
    save_file(encoder, "encoder.safetensors")
    tokenizer = load(["decoder.safetensors", "encoder.safetensors"], 24).tokenizer

    pixels = random_pixels(40, 24, count=5)
    ids = dvae_encode(encoder, pixels)
    decoded = dvae_decode(decoder, ids)
    assert_matches_reference(tokenizer, pixels, ids, decoded)
    assert (decoded == 1).any()  # some values are clamped, and some are not
    assert (decoded < 1).any()
    assert ids.shape == (5, 5, 3)


def test_published_dvae_has_the_expected_names_shapes_and_config():
    encoder, decoder = dvae_shapes(hidden=256, init=128, n_ids=8192)
    assert (len(encoder), sum(map(math.prod, encoder.values()))) == (74, 53_786_240)
    assert (len(decoder), sum(map(math.prod, decoder.values()))) == (76, 43_829_766)
    shapes = {f"encoder.{name}": shape for name, shape in encoder.items()}
    shapes |= {f"decoder.{name}": shape for name, shape in decoder.items()}
    config = config_from_tensors(Weights("two files", on_meta_device(shapes)), 256)
    assert expected_shapes(config, foreign_name) == shapes
    assert (config.factor, config.codebook_size, config.embed_dim) == (8, 8192, 128)
    assert config.channels == (256, 512, 1024, 2048)
