"""Pictures drawn by an image embedding: given as numbers or as a picture, recorded, and made again."""

import base64
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.models import SCORER
from helpers.priors import take_embeddings
from PIL import Image

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.picture_embed import from_text, to_text
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

D = SCORER.embed_dim


@pytest.fixture(scope="module")
def told_model(tiny_model, tmp_path_factory):
    """The tiny checkpoint with a transformer that takes embeddings of its scorer. Tests must not change it."""
    return take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("checkpoint") / "told"))


@pytest.fixture(scope="module")
def told(told_model):
    return DalleMini.from_pretrained(told_model, "cpu")


@pytest.fixture
def picture(tmp_path):
    """A picture and the path of its file."""
    pixels = np.random.default_rng(3).integers(0, 255, (20, 31, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "like.png")
    return Image.open(tmp_path / "like.png"), tmp_path / "like.png"


def embedding(seed=0):
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


def drawn(result):
    return [candidate.image_ids.tolist() for candidate in result]


def test_a_picture_is_embedded_by_the_scorer_of_the_checkpoint(told, told_model, picture):
    image, _ = picture
    embed = Scorer.from_pretrained(told_model).embed_images([image])[0]
    by_picture = told.generate("a cat", 5, 3, image_embed=image)
    by_numbers = told.generate("a cat", 5, 3, image_embed=embed)
    assert drawn(by_picture) == drawn(by_numbers)
    assert drawn(by_picture) != drawn(told.generate("a cat", 5, 3))
    for other in (embed.numpy(), embed.tolist(), 7 * embed.double()):
        assert drawn(told.generate("a cat", 5, 3, image_embed=other)) == drawn(by_numbers)


def test_prompts_of_one_call_have_embeddings_of_their_own(told):
    requests = [{"prompt": "a cat", "image_embed": embed} for embed in (embedding(1), None, embedding(2))]
    results = list(told.generate_many(requests, candidates=4, keep=4))
    for request, result in zip(requests, results, strict=True):
        assert drawn(result) == drawn(told.generate(**request, candidates=4, keep=4))
    assert len({json.dumps(drawn(result)) for result in results}) == 3


def test_the_likelihood_of_candidates_is_given_the_embedding(told):
    result = told.generate("a cat", 3, 3, image_embed=embedding(), rank="likelihood")
    ids = torch.stack([candidate.image_ids for candidate in result])
    nats = log_likelihood(told.transformer, told.stream, told.encode("a cat"), ids, embedding().tolist()).sum(1)
    torch.testing.assert_close(torch.tensor([candidate.score for candidate in result]), nats, atol=1e-3, rtol=1e-4)


def test_without_a_prompt_pictures_are_ranked_by_the_embedding(told, other_scorer):
    def cosines(scorer, result, target):
        return (scorer.embed_images([candidate.image for candidate in result]) @ target).tolist()

    target = torch.nn.functional.normalize(embedding(), dim=0)
    options = {"candidates": 9, "keep": 9, "rank": "clip", "image_embed": embedding()}
    result = told.generate("", **options)
    assert [candidate.score for candidate in result] == pytest.approx(cosines(told.scorer, result, target), abs=1e-5)
    result = told.generate("a cat", **options)
    text = told.scorer.embed_texts(["a cat"])[0]
    assert [candidate.score for candidate in result] == pytest.approx(cosines(told.scorer, result, text), abs=1e-5)
    own = told.scorer
    try:
        told.scorer = other = Scorer.from_pretrained(other_scorer)
        result = told.generate("", **options)
        text = other.embed_texts([""])[0]
        assert [candidate.score for candidate in result] == pytest.approx(cosines(other, result, text), abs=1e-5)
    finally:
        told.scorer = own


def test_previews_end_with_the_result(told):
    *_, last = told.stream_previews("", candidates=2, keep=2, image_embed=embedding())
    assert drawn(last.result) == drawn(told.generate("", 2, 2, image_embed=embedding()))


def test_variations_may_have_an_embedding(told, picture):
    options = {"candidates": 3, "keep": 3, "strength": 0.8}
    plain, given = (told.variations(picture[0], **options, image_embed=embed) for embed in (None, embedding()))
    assert drawn(plain) != drawn(given)


# --- recorded in files


def test_numbers_survive_as_text():
    numbers = tuple(torch.randn(23).tolist())
    assert from_text(to_text(numbers)) == numbers
    for text in ("?", "abc", base64.b64encode(b"12345").decode(), "é"):
        with pytest.raises(UserError, match="expected numbers in base64 as image_embed, got other text"):
            from_text(text)


def test_a_png_makes_its_pictures_again(told, tmp_path):
    results = [
        told.generate("a cat", 5, 2, image_embed=embedding(1)),
        told.generate("a cat", 5, 2, image_embed=embedding(2)),
        told.generate("a cat", 5, 2),
    ]
    paths = [result.save(tmp_path)[0] for result in results]
    assert len(set(paths)) == 3  # another embedding is another file
    for path, result in zip(paths, results, strict=True):
        recorded = parse_recorded(read_metadata(path), str(path))
        (request,) = recorded.requests()
        assert drawn(told.generate(**request)) == drawn(result[:1])
    together = {**results[0].metadata(), "pictures": [p for r in results for p in r.metadata()["pictures"]]}
    requests = parse_recorded(json.loads(json.dumps(together)), "grid").requests()
    assert [drawn(told.generate(**request)) for request in requests] == [drawn(result) for result in results]


def test_altered_embeddings_in_a_png_are_refused(told):
    metadata = told.generate("a cat", 1, 1, image_embed=embedding()).metadata()
    for value in ("?", 7, None):
        broken = {**metadata, "pictures": [{**metadata["pictures"][0], "image_embed": value}]}
        with pytest.raises(UserError, match=r"expected a picture that records how it was sampled, got some.png"):
            parse_recorded(broken, "some.png")
    shorter = {**metadata["pictures"][0], "image_embed": to_text([1.0, 2.0])}
    (request,) = parse_recorded({**metadata, "pictures": [shorter]}, "some.png").requests()
    with pytest.raises(UserError, match=f"expected an image embedding of {D} numbers"):
        told.generate(**request)


# --- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(D), "expected an image embedding of finite numbers that are not all 0"),
        (torch.full((D,), float("nan")), "expected an image embedding of finite numbers that are not all 0"),
        (torch.ones(D + 1), f"expected an image embedding of {D} numbers, .* got {D + 1}"),
        (torch.ones(2, D), rf"expected an image embedding of shape \(D,\), got \(2, {D}\)"),
        (torch.ones(0), r"expected an image embedding of shape \(D,\), got \(0,\)"),
        ("a cat", "expected numbers or a PIL picture as image_embed, got str; embed the picture first"),
        ({}, "expected numbers or a PIL picture as image_embed, got dict; embed the picture first"),
    ],
)
def test_what_is_no_embedding_is_refused(told, given, message):
    with pytest.raises(UserError, match=message):
        told.generate("a cat", 1, 1, image_embed=given)


def test_models_without_embeddings_or_scorer_refuse_pictures(tiny_dalle, told_model, picture, tmp_path):
    for given in (picture[0], embedding()):
        with pytest.raises(UserError, match="expected a model with positions for an image embedding, got one without"):
            tiny_dalle.generate("a cat", 1, 1, image_embed=given)
    folder = tmp_path / "unscored"
    shutil.copytree(told_model, folder)
    (folder / "scorer.safetensors").unlink()
    unscored = DalleMini.from_pretrained(folder, "cpu")
    with pytest.raises(UserError, match="expected a checkpoint with the scorer that the transformer was trained with"):
        unscored.generate("a cat", 1, 1, image_embed=picture[0])
    assert len(unscored.generate("a cat", 2, 1, image_embed=embedding())) == 1


# --- on the command line


def test_the_command_draws_like_a_picture_and_makes_it_again(told, told_model, picture, tmp_path, run):
    image, path = picture
    few = ("-n", 3, "-k", 2, "--model", told_model, "--device", "cpu")
    run("sample", "--like", path, *few, "-o", tmp_path / "grid.png", "--save-dir", tmp_path / "each")
    run("sample", "a cat", "--like", path, *few, "-o", tmp_path / "cat.png", "--json", tmp_path / "cat.json")
    for file, prompt in (("grid.png", ""), ("cat.png", "a cat")):
        pictures = read_metadata(tmp_path / file)["pictures"]
        result = told.generate(prompt, 3, 2, image_embed=image)
        assert [one["seed"] for one in pictures] == [candidate.seed for candidate in result]
        run("sample", "--from", tmp_path / file, "--model", told_model, "-o", tmp_path / "again.png", "--device", "cpu")
        assert Image.open(tmp_path / "again.png").tobytes() == Image.open(tmp_path / file).tobytes()
    assert json.loads((tmp_path / "cat.json").read_text())[0]["pictures"] == pictures
    assert len(list((tmp_path / "each").iterdir())) == 2


def test_info_tells_of_positions_for_an_embedding(told_model, run):
    assert "2 heads over an image embedding in 3 positions + 1 + 7 text + 15 image ids" in run("info", told_model)


def test_the_command_refuses_what_does_not_go_together(tiny_model, picture, tmp_path, run):
    _, path = picture
    model = ("--model", tiny_model, "-o", tmp_path / "grid.png")
    assert "expected a model with positions" in run("sample", "--like", path, *model, code=2)
    assert "is not a readable picture" in run("sample", "--like", tmp_path / "none.png", *model, code=2)
    assert "expected --like or --from, got both" in run("sample", "--like", path, "--from", path, *model, code=2)
    many = ("--no-grid", "--save-dir", tmp_path / "many", "--model", tiny_model)
    assert "without --like, got both" in run("sample", "a cat", "--like", path, *many, code=2)
