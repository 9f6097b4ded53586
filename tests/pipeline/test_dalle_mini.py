import socket
import warnings
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from helpers.models import SAMPLING

import dalle_mini_impl
from dalle_mini_impl import Candidate, DalleMini, ImageTokenizer, Result, Scorer, TextTokenizer, UserError
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.save_picture import read_metadata


def same(image, other):
    return image.size == other.size and np.array_equal(np.asarray(image), np.asarray(other))


@pytest.fixture(scope="module")
def result(tiny_dalle):
    return tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)


# --- what is generated


def test_candidates_are_complete(result, tiny_dalle):
    assert isinstance(result, Result)
    assert len(result) == 5
    for candidate in result:
        assert isinstance(candidate, Candidate)
        assert candidate.image.mode == "RGB"
        assert candidate.image.size == (5 * 8, 3 * 8)
        assert candidate.image_ids.shape == (3, 5)
        assert 0 <= int(candidate.image_ids.min()) <= int(candidate.image_ids.max()) < 61
        assert same(candidate.image, tiny_dalle.decode(candidate.image_ids[None])[0])
        assert isinstance(candidate.score, float)
        assert isinstance(candidate.seed, int)


def test_the_same_seed_gives_the_same_pictures(result, tiny_dalle):
    torch.manual_seed(99)
    again = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)
    assert all(same(one.image, other.image) for one, other in zip(result, again, strict=True))
    assert result.metadata() == again.metadata()
    other = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=4)
    assert not {candidate.seed for candidate in other} & {candidate.seed for candidate in result}


def test_one_candidate_can_be_made_again_alone(result, tiny_dalle):
    for candidate in (result[0], result[4]):
        (alone,) = tiny_dalle.generate("a red heart", seeds=[candidate.seed])
        assert torch.equal(alone.image_ids, candidate.image_ids)
        assert same(alone.image, candidate.image)
        assert alone.score == pytest.approx(candidate.score, abs=1e-5)


def test_the_first_candidates_do_not_depend_on_how_many_there_are(tiny_dalle):
    few = tiny_dalle.generate("a cat", candidates=2, keep=2, rank="none")
    many = tiny_dalle.generate("a cat", candidates=5, keep=5, rank="none", chunk=3)
    assert all(torch.equal(one.image_ids, other.image_ids) for one, other in zip(few, many[:2], strict=True))


def test_seeds_of_different_runs_are_unrelated():
    seeds = {candidate_seed(seed, index) for seed in range(31) for index in range(31)}
    assert len(seeds) == 31 * 31
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    "changes", [{"prompt": "心形"}, {"negative": "a cat"}, {"guidance": 1.0}, {"temperature": 0.3}]
)
def test_prompt_negative_and_settings_change_the_pictures(result, tiny_dalle, changes):
    seeds = [candidate.seed for candidate in result]
    other = tiny_dalle.generate(**{"prompt": "a red heart", "seeds": seeds, "rank": "none", **changes})
    assert not all(torch.equal(one.image_ids, two.image_ids) for one, two in zip(result, other, strict=True))


@pytest.mark.parametrize("prompt", ["", "🦄", "قلب", "\x00", "  "])
def test_any_prompt_is_accepted(tiny_dalle, prompt):
    assert len(tiny_dalle.generate(prompt, candidates=1)) == 1


def test_prompts_that_are_too_long_are_cut_with_a_warning(tiny_dalle):
    long = "a red heart and a green tree and a yellow star"
    with pytest.warns(UserWarning, match="7 fit; cut off"):
        result = tiny_dalle.generate(long, candidates=1, rank="none")
    assert result.prompt == long
    with pytest.warns(UserWarning, match="7 fit; cut off"):
        tiny_dalle.generate("a cat", candidates=1, negative=long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_dalle.generate("a cat", candidates=1)


def test_pictures_are_likelier_given_their_own_caption_than_given_another(tiny_dalle):
    options = {"rank": "none", "guidance": 1.0, "top_k": 0, "top_p": 1.0}
    result = tiny_dalle.generate("a red heart", candidates=29, keep=29, **options)
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    own, other = (tiny_dalle.log_likelihood(text, image_ids).sum(1).mean() for text in ("a red heart", "心形"))
    assert own > other


def test_progress_adds_up_to_every_id(tiny_dalle):
    calls: list[int] = []
    tiny_dalle.generate("a cat", candidates=5, chunk=2, progress=calls.append)
    assert sum(calls) == 5 * 15


def test_loading_and_generating_open_no_socket(tiny_model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(DalleMini.from_pretrained(tiny_model, "cpu").generate("a cat", candidates=1)) == 1


# --- settings


def test_settings_that_are_not_given_are_the_models(result, tiny_dalle):
    assert result.settings["sampling"] == {**to_dict(SAMPLING), "prior": "none"}
    changed = tiny_dalle.generate("a cat", candidates=1, top_k=5, temperature=None, guidance=0.0)
    assert changed.settings["sampling"] == {**to_dict(SAMPLING), "prior": "none", "top_k": 5, "guidance": 0.0}
    assert tiny_dalle.sampling == SAMPLING


def test_unknown_settings_are_refused(tiny_dalle):
    with pytest.raises(UserError, match=r"expected sampling settings among temperature, top_k, .*, got 'topk'"):
        tiny_dalle.generate("a cat", topk=5)
    for name in ("encode", "recommended", "sampling"):  # names of internal parameters
        with pytest.raises(UserError, match=f"got '{name}'"):
            tiny_dalle.generate("a cat", **{name: 5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates 0 and keep 8"),
        ({"keep": 0}, "candidates 32 and keep 0"),
        ({"keep": 0, "seeds": [3]}, "keep 0"),
        ({"seeds": []}, "seeds"),
        ({"seed": -1}, "seed -1"),
        ({"seeds": [2**64]}, "18446744073709551616"),
        ({"chunk": 0}, "chunk .* got 0"),
        ({"temperature": -1.0}, r"temperature .* got -1\.0"),
        ({"top_k": 62}, "top_k .* got 62"),
        ({"top_k": 2.5}, r"2\.5"),
        ({"top_p": 0.0}, r"top_p .* got 0\.0"),
        ({"guidance": -1.0}, r"guidance .* got -1\.0"),
        ({"guidance": "much"}, "much"),
    ],
)
def test_numbers_out_of_range_are_refused(tiny_dalle, changes, message):
    with pytest.raises(UserError, match=message):
        tiny_dalle.generate("a cat", **changes)


# --- the rest of the interface


def test_log_likelihood_depends_on_the_normalised_caption(tiny_dalle, result):
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    nats = tiny_dalle.log_likelihood("a red heart", image_ids)
    assert nats.shape == (5, 15)
    assert float(nats.max()) <= 0
    assert not torch.equal(nats, tiny_dalle.log_likelihood("", image_ids))
    torch.testing.assert_close(nats, tiny_dalle.log_likelihood("A RED  HEART", image_ids))


def test_parts_are_attributes(tiny_dalle, tiny_model):
    assert isinstance(tiny_dalle.text_tokenizer, TextTokenizer)
    assert isinstance(tiny_dalle.image_tokenizer, ImageTokenizer)
    assert isinstance(tiny_dalle.scorer, Scorer)
    pixels = tiny_dalle.image_tokenizer.decode(torch.zeros(2, 3, 5, dtype=torch.int64))
    assert pixels.shape == (2, 3, 24, 40)
    embedded = Scorer.from_pretrained(tiny_model).embed_images(pixels)
    torch.testing.assert_close(embedded, tiny_dalle.scorer.embed_images(pixels))


def test_every_public_name_can_be_imported_from_the_package():
    for name in dalle_mini_impl.__all__:
        assert getattr(dalle_mini_impl, name).__name__ == name
        assert name in dir(dalle_mini_impl)
    with pytest.raises(AttributeError, match="no attribute 'Dalle'"):
        _ = dalle_mini_impl.Dalle


def test_missing_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="no model 'nothing'"):
        DalleMini.from_pretrained("nothing")
    with pytest.raises(UserError, match=r"has no transformer\.safetensors"):
        DalleMini.from_pretrained(tmp_path)


def test_more_candidates_than_fit_into_the_memory_are_refused_at_once(tiny_dalle):
    with pytest.raises(UserError, match=r"expected 1000000000000 candidates to fit into .* ask for fewer"):
        tiny_dalle.generate("a cat", candidates=10**12)
    with pytest.raises(UserError, match="expected 1000000000000 captions to fit into"):
        tiny_dalle.complete_text("a", candidates=10**12)


def test_more_candidates_at_a_time_than_fit_into_the_memory_are_refused(tiny_model, monkeypatch):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    few = dalle.generate("a cat", candidates=5, chunk=5, rank="none")
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**27))
        with pytest.raises(UserError, match=r"values of 6000 candidates to fit into .* decode fewer at a time"):
            dalle.generate("a cat", candidates=6000, chunk=6000)
    again = dalle.generate("a cat", candidates=5, chunk=10**30, rank="none")
    assert [one.image.tobytes() for one in again] == [one.image.tobytes() for one in few]


def test_no_more_pictures_are_decoded_at_a_time_than_by_default(tiny_dalle, monkeypatch):
    sizes = []
    decode = tiny_dalle.image_tokenizer.decode

    def counting_decode(ids, tile=False):
        sizes.append(len(ids))
        return decode(ids, tile)

    monkeypatch.setattr(tiny_dalle.image_tokenizer, "decode", counting_decode)
    assert len(tiny_dalle.generate("a cat", candidates=150, keep=150, chunk=150, rank="none")) == 150
    assert sizes == [64, 64, 22]


def test_prompts_that_are_no_text_are_refused(tiny_dalle):
    with pytest.raises(UserError, match="expected texts as prompt and negative, got list and str"):
        tiny_dalle.generate(["a cat", "a dog"])


def test_a_prompt_with_lone_surrogates_can_be_saved_and_read_back(tiny_dalle, tmp_path):
    result = tiny_dalle.generate("a \ud800cat\udcff", candidates=1, negative="\udc80")
    (path,) = result.save(tmp_path)
    recorded = read_metadata(path)["pictures"][0]
    assert (recorded["prompt"], recorded["negative"]) == ("a ?cat?", "?")


@pytest.mark.parametrize("typed", ["a red heart.", "a red heart!", "“A red heart…”", " a  red heart。 "])
def test_marks_at_the_end_of_a_prompt_change_no_picture(tiny_dalle, typed):
    options = {"candidates": 5, "keep": 5, "seed": 3, "rank": "both", "negative": "a cat"}
    plain = tiny_dalle.generate("a red heart", **options)
    marked = tiny_dalle.generate(typed, **options)
    assert [(c.seed, c.score) for c in marked] == [(c.seed, c.score) for c in plain]
    assert all(torch.equal(one.image_ids, other.image_ids) for one, other in zip(marked, plain, strict=True))
    assert {picture["prompt"] for picture in marked.metadata()["pictures"]} == {typed}
    again = tiny_dalle.generate("a red heart", **{**options, "negative": "a cat."})
    assert [c.score for c in again] == [c.score for c in plain]
