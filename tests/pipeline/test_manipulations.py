"""Variations, interpolations, text differences and views of principal components, through image embeddings."""

import dataclasses
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from helpers.priors import add_prior, take_embeddings
from PIL import Image

from dalle_mini_impl.pipeline.canvas import encode_picture
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.manipulations import component_views, edit, embed, make_edit, mix, parse_edit, vary
from dalle_mini_impl.pipeline.picture_embed import to_text
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.unclip.directions import slerp
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny checkpoint with a transformer that takes embeddings."""
    return take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("told") / "model"))


@pytest.fixture(scope="module")
def dalle(folder):
    return DalleMini.from_pretrained(folder, "cpu")


def picture(seed=0, mode="RGB", size=(31, 22)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def ids(results):
    return [result[0].image_ids.tolist() for result in results]


def test_variations_are_drawn_of_the_picture_s_embedding(dalle):
    found = vary(dalle, picture(), seeds=[1, 2, 3], keep=3, rank="none")
    expected = dalle.generate("", seeds=[1, 2, 3], keep=3, rank="none", image_embed=embed(dalle, picture()))
    assert [one.image_ids.tolist() for one in found] == [one.image_ids.tolist() for one in expected]
    assert len({str(one.image_ids.tolist()) for one in found}) == 3


def test_a_mix_goes_from_one_embedding_to_the_other_with_the_same_random_numbers(dalle):
    results = mix(dalle, picture(1), picture(2), steps=5, seed=9)
    first, last = embed(dalle, picture(1)), embed(dalle, picture(2))
    for number, result in enumerate(results):
        torch.testing.assert_close(torch.tensor(result.image_embed), slerp(first, last, number / 4))
        alone = dalle.generate("", seeds=[9], rank="none", image_embed=result.image_embed)
        assert ids([alone]) == ids([result])
    assert ids(results) == ids(mix(dalle, picture(1), picture(2), steps=5, seed=9))
    assert ids(results) != ids(mix(dalle, picture(1), picture(2), steps=5, seed=10))
    assert ids(results)[0] != ids(results)[-1]


def test_ends_of_a_mix_may_be_texts_which_a_prior_embeds_where_there_is_one(dalle, folder, tmp_path):
    results = mix(dalle, "a red heart", picture(2), steps=2)
    torch.testing.assert_close(torch.tensor(results[0].image_embed), dalle.scorer.embed_texts(["a red heart"])[0])
    other = DalleMini.from_pretrained(add_prior(shutil.copytree(folder, tmp_path / "model"), "ar"), "cpu")
    results = mix(other, "a red heart", picture(2), steps=2, seed=4)
    torch.testing.assert_close(torch.tensor(results[0].image_embed), other.prior.draw(["a red heart"], [4])[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_an_edit_begins_with_the_picture_id_for_id(dalle, mode):
    image = picture(3, mode)
    found = edit(dalle, image, "a cat", "a red heart", theta=0.4, steps=3)
    _, expected = encode_picture(dalle.image_tokenizer, dalle.stream.config.grid, image)
    assert torch.equal(found.image_ids[0], expected)
    assert found.images[0].tobytes() == dalle.decode(expected[None])[0].tobytes()
    assert len(found.images) == 3
    assert not torch.equal(found.image_ids[2], expected)


def test_the_end_of_an_edit_is_rotated_by_theta_towards_the_difference_of_the_texts(dalle):
    steps = {theta: edit(dalle, picture(3), "a cat", "a star", theta=theta, steps=2) for theta in (0, 0.2, 0.4)}
    assert torch.equal(steps[0].image_ids[0], steps[0].image_ids[1])
    both = edit(dalle, picture(3), "a cat", "a star", theta=0.4, steps=3)
    assert torch.equal(both.image_ids[1], steps[0.2].image_ids[1])
    assert torch.equal(both.image_ids[2], steps[0.4].image_ids[1])
    towards = edit(dalle, picture(3), "", "a star", theta=0.4, steps=2)
    assert not torch.equal(towards.image_ids[1], both.image_ids[2])


def test_what_an_edit_records_makes_it_again(dalle):
    found = edit(dalle, picture(4), "a cat", "a house", theta=0.3, steps=3, prompt="a thing", guidance=2.0)
    record = parse_edit(json.loads(json.dumps(found.metadata)), "a.png")
    again = make_edit(dalle, record.edit)
    assert torch.equal(again.image_ids, found.image_ids)
    assert again.metadata == found.metadata


def test_an_edit_tells_how_far_it_is_and_can_be_ended(dalle):
    done = []
    edit(dalle, picture(), "a cat", "a house", steps=3, progress=done.append)
    assert sum(done) == 4 * dalle.stream.image_length

    def stop(ids):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(dalle, picture(), "a cat", "a house", steps=3, progress=stop)


def test_few_components_give_what_pictures_have_in_common_and_all_of_them_the_picture(dalle):
    others = [picture(number) for number in range(40)]
    views = component_views(dalle, picture(50), others, [0, 3, 19], seed=2)
    common = torch.nn.functional.normalize(dalle.scorer.embed_images(others).mean(0), dim=0)
    torch.testing.assert_close(torch.tensor(views[0].image_embed), common, atol=1e-5, rtol=0)
    own = embed(dalle, picture(50))
    torch.testing.assert_close(torch.tensor(views[2].image_embed), own, atol=1e-4, rtol=0)
    cosines = [float(torch.tensor(view.image_embed) @ own) for view in views]
    assert cosines == sorted(cosines)


def test_pictures_whose_components_are_taken_are_in_memory_one_at_a_time(dalle):
    others = []

    def read():
        for number in range(5):
            assert sum(other() is not None for other in others) <= 1
            image = picture(number)
            others.append(weakref.ref(image))
            yield image
            del image

    views = component_views(dalle, picture(50), read(), [3], seed=2)
    (expected,) = component_views(dalle, picture(50), [picture(number) for number in range(5)], [3], seed=2)
    assert len(others) == 5
    assert views[0].image_embed == expected.image_embed


def test_results_of_a_mix_are_recorded_like_those_of_sample(dalle):
    results = mix(dalle, picture(1), picture(2), steps=3, seed=9)
    metadata = results[0].metadata()
    metadata["pictures"] = [one for result in results for one in result.metadata()["pictures"]]
    again = list(dalle.generate_many(parse_recorded(metadata, "mix.png").requests()))
    assert ids(again) == ids(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1}, "expected 2 to 1000 steps, got 1"),
        ({"theta": 1.5}, "expected a theta from 0 to 1, got 1.5"),
        ({"guidance": -1.0}, "expected a guidance of 0 or more, got -1.0"),
        ({"target": ""}, "expected a text of what the picture should show, got none"),
        ({"target": "a cat"}, "expected two texts that the scorer tells apart"),
        ({"theta": "much"}, "edit: theta: expected float"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(dalle, change, message):
    arguments = {"source": "a cat", "target": "a star", **change}
    with pytest.raises(UserError, match=message):
        edit(dalle, picture(), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embed": ""}, "expected the image embedding of a picture in the record of an edit, got none"),
        ({"image_embed": to_text([1.0, 2.0])}, "expected an image embedding of .* numbers"),
        ({"image_ids": ((1, 2), (3,))}, "expected rows of image ids in the record of an edit"),
        ({"image_ids": ((10**30,),)}, "expected rows of image ids in the record of an edit"),
        ({"image_ids": ((1, 2), (3, 4))}, "expected image ids of shape"),
    ],
)
def test_records_of_edits_that_are_no_records_are_refused(dalle, change, message):
    found = edit(dalle, picture(4), "a cat", "a house", steps=2)
    record = parse_edit(found.metadata, "a.png").edit
    with pytest.raises(UserError, match=message) as caught:
        make_edit(dalle, dataclasses.replace(record, **change))
    assert "\n" not in str(caught.value)


def test_pictures_are_mixed_by_models_that_recommend_a_prior(dalle, monkeypatch):
    expected = ids(mix(dalle, picture(1), picture(2), steps=2))
    monkeypatch.setattr(dalle, "sampling", dataclasses.replace(dalle.sampling, prior="text"))
    assert ids(mix(dalle, picture(1), picture(2), steps=2)) == expected


def test_models_without_positions_and_records_of_other_pictures_are_refused(tiny_dalle):
    for action in (lambda: edit(tiny_dalle, picture(), "a", "b"), lambda: mix(tiny_dalle, picture(), picture(1))):
        with pytest.raises(UserError, match="expected a model with positions for an image embedding, got one without"):
            action()
    for metadata in ({}, {"edit": {}}, [], {"model": "m", "checkpoint": "c", "precision": "fp32", "edit": 3}):
        with pytest.raises(UserError, match=r"expected --to, or a picture made by dalle edit, got a\.png without"):
            parse_edit(metadata, "a.png")
