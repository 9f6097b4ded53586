"""The U-Nets of the diffusion decoder and its upsampler."""

import sys

import pytest
import torch
from torch.nn import functional as F

from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig
from dalle_mini_impl.model.diffusion import PictureDenoiser, PictureUpsampler
from dalle_mini_impl.util.errors import UserError

PAD = 0
SHAPE = {"channels": (8, 16), "head_dim": 8, "context_dim": 12, "attention_stages": 1}
EMBED = F.normalize(torch.randn(3, 10, generator=torch.Generator().manual_seed(1)), dim=-1)
TIMES = torch.tensor([3, 500, 999])


def make(text_length=5, side=8, channels=4, **settings):
    pytest.importorskip("diffusers")
    config = DiffusionDecoderConfig(text_length=text_length, **{**SHAPE, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PictureDenoiser(config, channels=channels, side=side, embed_dim=10, text_vocab=11, pad_id=PAD)


def noised(side=8, channels=4):
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(2))


def given(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("text_length", [5, 12, 60])  # with 4 positions before them, 12 and 60 are as many as cells
def test_padding_after_a_caption_does_not_count(text_length):
    network = make(text_length)
    ids = torch.randint(1, 11, (3, text_length), generator=torch.Generator().manual_seed(3))
    ids[:, 3:] = PAD
    arguments = (noised(), TIMES, EMBED, given(True, True, False), ids, EMBED)
    with torch.no_grad():
        before = network(*arguments)
        network.tokens.weight[PAD] += 5
        torch.testing.assert_close(network(*arguments), before)
        network.tokens.weight[ids[0, 0]] += 5
        assert (network(*arguments) - before).abs().max() > 1e-4


def test_a_row_does_not_depend_on_the_others_and_every_input_counts():
    network = make()
    ids = torch.tensor([[1, 2, 3, PAD, PAD], [4, 5, 6, 7, 8], [PAD] * 5])
    arguments = [noised(), TIMES, EMBED, given(True, True, True), ids, EMBED.flip(0)]
    with torch.no_grad():
        together = network(*arguments)
        for row in range(3):
            alone = network(*(value[[row]] for value in arguments))
            torch.testing.assert_close(together[[row]], alone, atol=1e-4, rtol=1e-4)
        for number, other in enumerate(
            [noised() + 1, TIMES.flip(0), -EMBED, given(False, False, False), ids + 1, EMBED]
        ):
            changed = [*arguments[:number], other, *arguments[number + 1 :]]
            assert (network(*changed) - together)[0].abs().max() > 1e-5, number


def test_without_embedding_its_numbers_do_not_count():
    network = make(text_length=0)
    with torch.no_grad():
        one = network(noised(), TIMES, EMBED, given(False, False, False))
        torch.testing.assert_close(network(noised(), TIMES, -EMBED, given(False, False, False)), one)


def test_latents_are_scaled_by_channel_and_come_back():
    network = make(text_length=0)
    network.mean.copy_(torch.arange(4.0))
    network.std.copy_(torch.arange(1.0, 5.0))
    pictures = noised()
    scaled = network.scale(pictures)
    torch.testing.assert_close(scaled[:, 2], (pictures[:, 2] - 2) / 3)
    torch.testing.assert_close(network.unscale(scaled), pictures)


def test_an_upsampler_reads_the_small_picture_and_the_noise_in_it():
    pytest.importorskip("diffusers")
    config = DiffusionDecoderConfig(kind="upsampler", image_size=16, low_size=8, channels=(8, 8))
    network = PictureUpsampler(config)
    low, levels = torch.rand(3, 3, 8, 8), torch.tensor([0.0, 0.05, 0.1])
    with torch.no_grad():
        found = network(noised(16, 3), TIMES, low, levels)
        assert found.shape == (3, 3, 16, 16)
        for other in ((-low, levels), (low, levels.flip(0))):
            assert (network(noised(16, 3), TIMES, *other) - found)[0].abs().max() > 1e-5


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = DiffusionDecoderConfig(**SHAPE)
    with pytest.raises(UserError, match=r"diffusers is not installed; run: pip install diffusers .*'\.\[unclip\]'"):
        PictureDenoiser(config, channels=3, side=8, embed_dim=4, text_vocab=1, pad_id=0)
