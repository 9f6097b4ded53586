"""Pictures drawn by a prior: each candidate has an image embedding of its own."""

import dataclasses
import shutil
import sys

import pytest
import torch
from helpers.priors import add_prior, take_embeddings

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny checkpoint with an autoregressive prior and a transformer that takes embeddings."""
    return add_prior(take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("prior") / "model")), "ar")


@pytest.fixture(scope="module")
def dalle(folder):
    return DalleMini.from_pretrained(folder, "cpu")


def ids(result):
    return [candidate.image_ids.tolist() for candidate in result]


def test_each_candidate_is_drawn_by_what_the_prior_draws_for_its_seed(dalle):
    seeds = [5, 8, 13]
    together = dalle.generate("a red heart", seeds=seeds, keep=3, rank="none", prior="ar")
    for seed, image_ids in zip(seeds, ids(together), strict=True):
        (embed,) = dalle.prior.draw(["a red heart"], [seed])
        alone = dalle.generate("a red heart", seeds=[seed], rank="none", image_embed=embed)
        assert ids(alone) == [image_ids]
        assert ids(dalle.generate("a red heart", seeds=[seed], rank="none", prior="ar")) == [image_ids]
    assert together.settings["sampling"]["prior"] == "ar"


def test_auto_is_the_prior_of_the_checkpoint_where_there_is_nothing_else_to_draw_by(dalle):
    arguments = {"seeds": [1, 2], "keep": 2, "rank": "none"}
    assert ids(dalle.generate("a cat", **arguments)) == ids(dalle.generate("a cat", **arguments, prior="ar"))
    without = dalle.generate("a cat", **arguments, prior="none")
    assert ids(without) != ids(dalle.generate("a cat", **arguments))
    embed = dalle.prior.draw(["a star"], [0])[0]
    for other in ({"image_embed": embed}, {"tile": True}):
        assert dalle.generate("a cat", **arguments, **other).settings["sampling"]["prior"] == "none"
    assert dalle.generate("", **arguments).settings["sampling"]["prior"] == "none"


@pytest.mark.parametrize("recommended", ["ar", "text"])
def test_a_recommended_prior_gives_way_to_what_excludes_it(dalle, monkeypatch, recommended):
    embed, arguments = dalle.prior.draw(["a star"], [0])[0], {"seeds": [1, 2], "keep": 2, "rank": "none"}
    requests = ({"image_embed": embed}, {"tile": True})
    expected = [ids(dalle.generate("a cat", **arguments, **other, prior="none")) for other in requests]
    monkeypatch.setattr(dalle, "sampling", dataclasses.replace(dalle.sampling, prior=recommended))
    assert [ids(dalle.generate("a cat", **arguments, **other)) for other in requests] == expected
    found = dalle.generate("a cat", **arguments)
    assert found.settings["sampling"]["prior"] == recommended
    assert ids(found) == ids(dalle.generate("a cat", **arguments, prior=recommended))
    with pytest.raises(UserError, match=f"expected image_embed or prior {recommended}, got both"):
        dalle.generate("a cat", **arguments, image_embed=embed, prior=recommended)


def test_a_model_that_recommends_a_prior_varies_pictures(run, folder, tmp_path):
    model, other = shutil.copytree(folder, tmp_path / "model"), tmp_path / "picture.png"
    path = model / "config.yaml"
    path.write_text(path.read_text().replace("prior: auto", "prior: ar"))
    assert DalleMini.from_pretrained(model, "cpu").sampling.prior == "ar"
    run("sample", "a red heart", "-m", model, "-n", "2", "-k", "1", "-o", other)
    run("vary", other, "-m", model, "-n", "2", "-k", "2", "-o", tmp_path / "varied.png")
    run("sample", "flat", "--like", other, "-m", model, "-n", "2", "-k", "2", "-o", tmp_path / "like.png")


def test_embeddings_that_are_drawn_count_in_the_memory(dalle, monkeypatch):
    asked = {}

    def check(needed, what, advice):
        asked[what] = needed

    monkeypatch.setattr("dalle_mini_impl.pipeline.request.check_memory", check)
    needs = []
    for arguments in ({"prior": "none"}, {"prior": "ar"}, {}, {"prior": "text"}, {"image_embed": torch.ones(19)}):
        dalle.request("a cat", candidates=1000, **arguments)
        needs.append(asked["1000 candidates"])
    numbers = dalle.prior.draw(["a cat"], [0]).tolist()[0]
    each = sum(map(sys.getsizeof, numbers)) + 8 * len(numbers)  # floats, and where the list has them
    assert [need - needs[0] for need in needs] == [0, 1000 * each, 1000 * each, 0, 0]


def test_the_text_s_own_embedding_can_be_drawn_directly(dalle):
    embed = dalle.scorer.embed_texts(["a cat"])[0]
    expected = dalle.generate("a cat", seeds=[3, 4], keep=2, rank="none", image_embed=embed)
    assert ids(dalle.generate("a cat", seeds=[3, 4], keep=2, rank="none", prior="text")) == ids(expected)


@pytest.mark.parametrize("prior", ["none", "text", "ar", "auto"])
def test_what_a_picture_records_draws_it_again(dalle, prior):
    result = dalle.generate("a yellow star", candidates=6, keep=3, prior=prior)
    (request,) = parse_recorded(result.metadata(), "a.png").requests()
    again = dalle.generate(**request)
    assert ids(again) == ids(result)
    assert again.metadata() == result.metadata()


def test_candidates_do_not_depend_on_chunks_pruning_or_other_prompts(dalle):
    arguments = {"candidates": 7, "keep": 7, "rank": "none", "prior": "ar"}
    expected = ids(dalle.generate("a red heart", **arguments))
    assert ids(dalle.generate("a red heart", **arguments, chunk=3)) == expected
    many = list(dalle.generate_many(["a star", "a red heart", {"prompt": "a cat", "prior": "none"}], **arguments))
    assert ids(many[1]) == expected
    pruned = dalle.generate("a red heart", **{**arguments, "keep": 1, "rank": "likelihood"}, prune=True)
    assert ids(pruned)[0] in expected
    *_, last = dalle.stream_previews("a red heart", **arguments)
    assert ids(last.result) == expected


def test_embeddings_are_drawn_once_for_what_is_drawn_and_not_where_a_request_is_checked(dalle, monkeypatch):
    drawn, draw = [], Prior.draw
    monkeypatch.setattr(Prior, "draw", lambda self, texts, seeds: drawn.extend(texts) or draw(self, texts, seeds))
    request = dalle.request("", candidates=3, prior="ar")
    assert drawn == []
    assert len(request.ids.image_embeds) == 3
    drawn.clear()
    dalle(["a cat", "a star"], num_images_per_prompt=2, prior="ar")
    assert drawn == ["a cat"] * 2 + ["a star"] * 2
    drawn.clear()
    list(dalle.stream_previews("a house", candidates=2, prior="ar"))
    assert drawn == ["a house"] * 2


def test_the_command_draws_by_a_prior_and_remakes_its_picture(run, folder, tmp_path):
    grid, again = tmp_path / "grid.png", tmp_path / "again.png"
    run("sample", "a red heart", "-m", folder, "-n", "4", "-k", "2", "--prior", "ar", "-o", grid)
    run("sample", "--from", grid, "-m", folder, "-o", again)
    assert again.read_bytes() == grid.read_bytes()


def test_a_diffusion_prior_is_used_in_the_same_way(tiny_model, tmp_path):
    pytest.importorskip("diffusers")
    dalle = DalleMini.from_pretrained(
        add_prior(take_embeddings(shutil.copytree(tiny_model, tmp_path / "model")), "diffusion"), "cpu"
    )
    result = dalle.generate("a red heart", seeds=[5, 8], keep=2, rank="none")
    assert result.settings["sampling"]["prior"] == "diffusion"
    embed = dalle.prior.draw(["a red heart"], [8])[0]
    alone = dalle.generate("a red heart", seeds=[8], rank="none", image_embed=embed)
    assert ids(alone) == ids(result)[1:]


def test_priors_that_cannot_be_used_are_refused(dalle, tiny_dalle, folder, tmp_path):
    for arguments, message in (
        ({"prior": "diffusion"}, "expected a checkpoint with a prior of kind diffusion, got one of kind ar"),
        ({"prior": "gan"}, "expected prior auto, none, text, diffusion or ar, got 'gan'"),
        ({"prior": "ar", "image_embed": torch.ones(19)}, "expected image_embed or prior ar, got both"),
        ({"prior": "text", "tile": True}, "expected prior none with tile, got text"),
    ):
        with pytest.raises(UserError, match=message):
            dalle.generate("a cat", candidates=1, **arguments)
    with pytest.raises(UserError, match="expected a model with positions for an image embedding, got one without"):
        tiny_dalle.generate("a cat", candidates=1, prior="text")
    other = shutil.copytree(folder, tmp_path / "model")
    (other / "prior.safetensors").unlink()
    with pytest.raises(
        UserError, match="expected a checkpoint with a prior of kind ar, got none over the embeddings of"
    ):
        DalleMini.from_pretrained(other, "cpu").generate("a cat", candidates=1, prior="ar")
