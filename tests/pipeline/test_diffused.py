"""Pictures that a diffusion decoder draws in place of the transformer."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers.priors import add_diffusion_decoder, add_prior
from PIL import Image

from dalle_mini_impl.cli.sampling_options import progress_total
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.manipulations import edit, make_edit, mix, parse_edit, vary
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.unclip.diffusion_decoder import Wanted
from dalle_mini_impl.util import memory
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images

FEW = {"candidates": 4, "keep": 3, "decoder": "diffusion"}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny checkpoint with an autoregressive prior and a diffusion decoder of latents with captions."""
    pytest.importorskip("diffusers")
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("diffused") / "model")
    return add_diffusion_decoder(add_prior(folder, "ar"), text_length=9, sampling={"guidance": 1.5})


@pytest.fixture(scope="module")
def dalle(folder):
    return DalleMini.from_pretrained(folder, "cpu")


def shown(result):
    return [candidate.image.tobytes() for candidate in result]


def by_seed(result):
    return {candidate.seed: candidate for candidate in result}


def test_pictures_are_those_of_the_decoder_with_its_own_settings_and_ranked_by_the_scorer(dalle):
    embed = torch.randn(19, generator=torch.Generator().manual_seed(0))
    result = dalle.generate("a cat", seeds=[3, 4, 5], keep=3, decoder="diffusion", image_embed=embed)
    settings = result.settings["sampling"]
    assert (settings["decoder"], settings["rank"], settings["prior"]) == ("diffusion", "clip", "none")
    assert (settings["steps"], settings["guidance"], settings["sampler"]) == (4, 1.5, "ddim")
    found = by_seed(result)
    for seed in (3, 4, 5):
        wanted, sampling = Wanted([embed.tolist()], "a cat"), SamplingConfig(steps=4, guidance=1.5)
        (image_ids,) = dalle.diffusion_decoder.draw(wanted, [seed], sampling).image_ids
        assert torch.equal(found[seed].image_ids, image_ids)
        assert found[seed].image.tobytes() == dalle.decode(image_ids[None])[0].tobytes()
        assert found[seed].score == pytest.approx(float(dalle.scorer.score([found[seed].image], "a cat")[0]), abs=1e-4)
    scores = [candidate.score for candidate in result]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("prior", ["none", "text", "ar", "auto"])
def test_what_a_picture_records_draws_it_again(dalle, prior):
    result = dalle.generate("a yellow star", **FEW, prior=prior, steps=3, eta=0.5)
    assert result.settings["sampling"]["prior"] == ("ar" if prior == "auto" else prior)
    (request,) = parse_recorded(result.metadata(), "a.png").requests()
    again = dalle.generate(**request)
    assert shown(again) == shown(result)
    assert again.settings == result.settings
    for one, other in zip(again, result, strict=True):
        assert (one.seed, one.score) == (other.seed, pytest.approx(other.score, abs=1e-5))


def test_without_a_prior_the_text_s_own_embedding_is_drawn(tiny_model, tmp_path):
    pytest.importorskip("diffusers")
    dalle = DalleMini.from_pretrained(add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model")), "cpu")
    result = dalle.generate("a cat", **FEW)
    assert result.settings["sampling"]["prior"] == "text"
    embed = dalle.scorer.embed_texts(["a cat"])[0]
    assert shown(dalle.generate("a cat", **FEW, image_embed=embed)) == shown(result)
    with pytest.raises(UserError, match="expected a diffusion decoder with captions for negative, got one without"):
        dalle.generate("a cat", **FEW, negative="a dog")


def test_prompts_of_both_decoders_come_back_in_their_order(dalle):
    prompts = ["a cat", {"prompt": "a star", "decoder": "tokens"}, "a house", {"prompt": "a cat", "decoder": "tokens"}]
    results = list(dalle.generate_many(prompts, **FEW))
    assert [result.prompt for result in results] == ["a cat", "a star", "a house", "a cat"]
    for prompt, result in zip(prompts, results, strict=True):
        given = {"prompt": prompt} if isinstance(prompt, str) else prompt
        assert shown(dalle.generate(**{**FEW, **given})) == shown(result)


def test_pictures_depend_on_neither_chunk_nor_preview_and_progress_counts_their_steps(dalle):
    counted = []
    result = dalle.generate("a cat", **FEW, progress=counted.append)
    assert sum(counted) == 4 * 4
    chunked = by_seed(dalle.generate("a cat", **{**FEW, "keep": 4}, chunk=3))
    for candidate in result:
        assert torch.equal(candidate.image_ids, chunked[candidate.seed].image_ids)
    *_, last = dalle.stream_previews("a cat", **FEW)
    assert shown(last.result) == shown(result)


def test_pixels_have_no_ids(tiny_model, tmp_path):
    pytest.importorskip("diffusers")
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"), space="pixels", image_size=8)
    (best, *_) = DalleMini.from_pretrained(folder, "cpu").generate("a cat", **FEW, transparent=True)
    assert (best.image.size, best.image_ids.shape) == ((8, 8), (0, 0))


def test_variations_and_mixtures_are_drawn_by_the_decoder(dalle):
    picture = Image.linear_gradient("L")
    assert len(set(shown(vary(dalle, picture, **FEW)))) == 3
    results = mix(dalle, picture, "a red heart", steps=3, decoder="diffusion")
    expected = dalle.generate("", seeds=[0], image_embed=results[1].image_embed, decoder="diffusion", rank="none")
    assert shown(results[1]) == shown(expected)
    assert shown(results[0]) != shown(results[2])


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_an_edit_begins_with_the_picture_and_its_record_makes_it_again(tiny_model, tmp_path, space):
    pytest.importorskip("diffusers")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    # As before training, no embedding counts much, so there are many steps to see a change.
    add_diffusion_decoder(folder, space=space, image_size=8, sampling={"steps": 8})
    dalle = DalleMini.from_pretrained(folder, "cpu")
    picture = Image.linear_gradient("L").rotate(20)
    found = edit(dalle, picture, "a cat", "a red heart", theta=1.0, steps=3, decoder="diffusion")
    decoder = dalle.diffusion_decoder
    first = decoder.finish(decoder.encode(picture), [0])
    assert torch.equal(found.image_ids[0], first.image_ids[0])
    (expected,) = to_images(first.pixels)
    difference = np.asarray(found.images[0]).astype(int) - np.asarray(expected)
    assert abs(difference).max() <= (space == "pixels")  # rounding
    assert np.asarray(found.images[2]).tobytes() != np.asarray(found.images[0]).tobytes()
    record = parse_edit(json.loads(json.dumps(found.metadata)), "a.png").edit
    again = make_edit(dalle, record)
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in found.images]
    wrong = {
        "latents": [
            ({"image_ids": ((1, 2),)}, "expected 3 rows of 3 image ids in the record"),
            ({"image_ids": ((10**30,) * 3,) * 3}, "expected image ids below 61 in the record"),
        ],
        "pixels": [({"pixels": "?"}, "expected a PNG in base64 as pixels in the record of an edit")],
    }[space]
    wrong += [({"decoder": "gan"}, "expected decoder tokens or diffusion, got 'gan'")]
    wrong += [({"sampler_steps": 0}, "expected 1 to 1000 steps, got 0")]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            make_edit(dalle, dataclasses.replace(record, **change))


def test_the_command_remakes_its_picture(run, folder, tmp_path):
    grid, again = tmp_path / "grid.png", tmp_path / "again.png"
    options = ["-m", folder, "-n", "4", "-k", "2", "--decoder", "diffusion", "--sampler", "dpmsolver++", "--steps", "3"]
    run("sample", "a red heart", *options, "-o", grid)
    run("sample", "--from", grid, "-m", folder, "-o", again)
    with Image.open(grid) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()


def test_settings_of_a_sampler_are_refused_with_the_transformer(refused, folder):
    for option, value in (("--steps", "3"), ("--sampler", "ddim"), ("--eta", "0.5")):
        line = refused("sample", "a cat", "-m", folder, "--decoder", "tokens", option, value)
        assert f"expected --decoder diffusion with {option}, got tokens" in line
    assert "--steps" in refused("sample", "a cat", "-m", folder, "--decoder", "diffusion", "--steps", "0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "gan"}, "expected decoder tokens or diffusion, got 'gan'"),
        ({"rank": "likelihood"}, "expected rank clip or none with decoder diffusion, got likelihood"),
        ({"rank": "both"}, "expected rank clip or none with decoder diffusion, got both"),
        ({"tile": True}, "expected decoder tokens with tile, got diffusion"),
        ({"prune": True}, "expected decoder tokens with prune, got diffusion"),
        ({"steps": 0}, "expected 1 to 1000 steps, got 0"),
        ({"sampler": "euler"}, "expected sampler ddpm, ddim"),
        ({"eta": 0.5, "sampler": "ddpm"}, "expected eta from 0 to 1, and 0 with samplers other than ddim"),
        ({"image_embed": [1.0, 2.0]}, r"expected an image embedding of 19 numbers, .* got 2"),
        ({"prior": "diffusion"}, "expected a checkpoint with a prior of kind diffusion, got one of kind ar"),
    ],
)
def test_requests_that_cannot_be_drawn_are_refused(dalle, settings, message):
    with pytest.raises(UserError, match=message):
        dalle.generate("a cat", **{**FEW, **settings})


def test_checkpoints_without_decoder_and_canvases_are_refused(dalle, tiny_dalle):
    with pytest.raises(UserError, match=r"expected a checkpoint with a diffusion decoder, .* got one without"):
        tiny_dalle.generate("a cat", **FEW)
    with pytest.raises(UserError, match="expected decoder tokens to redraw a part of a picture, got diffusion"):
        dalle.complete(Image.linear_gradient("L"), rows=1, **FEW)
    with pytest.raises(UserError, match="expected decoder tokens with callback_on_step_end, got diffusion"):
        dalle("a cat", decoder="diffusion", callback_on_step_end=lambda *_: {})


def test_settings_of_the_diffusion_decoder_are_refused_with_a_recommended_transformer(dalle, refused, folder):
    for name, value in (("steps", 3), ("sampler", "ddim"), ("eta", 0.0)):
        with pytest.raises(UserError, match=f"expected decoder diffusion with {name}, got tokens"):
            dalle.generate("a cat", candidates=2, keep=2, **{name: value})
    assert "expected decoder diffusion with steps" in refused("sample", "a cat", "-m", folder, "--steps", "3")


def test_a_recommended_diffusion_decoder_draws_edits_but_no_parts_of_pictures(dalle, monkeypatch):
    monkeypatch.setattr(dalle, "sampling", dataclasses.replace(dalle.sampling, decoder="diffusion"))
    picture, counted = Image.linear_gradient("L"), []
    assert dalle.generate("a cat", candidates=2, keep=2).settings["sampling"]["decoder"] == "diffusion"
    result = dalle.complete(picture, rows=1, candidates=2, keep=2)
    assert result.settings["sampling"]["decoder"] == "tokens"
    options = {"steps": 2, "sampler_steps": 3, "decoder": None}
    found = edit(dalle, picture, "a cat", "a dog", **options, progress=counted.append)
    assert found.metadata["edit"]["decoder"] == "diffusion"
    assert sum(counted) >= 3 * 3  # at least once for each step of the inversion and of both pictures


def test_more_pixels_than_fit_into_the_memory_are_refused_before_they_are_drawn(dalle, monkeypatch):
    size, count = dalle.diffusion_decoder.size, 1000
    monkeypatch.setattr(memory, "available_memory", lambda: 12 * size**2 * count)
    with pytest.raises(UserError, match="1000 candidates"):
        dalle.generate("a cat", candidates=count, keep=1, decoder="diffusion")


@pytest.fixture(scope="module", params=["latents", "pixels"])
def alone(request, tiny_model, tmp_path_factory):
    """A folder with the parts that DALL-E 2 needs and no other."""
    pytest.importorskip("diffusers")
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("alone") / "model")
    shape = {"space": "pixels", "image_size": 8} if request.param == "pixels" else {}
    add_diffusion_decoder(add_prior(folder, "ar"), text_length=9, **shape)
    (folder / "transformer.safetensors").unlink()
    if request.param == "pixels":
        (folder / "image_tokenizer.safetensors").unlink()
    return folder


def test_a_checkpoint_without_a_transformer_draws_varies_mixes_and_edits(alone, folder):
    dalle, whole = (DalleMini.from_pretrained(one, "cpu") for one in (alone, folder))
    few = {"candidates": 3, "keep": 2, "seed": 5}
    result = dalle.generate("a cat", **few)
    assert (result.settings["sampling"]["decoder"], result.settings["precision"]) == ("diffusion", "fp32")
    if dalle.diffusion_decoder.image_tokenizer:  # the same parts with a transformer beside them
        assert shown(result) == shown(whole.generate("a cat", decoder="diffusion", guidance=2.0, **few))
    assert shown(dalle.generate("a cat", keep=1, seeds=[result[1].seed])) == shown(result)[1:]
    picture = result[0].image
    assert len(vary(dalle, picture, candidates=2, keep=2)) == 2
    assert len(mix(dalle, picture, "a red heart", steps=3)) == 3
    assert len(edit(dalle, picture, "a cat", "a red heart", steps=2).images) == 2
    side = dalle.diffusion_decoder.size
    torch.manual_seed(1)
    first = dalle("a cat", num_inference_steps=2, height=side, width=side).images[0]
    torch.manual_seed(1)
    assert first.tobytes() == dalle("a cat", steps=2).images[0].tobytes()
    assert dalle.device == torch.device("cpu")


def test_what_needs_a_transformer_says_so_where_there_is_none(alone, refused, run, tmp_path):
    dalle = DalleMini.from_pretrained(alone, "cpu")
    for ask in (
        lambda: dalle.generate("a cat", decoder="tokens"),
        lambda: dalle.complete(Image.linear_gradient("L"), rows=1),
        lambda: dalle.complete_text("a"),
        lambda: dalle.log_likelihood("a cat", torch.zeros(1, 3, 5, dtype=torch.int64)),
    ):
        with pytest.raises(
            UserError, match=r"expected a checkpoint with (a transformer|an image tokenizer), got .* alone"
        ):
            ask()
    without_scorer = shutil.copytree(alone, tmp_path / "without")
    (without_scorer / "scorer.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no scorer\.safetensors; train that part first"):
        DalleMini.from_pretrained(without_scorer, "cpu")
    with pytest.raises(UserError, match="expected precision auto or fp32 without a transformer, got 'int8'; leave it"):
        DalleMini.from_pretrained(alone, "cpu", "int8")
    run("sample", "a cat", "-m", alone, "-n", "2", "-k", "1", "--out", tmp_path / "a.png", "--save-dir", tmp_path / "d")
    drawn = next((tmp_path / "d").glob("*.png"))
    run("sample", "--from", drawn, "-m", alone, "--out", tmp_path / "b.png", "--save-dir", tmp_path / "again")
    assert Image.open(tmp_path / "again" / drawn.name).tobytes() == Image.open(drawn).tobytes()
    assert "expected a checkpoint with a transformer" in refused("write", "a", "-m", alone)


@pytest.mark.parametrize("decoder", ["diffusion", "tokens"])
def test_what_no_ranking_would_keep_is_not_drawn(dalle, decoder):
    options = {"candidates": 5, "keep": 2, "decoder": decoder, "seed": 3}
    counted = []
    result = dalle.generate("a cat", rank="none", progress=counted.append, **options)
    assert sum(counted) == 2 * (4 if decoder == "diffusion" else 15)
    every = by_seed(dalle.generate("a cat", **{**options, "keep": 5}))
    assert [every[candidate.seed].image.tobytes() for candidate in result] == shown(result)
    arguments = {**options, "rank": "none", "seeds": None}
    assert progress_total(dalle, arguments) == sum(counted)
    assert progress_total(dalle, {**arguments, "rank": "clip"}) == sum(counted) / 2 * 5


def test_tokens_are_drawn_without_diffusers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    dalle = DalleMini.from_pretrained(folder, "cpu")
    assert len(dalle.generate("a cat", candidates=2, keep=2)) == 2
    with pytest.raises(UserError, match=r"diffusers is not installed; run: pip install diffusers"):
        dalle.generate("a cat", **FEW)
