"""Pictures drawn of image embeddings by diffusion, their inversion, and their enlargement."""

import dataclasses
import shutil
import sys

import pytest
import torch
from helpers.priors import add_diffusion_decoder, add_upsampler
from PIL import Image

from dalle_mini_impl.checkpoint.parts import read_part, save_tensors
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.unclip.diffusion_decoder import NOISE, DiffusionDecoder, Wanted
from dalle_mini_impl.unclip.schedule import make_scheduler, noise_generator
from dalle_mini_impl.unclip.solve import TOLERANCE
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("diffusers")

DDIM = SamplingConfig(sampler="ddim", steps=4, guidance=1.0)


@pytest.fixture(scope="module")
def make(tiny_model, tmp_path_factory, scorer):
    """A function that makes a diffusion decoder with random weights."""

    def made(**settings):
        folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("decoder") / "model")
        return DiffusionDecoder.from_pretrained(add_diffusion_decoder(folder, **settings), scorer)

    return made


@pytest.fixture(scope="module")
def latents(make):
    return make(text_length=5)


@pytest.fixture(scope="module")
def pixels(make):
    return make(space="pixels", image_size=8)


def embeddings(decoder, count, seed=0):
    return torch.randn(count, decoder.network.embed_dim, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "ddpm"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_picture_follows_from_its_own_seed_and_embedding(make, sampler, prediction):
    decoder = make(space="pixels", image_size=8, prediction=prediction)
    embeds, sampling = embeddings(decoder, 3), dataclasses.replace(DDIM, sampler=sampler, guidance=1.5)
    together = decoder.draw(Wanted(embeds), [4, 5, 6], sampling).pixels
    assert together.isfinite().all()
    alone = decoder.draw(Wanted(embeds[1:2]), [5], sampling).pixels
    torch.testing.assert_close(together[1:2], alone, atol=1e-3, rtol=0)
    other = decoder.draw(Wanted(embeds[1:2]), [6], sampling).pixels
    assert (other - alone).abs().max() > 0.05


def test_embeddings_captions_and_negative_captions_count_with_guidance(latents):
    noise = torch.randn(1, latents.network.channels, *[latents.network.side] * 2)

    def drawn(embeds, caption="", negative="", guidance=2.0):
        sampling = dataclasses.replace(DDIM, guidance=guidance)
        return latents.denoise(Wanted(embeds, caption, negative), noise, sampling, [torch.Generator()])

    (first, second) = embeddings(latents, 2)
    values = [drawn([first]), drawn([second]), drawn([()]), drawn([first], "a cat"), drawn([first], "", "a dog")]
    values += [drawn([first], guidance=1.0)]
    for number, value in enumerate(values):
        for other in values[:number]:
            assert (value - other).abs().max() > 1e-4
    torch.testing.assert_close(drawn([[2 * one for one in first]]), values[0])  # of any length
    torch.testing.assert_close(drawn([first], "a cat", "a dog", 1.0), drawn([first], "a cat", "", 1.0))


def test_diffusers_own_loop_draws_the_same_picture(pixels):
    embeds = embeddings(pixels, 1)
    scheduler = make_scheduler("ddim", "v_prediction", 4)
    x = torch.randn(1, 3, 8, 8, generator=noise_generator(7, NOISE))
    embed = torch.nn.functional.normalize(torch.tensor(embeds), dim=-1)
    context, unet = pixels.network.context, pixels.network.unet
    with torch.no_grad():
        for time in scheduler.timesteps:
            added, positions = context(embed, None, None)
            found = unet(x, time, positions, class_labels=added).sample
            x = scheduler.step(found, time, x).prev_sample
    torch.testing.assert_close(pixels.draw(Wanted(embeds), [7], DDIM).pixels, x.clamp(-1, 1), atol=1e-5, rtol=0)


def test_latents_are_quantised_to_the_nearest_ids(latents):
    ids = torch.randint(latents.image_tokenizer.codebook_size, (2, *[latents.network.side] * 2))
    noise = 1e-3 * torch.randn(2, latents.network.channels, *[latents.network.side] * 2)
    drawn = latents.finish(latents.from_ids(ids) + noise, [0, 1])
    assert torch.equal(drawn.image_ids, ids)
    assert torch.equal(drawn.pixels, latents.image_tokenizer.decode(ids))


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_what_is_inverted_is_drawn_again(make, kind, guidance, latents, pixels):
    """Each step is solved up to a residual; the steps after it make an error larger by at most their own factor.

    With v-predictions a step turns a picture x and its prediction v(x) by an angle: x cos + v(x) sin. So an error grows
    by at most cos + L sin, where L is the largest ratio of a difference of predictions to one of pictures.
    """
    decoder = latents if kind == "latents" else pixels
    sampling = dataclasses.replace(DDIM, steps=6, guidance=guidance)
    picture = decoder.encode(Image.linear_gradient("L").rotate(30))
    wanted = Wanted(embeddings(decoder, 1))
    noise = decoder.invert(picture, wanted, sampling)
    again = decoder.denoise(wanted, noise, sampling, [torch.Generator()])

    scheduler = make_scheduler("ddim", "v_prediction", 6)
    predict = decoder._predict(wanted, guidance)
    generator = torch.Generator().manual_seed(0)
    bound, one, zero = 0.0, torch.ones(()), torch.zeros(())
    for time in scheduler.timesteps:
        ratios = []
        for _ in range(5):
            step = 1e-3 * torch.randn(noise.shape, generator=generator)
            with torch.no_grad():
                ratios.append(float((predict(noise + step, time) - predict(noise, time)).norm() / step.norm()))
        along, across = (abs(float(scheduler.step(b, time, a).prev_sample)) for a, b in ((one, zero), (zero, one)))
        residual = TOLERANCE * float(max(picture.abs().max(), noise.abs().max())) * noise.numel() ** 0.5
        bound = bound * (along + across * 4 * max(ratios)) + 2 * residual
    assert float((again - picture).norm()) <= bound
    assert bound < 0.05 * float(picture.norm())
    if kind == "latents":
        ids = decoder.finish(again, [0]).image_ids
        assert torch.equal(ids, decoder.finish(picture, [0]).image_ids)


def test_an_upsampler_enlarges_what_is_drawn(tiny_model, tmp_path, scorer):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    add_upsampler(add_diffusion_decoder(folder, space="pixels", image_size=8), 8, 16)
    decoder = DiffusionDecoder.from_pretrained(folder, scorer)
    embeds = embeddings(decoder, 2)
    drawn = decoder.draw(Wanted(embeds), [1, 2], DDIM).pixels
    assert (decoder.size, drawn.shape) == (16, (2, 3, 16, 16))
    alone = decoder.draw(Wanted(embeds[1:]), [2], DDIM).pixels
    torch.testing.assert_close(drawn[1:], alone, atol=1e-3, rtol=0)
    add_upsampler(folder, 4, 16)
    with pytest.raises(UserError, match=r"expected an upsampler of pictures of 8 pixels, .* got one of 4"):
        DiffusionDecoder.from_pretrained(folder, scorer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected 1 to 1000 steps, got 0; change it"),
        ({"steps": 1001}, "expected 1 to 1000 steps, got 1001"),
        ({"sampler": "euler"}, "expected sampler ddpm, ddim, dpmsolver.*, got 'euler'"),
        ({"eta": 0.5, "sampler": "ddpm"}, "expected eta from 0 to 1, and 0 with samplers other than ddim"),
        ({"eta": 2.0}, "expected eta from 0 to 1"),
        ({"guidance": -1.0}, "expected a guidance of 0 or more, got -1.0"),
    ],
)
def test_settings_that_nothing_can_be_drawn_with_are_refused(pixels, settings, message):
    with pytest.raises(UserError, match=message):
        pixels.draw(Wanted(embeddings(pixels, 1)), [0], dataclasses.replace(DDIM, **settings))


def test_embeddings_and_captions_that_do_not_fit_are_refused(pixels):
    with pytest.raises(UserError, match=r"expected an image embedding of .* numbers"):
        pixels.draw(Wanted([[1.0]]), [0], DDIM)
    with pytest.raises(UserError, match="expected one seed for each of some embeddings, got 1 embeddings and 2 seeds"):
        pixels.draw(Wanted(embeddings(pixels, 1)), [0, 1], DDIM)
    with pytest.raises(UserError, match="expected a diffusion decoder with captions for negative, got one without"):
        pixels.draw(Wanted(embeddings(pixels, 1), "", "a dog"), [0], DDIM)


def test_other_parts_than_those_of_training_are_refused(tiny_model, tmp_path, scorer, other_scorer):
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"))
    with pytest.raises(UserError, match=r"was trained with embeddings of scorer \w{16}, but those"):
        DiffusionDecoder.from_pretrained(folder, Scorer.from_pretrained(other_scorer))
    with pytest.raises(UserError, match=r"has no diffusion_decoder\.safetensors; train that part first"):
        DiffusionDecoder.from_pretrained(tiny_model, scorer)
    assert DiffusionDecoder.find(tiny_model, scorer, None) is None


def test_a_decoder_of_latents_goes_with_a_tuned_image_tokenizer_of_the_same_ids(tiny_model, tmp_path, scorer):
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"))
    part = read_part(folder, "image_tokenizer")
    tensors = {name: value + 1 if name.startswith("decoder.") else value for name, value in part.tensors.items()}
    save_tensors(folder, "image_tokenizer", tensors, part.config, {"image_ids": part.identity})
    assert DiffusionDecoder.from_pretrained(folder, scorer).image_tokenizer is not None
    with pytest.raises(UserError, match="without parts that need its image_tokenizer"):
        save_tensors(folder, "image_tokenizer", tensors, part.config, {})


def test_loading_without_diffusers_names_the_extra(tiny_model, tmp_path, scorer, monkeypatch):
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"diffusers is not installed; run: pip install diffusers .*'\.\[unclip\]'"):
        DiffusionDecoder.from_pretrained(folder, scorer)
