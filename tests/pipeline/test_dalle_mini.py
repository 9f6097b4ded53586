import json
import shutil
import socket
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import SAMPLING
from PIL import Image

import dalle_mini_impl
from dalle_mini_impl import Candidate, DalleMini, ImageTokenizer, Result, Scorer, TextTokenizer, UserError
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.pipeline import previews
from dalle_mini_impl.pipeline.results import grid
from dalle_mini_impl.sampling.generate import generate
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.images import read_metadata


class RedScorer:
    """Likes red, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    scale = 1000.0

    def cosines(self, images, text):
        self.asked.append((len(images), text))
        return torch.tensor([red(image) for image in images])


def with_scorer(dalle, scorer):
    tokenizers = dalle.text_tokenizer, dalle.image_tokenizer
    return DalleMini(*tokenizers, dalle.transformer, dalle.stream, scorer, dalle.sampling, dalle.source)


def red(image):
    return float(np.asarray(image)[..., 0].mean()) / 255


def same(image, other):
    return image.size == other.size and np.array_equal(np.asarray(image), np.asarray(other))


@pytest.fixture(scope="module")
def result(tiny_dalle):
    return tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)


# --- generating


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


def test_the_scorer_decides_the_order(tiny_dalle):
    scorer = RedScorer()
    dalle = with_scorer(tiny_dalle, scorer)
    ranked = dalle.generate("a red heart", candidates=11, keep=4, seed=3, rank="clip")
    assert scorer.asked == [(11, "a red heart")]
    every = tiny_dalle.generate("a red heart", candidates=11, keep=11, seed=3, rank="none")
    best = sorted(every, key=lambda candidate: -red(candidate.image))[:4]
    assert [candidate.seed for candidate in ranked] == [candidate.seed for candidate in best]
    for candidate, expected in zip(ranked, best, strict=True):
        assert same(candidate.image, expected.image)
        assert torch.equal(candidate.image_ids, expected.image_ids)
        assert candidate.score == pytest.approx(red(expected.image))


def test_the_own_scorer_ranks_by_cosine(tiny_dalle):
    ranked = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3, rank="clip")
    scores = [candidate.score for candidate in ranked]
    assert scores == sorted(scores, reverse=True)
    again = tiny_dalle.scorer.score([candidate.image for candidate in ranked], "a red heart")
    assert scores == pytest.approx(again.tolist(), abs=1e-5)


@pytest.mark.parametrize(("guidance", "negative"), [(2.0, ""), (2.0, "a cat"), (1.0, "")])
def test_ranking_by_likelihood_is_the_transformers_word(tiny_model, guidance, negative):
    tiny_dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    how = {"negative": negative, "guidance": guidance, "rank": "likelihood", "chunk": 4}
    ranked = tiny_dalle.generate("a red heart", candidates=11, keep=11, seed=3, **how)
    ids = torch.stack([candidate.image_ids for candidate in ranked])
    given = tiny_dalle.log_likelihood("a red heart", ids).sum(1)
    scores = [candidate.score for candidate in ranked]
    assert scores == pytest.approx(given.tolist(), abs=1e-3)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 11


def test_both_is_the_sum_of_likelihood_and_scaled_cosine(tiny_dalle):
    def scores(rank):
        drawn = dalle.generate("a red heart", candidates=5, keep=5, seed=3, rank=rank)
        return {candidate.seed: candidate.score for candidate in drawn}

    dalle = with_scorer(tiny_dalle, RedScorer())
    cosines, likelihoods, both = scores("clip"), scores("likelihood"), scores("both")
    assert both == pytest.approx({seed: likelihoods[seed] + 1000 * cosines[seed] for seed in cosines})
    assert likelihoods == scores(None)  # the default
    assert list(both) == sorted(both, key=both.get, reverse=True)


def test_unranked_keeps_the_order_of_the_candidates(tiny_dalle):
    scorer = RedScorer()
    unranked = with_scorer(tiny_dalle, scorer).generate("a red heart", candidates=5, keep=3, seed=3, rank="none")
    assert scorer.asked == []
    assert [candidate.seed for candidate in unranked] == [candidate_seed(3, number) for number in range(3)]
    assert [candidate.score for candidate in unranked] == [None] * 3


def test_a_model_without_scorer_ranks_by_likelihood(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "scorer.safetensors").unlink()
    dalle = DalleMini.from_pretrained(folder, "cpu")
    ranked = dalle.generate("a cat", candidates=5)
    for rank in (None, "likelihood"):
        assert [c.score for c in ranked] == [c.score for c in dalle.generate("a cat", candidates=5, rank=rank)]
    for rank in ("clip", "both"):
        with pytest.raises(UserError, match=r"got .*bare, which has none"):
            dalle.generate("a cat", candidates=5, rank=rank)
    with pytest.raises(UserError, match=r"got .*bare, which has none; train one with dalle_mini_impl\.train\.scorer"):
        _ = dalle.scorer


@pytest.mark.parametrize(
    ("rank", "keep", "left"), [("likelihood", 1, 3), ("both", 1, 3), ("clip", 5, 5), ("none", 1, 9)]
)
def test_pruning_ranks_those_that_are_left(tiny_dalle, rank, keep, left):
    def draw(keep, **how):
        return tiny_dalle.generate("a red heart", candidates=9, keep=keep, seed=3, **how)

    every = {candidate.seed: candidate for candidate in draw(9, rank=rank)}
    settings = {"rank": rank, "prune": True}
    request = tiny_dalle._request("a red heart", candidates=9, keep=keep, seed=3, **settings)
    drawn = generate(tiny_dalle.transformer, tiny_dalle.stream, **request.decoding_arguments)
    assert len(drawn.indices) == left
    pruned = draw(keep, **settings)
    seeds = [request.seeds[number] for number in drawn.indices]
    best = [seed for seed in every if seed in seeds][:keep]
    assert [candidate.seed for candidate in pruned] == best
    assert [candidate.score for candidate in pruned] == [every[seed].score for seed in best]
    assert pruned.settings["sampling"]["prune"] is True


@pytest.mark.parametrize(("rank", "decoded"), [("likelihood", 2), ("none", 2), ("clip", 5), ("both", 5)])
def test_only_what_is_kept_or_scored_is_decoded(tiny_dalle, monkeypatch, rank, decoded):
    counts = []
    decode = tiny_dalle.decode
    monkeypatch.setattr(tiny_dalle, "decode", lambda ids, tile: counts.append(len(ids)) or decode(ids, tile=tile))
    result = tiny_dalle.generate("a red heart", candidates=5, keep=2, rank=rank)
    assert sum(counts) == decoded
    for candidate in result:
        assert candidate.image.tobytes() == decode(candidate.image_ids[None])[0].tobytes()


@pytest.mark.parametrize(("candidates", "keep", "expected"), [(1, 1, 1), (3, 8, 3), (5, 2, 2)])
def test_keep_is_at_most_the_candidates(tiny_dalle, candidates, keep, expected):
    assert len(tiny_dalle.generate("a cat", candidates=candidates, keep=keep)) == expected


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


def test_more_candidates_begin_with_the_fewer(tiny_dalle):
    few = tiny_dalle.generate("a cat", candidates=2, keep=2, rank="none")
    many = tiny_dalle.generate("a cat", candidates=5, keep=5, rank="none", chunk=3)
    assert all(torch.equal(one.image_ids, other.image_ids) for one, other in zip(few, many[:2], strict=True))


def test_seeds_of_different_runs_are_unrelated():
    seeds = {candidate_seed(seed, number) for seed in range(31) for number in range(31)}
    assert len(seeds) == 31 * 31
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_prompt_and_negative_both_matter(result, tiny_dalle):
    seeds = [candidate.seed for candidate in result]
    for changes in ({"prompt": "心形"}, {"negative": "a cat"}, {"guidance": 1.0}, {"temperature": 0.3}):
        other = tiny_dalle.generate(**{"prompt": "a red heart", "seeds": seeds, "rank": "none", **changes})
        equal = [torch.equal(one.image_ids, two.image_ids) for one, two in zip(result, other, strict=True)]
        assert not all(equal), changes


@pytest.mark.parametrize("prompt", ["", "🦄", "قلب", "\x00", "  "])
def test_any_prompt_is_fine(tiny_dalle, prompt):
    assert len(tiny_dalle.generate(prompt, candidates=1)) == 1


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(tiny_dalle):
    long = "a red heart and a green tree and a yellow star"
    with pytest.warns(UserWarning, match="7 fit; cut off"):
        drawn = tiny_dalle.generate(long, candidates=1, rank="none")
    assert drawn.prompt == long
    with pytest.warns(UserWarning, match="7 fit; cut off"):
        tiny_dalle.generate("a cat", candidates=1, negative=long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_dalle.generate("a cat", candidates=1)


def test_previews_show_what_is_there(tiny_dalle):
    *given, last = tiny_dalle.stream_previews("a cat", candidates=5, keep=2, seed=4, show=2, share=1.0, chunk=3)
    assert [preview.done for preview in given] == pytest.approx([3 / 15, 6 / 15, 9 / 15, 11 / 15, 13 / 15])
    assert [len(preview.images) for preview in given] == [2] * 5
    whole = tiny_dalle.generate("a cat", candidates=5, keep=5, seed=4, rank="none")
    for number, preview in enumerate(given):
        rows, chunk = number % 3 + 1, number // 3
        for image, candidate in zip(preview.images, whole[3 * chunk :][:2], strict=True):
            seen, all_of_it = (np.asarray(picture, dtype=int) for picture in (image, candidate.image))
            assert (seen[8 * rows :] == 255).all()
            assert (seen[: 8 * rows] == all_of_it[: 8 * rows]).mean() > (0.99 if rows == 3 else 0.2)
    assert last.done == 1
    assert [c.seed for c in last.result] == [c.seed for c in tiny_dalle.generate("a cat", candidates=5, keep=2, seed=4)]
    assert all(same(image, candidate.image) for image, candidate in zip(last.images, last.result, strict=True))


@pytest.mark.parametrize(("share", "shown"), [(0.0, [1.0]), (0.5, [1 / 3, 1.0]), (1.0, [1 / 3, 2 / 3, 1.0])])
def test_previews_take_no_more_time_than_they_may(tiny_dalle, monkeypatch, share, shown):
    clock = iter(range(0, 1000, 10))  # it goes on by ten seconds whenever someone looks at it
    monkeypatch.setattr(previews, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    given = tiny_dalle.stream_previews("a cat", candidates=2, share=share)
    assert [preview.done for preview in given] == pytest.approx(shown)


def test_previews_that_make_no_sense_are_refused(tiny_dalle):
    for options in ({"show": 0}, {"share": 1.5}, {"share": -0.1}):
        with pytest.raises(UserError, match="expected show of 1 or more and share from 0 to 1, got show"):
            next(tiny_dalle.stream_previews("a cat", **options))


def test_progress_is_told(tiny_dalle):
    told = []
    tiny_dalle.generate("a cat", candidates=5, chunk=2, progress=told.append)
    assert sum(told) == 5 * 15


def test_no_network_is_touched(tiny_model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(DalleMini.from_pretrained(tiny_model, "cpu").generate("a cat", candidates=1)) == 1


# --- settings


def test_settings_come_from_the_model_unless_given(result, tiny_dalle):
    assert result.settings["sampling"] == to_dict(SAMPLING)
    changed = tiny_dalle.generate("a cat", candidates=1, top_k=5, temperature=None, guidance=0.0)
    assert changed.settings["sampling"] == {**to_dict(SAMPLING), "top_k": 5, "guidance": 0.0}
    assert tiny_dalle.sampling == SAMPLING


def test_an_unknown_setting_is_refused(tiny_dalle):
    with pytest.raises(UserError, match=r"expected sampling settings among temperature, top_k, .*, got 'topk'"):
        tiny_dalle.generate("a cat", topk=5)
    with pytest.raises(UserError, match="got 'encode'"):
        tiny_dalle.generate("a cat", encode=5)


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


@pytest.mark.parametrize("device", ["nonsense", "cuda:97", ""])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used .*try --device cpu") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_auto_finds_a_device():
    device = choose_device("auto")
    assert torch.empty(3, device=device).shape == (3,)
    assert choose_device("cpu") == "cpu"


# --- results


def test_a_result_is_a_sequence(result):
    assert result[0] is result.candidates[0]
    assert result[-1] is result.candidates[4]
    assert result[1:3] == result.candidates[1:3]
    assert list(result) == list(result.candidates)
    with pytest.raises(IndexError):
        _ = result[5]


def test_results_can_be_compared_and_searched(result, tiny_dalle):
    again = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)
    assert result[4] in result
    assert result.index(result[3]) == 3
    _ = result == again  # whatever it says, it must not fail on tensors
    _ = again[0] in result


def test_the_grid_shows_every_picture(result):
    sheet = result.grid(columns=5)
    assert sheet.size == (4 + 5 * 44, 4 + 28)
    for number, candidate in enumerate(result):
        left = 4 + number * 44
        assert same(sheet.crop((left, 4, left + 40, 28)), candidate.image)
    assert result.grid().size == (4 + 3 * 44, 4 + 2 * 28)
    assert result.grid(scores=True).height > result.grid().height


def test_a_grid_of_several_prompts_has_a_row_for_each(result, tiny_dalle):
    other = tiny_dalle.generate("a cat", candidates=5, keep=5)
    sheet = grid([result, other])
    assert sheet.width == 4 + 5 * 44
    below = (sheet.height - 4) // 2 + 4
    assert same(sheet.crop((4, 4, 44, 28)), result[0].image)
    assert same(sheet.crop((4, below, 44, below + 24)), other[0].image)
    assert np.asarray(sheet.crop((4, 29, 44, below - 1))).min() < 128  # the prompt is written under each


def test_saved_pictures_carry_what_makes_them_again(result, tiny_dalle, tmp_path):
    paths = result.save(tmp_path / "out")
    assert len(set(paths)) == 5
    assert paths == sorted(paths)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in paths]
    assert paths[0].name.startswith("a-red-heart-")
    for path, candidate in zip(paths, result, strict=True):
        metadata = read_metadata(path)
        assert metadata["pictures"] == [
            {"prompt": "a red heart", "negative": "", "seed": candidate.seed, "score": candidate.score}
        ]
        assert metadata["checkpoint"] == tiny_dalle.source["checkpoint"]
        assert metadata["model"] == tiny_dalle.source["model"]
        assert metadata["sampling"] == to_dict(SAMPLING)
        with Image.open(path) as image:
            assert same(image, candidate.image)


def test_prompts_that_spell_alike_do_not_overwrite_each_other(tiny_dalle, tmp_path):
    prompts = ["a/cat", "a cat", "A cat", "???", "!!!", "../../etc", "ein " + "sehr " * 50 + "langes Herz", "x" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = [tiny_dalle.generate(prompt, candidates=1) for prompt in prompts]
        drawn.append(tiny_dalle.generate("a cat", candidates=1, negative="red"))
    paths = [path for result in drawn for path in result.save(tmp_path)]
    assert len(set(paths)) == len(drawn)
    assert all(path.parent == tmp_path and path.is_file() for path in paths)


def test_metadata_is_plain_json(result):
    metadata = result.metadata()
    assert json.loads(json.dumps(metadata)) == metadata
    assert [picture["seed"] for picture in metadata["pictures"]] == [candidate.seed for candidate in result]
    assert [picture["seed"] for picture in result.metadata(result[1:3])["pictures"]] == [c.seed for c in result[1:3]]


# --- the rest of the interface


def test_log_likelihood(tiny_dalle, result):
    ids = torch.stack([candidate.image_ids for candidate in result])
    scores = tiny_dalle.log_likelihood("a red heart", ids)
    assert scores.shape == (5, 15)
    assert float(scores.max()) <= 0
    assert not torch.equal(scores, tiny_dalle.log_likelihood("", ids))
    torch.testing.assert_close(scores, tiny_dalle.log_likelihood("A RED  HEART", ids))


def test_what_is_drawn_with_a_caption_fits_it_better_than_another(tiny_dalle):
    drawn = tiny_dalle.generate("a red heart", candidates=29, keep=29, rank="none", guidance=1.0, top_k=0, top_p=1.0)
    ids = torch.stack([candidate.image_ids for candidate in drawn])
    own, other = (tiny_dalle.log_likelihood(text, ids).sum(1).mean() for text in ("a red heart", "心形"))
    assert own > other


def test_parts_are_reachable(tiny_dalle, tiny_model):
    assert isinstance(tiny_dalle.text_tokenizer, TextTokenizer)
    assert isinstance(tiny_dalle.image_tokenizer, ImageTokenizer)
    assert isinstance(tiny_dalle.scorer, Scorer)
    pixels = tiny_dalle.image_tokenizer.decode(torch.zeros(2, 3, 5, dtype=torch.int64))
    assert pixels.shape == (2, 3, 24, 40)
    embedded = Scorer.from_pretrained(tiny_model).embed_images(pixels)
    torch.testing.assert_close(embedded, tiny_dalle.scorer.embed_images(pixels))


def test_the_public_names_are_there():
    for name in dalle_mini_impl.__all__:
        assert getattr(dalle_mini_impl, name).__name__ == name
        assert name in dir(dalle_mini_impl)
    with pytest.raises(AttributeError, match="no attribute 'Dalle'"):
        _ = dalle_mini_impl.Dalle


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no model 'nothing'"):
        DalleMini.from_pretrained("nothing")
    with pytest.raises(UserError, match=r"has no transformer\.safetensors"):
        DalleMini.from_pretrained(tmp_path)
