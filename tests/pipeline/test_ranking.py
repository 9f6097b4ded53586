"""Which candidates `DalleMini.generate` keeps, and in which order."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dalle_mini_impl import DalleMini, Scorer, UserError
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.data.cut_out import without_ground
from dalle_mini_impl.pipeline.ranking import most_diverse
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.sampling.generate import generate_many
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.util.images import to_images


def redness(image):
    """Mean of the red channel, 0 to 1."""
    return float(np.asarray(image)[..., 0].mean()) / 255


class RedScorer:
    """A scorer whose cosines are the redness of pictures, and which records how it was called."""

    scale = 1000.0
    is_on_gpu = False

    def __init__(self):
        self.embedded = 0
        self.calls = []

    def embed_images(self, images):
        self.embedded += len(images)
        return torch.tensor([[redness(image)] for image in images])

    def embed_texts(self, texts):
        self.calls.append((self.embedded, *texts))
        return torch.ones(1, 1)


def with_scorer(dalle, scorer):
    tokenizers = dalle.text_tokenizer, dalle.image_tokenizer
    return DalleMini(*tokenizers, dalle.transformer, dalle.stream, scorer, dalle.sampling, dalle.source)


def test_rank_clip_orders_by_the_scorers_cosines(tiny_dalle):
    scorer = RedScorer()
    dalle = with_scorer(tiny_dalle, scorer)
    ranked = dalle.generate("a red heart", candidates=11, keep=4, seed=3, rank="clip")
    assert scorer.calls == [(11, "a red heart")]
    every = tiny_dalle.generate("a red heart", candidates=11, keep=11, seed=3, rank="none")
    best = sorted(every, key=lambda candidate: -redness(candidate.image))[:4]
    assert [candidate.seed for candidate in ranked] == [candidate.seed for candidate in best]
    for candidate, expected in zip(ranked, best, strict=True):
        assert np.array_equal(np.asarray(candidate.image), np.asarray(expected.image))
        assert torch.equal(candidate.image_ids, expected.image_ids)
        assert candidate.score == pytest.approx(redness(expected.image))


def test_rank_clip_uses_the_checkpoints_scorer(tiny_dalle):
    ranked = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3, rank="clip")
    scores = [float(candidate.score) for candidate in ranked]
    assert scores == sorted(scores, reverse=True)
    expected = tiny_dalle.scorer.score([candidate.image for candidate in ranked], "a red heart")
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(("guidance", "negative"), [(2.0, ""), (2.0, "a cat"), (1.0, "")])
def test_rank_likelihood_orders_by_the_log_likelihood_given_the_prompt(tiny_model, guidance, negative):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    options = {"negative": negative, "guidance": guidance, "rank": "likelihood", "chunk": 4}
    ranked = dalle.generate("a red heart", candidates=11, keep=11, seed=3, **options)
    image_ids = torch.stack([candidate.image_ids for candidate in ranked])
    expected = dalle.log_likelihood("a red heart", image_ids).sum(1)
    scores = [float(candidate.score) for candidate in ranked]
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 11


def test_rank_both_is_the_sum_of_log_likelihood_and_scaled_cosine(tiny_dalle):
    dalle = with_scorer(tiny_dalle, RedScorer())

    def scores(rank):
        result = dalle.generate("a red heart", candidates=5, keep=5, seed=3, rank=rank)
        return {candidate.seed: candidate.score for candidate in result}

    cosines, likelihoods, both = scores("clip"), scores("likelihood"), scores("both")
    assert both == pytest.approx({seed: likelihoods[seed] + 1000 * cosines[seed] for seed in cosines})
    assert likelihoods == scores(None)  # what the tiny model recommends
    assert list(both) == sorted(both, key=lambda seed: both[seed], reverse=True)


def test_clip_weight_is_how_many_times_the_cosine_counts(tiny_dalle):
    dalle = with_scorer(tiny_dalle, RedScorer())
    options = {"candidates": 5, "keep": 5, "seed": 3}

    def scores(**changes):
        return {candidate.seed: candidate.score for candidate in dalle.generate("a red heart", **options, **changes)}

    cosines, likelihoods = scores(rank="clip", clip_weight=7), scores(rank="likelihood", clip_weight=7)
    expected = {seed: likelihoods[seed] + 0.25 * 1000 * cosines[seed] for seed in cosines}
    assert scores(rank="both", clip_weight=0.25) == pytest.approx(expected)
    assert cosines == scores(rank="clip")
    assert likelihoods == scores(rank="likelihood")
    with pytest.raises(UserError, match=r"expected a clip_weight of 0 or more, got -1\.0; 0 ignores the scorer"):
        dalle.generate("a red heart", candidates=1, clip_weight=-1)


def test_the_recommended_clip_weight_is_for_the_checkpoints_own_scorer(tiny_dalle):
    dalle = with_scorer(tiny_dalle, RedScorer())
    dalle.sampling = replace(tiny_dalle.sampling, rank="both", clip_weight=8.0)

    def weight(**changes):
        return dalle.generate("a red heart", candidates=1, **changes).settings["sampling"]["clip_weight"]

    assert weight() == 8
    assert weight(clip_weight=3) == 3
    dalle.scorer = tiny_dalle.scorer
    assert weight() == 1
    assert weight(clip_weight=3) == 3


def test_rank_none_keeps_the_order_of_the_candidates(tiny_dalle):
    scorer = RedScorer()
    unranked = with_scorer(tiny_dalle, scorer).generate("a red heart", candidates=5, keep=3, seed=3, rank="none")
    assert scorer.calls == []
    assert [candidate.seed for candidate in unranked] == [candidate_seed(3, index) for index in range(3)]
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
    with pytest.raises(
        UserError, match=r"got .*bare, which has none; train one with dalle train scorer, or rank by another: --scorer"
    ):
        _ = dalle.scorer


@pytest.mark.parametrize("recommended", ["auto", "likelihood", "clip", "none"])
def test_the_ranking_is_the_one_that_the_checkpoint_recommends(tiny_dalle, recommended):
    dalle = with_scorer(tiny_dalle, RedScorer())
    dalle.sampling = replace(tiny_dalle.sampling, rank=recommended)
    result = dalle.generate("a red heart", candidates=5, keep=5, seed=3)
    expected = "both" if recommended == "auto" else recommended
    assert result.settings["sampling"]["rank"] == expected
    asked_for = dalle.generate("a red heart", candidates=5, keep=5, seed=3, rank=expected)
    assert result.metadata() == asked_for.metadata()


def test_rank_auto_uses_the_scorer_where_there_is_one(tiny_dalle):
    assert SamplingConfig().rank == "auto"  # what a training run without a choice of its own writes
    for scorer, expected in ((RedScorer(), "both"), (None, "likelihood")):
        result = with_scorer(tiny_dalle, scorer).generate("a cat", candidates=5, rank="auto")
        assert result.settings["sampling"]["rank"] == expected
        again = with_scorer(tiny_dalle, scorer).generate("a cat", candidates=5, rank=expected)
        assert result.metadata() == again.metadata()


def copy_of(dalle):
    """The same model with its own scorer, which a test may replace."""
    return with_scorer(dalle, dalle.scorer)


def test_a_scorer_that_is_set_changes_the_ranking_alone(tiny_dalle, other_scorer):
    options = {"candidates": 7, "keep": 7, "seed": 3}
    own = {c.seed: c for c in tiny_dalle.generate("a red heart", rank="clip", **options)}
    dalle, scorer = copy_of(tiny_dalle), Scorer.from_pretrained(other_scorer)
    dalle.scorer = scorer
    assert dalle.scorer is scorer
    ranked = dalle.generate("a red heart", rank="clip", **options)
    assert [c.seed for c in ranked] != list(own)
    assert {c.seed for c in ranked} == set(own)
    assert all(c.image.tobytes() == own[c.seed].image.tobytes() for c in ranked)
    expected = scorer.score([c.image for c in ranked], "a red heart").tolist()
    assert [c.score for c in ranked] == pytest.approx(expected, abs=1e-5)
    assert sorted(expected, reverse=True) == expected


@pytest.mark.parametrize(("recommended", "expected"), [("likelihood", "both"), ("none", "both"), ("clip", "clip")])
def test_a_scorer_that_is_set_ranks_unless_told_otherwise(tiny_dalle, other_scorer, recommended, expected):
    dalle = copy_of(tiny_dalle)
    dalle.sampling = replace(dalle.sampling, rank=recommended)
    dalle.scorer = Scorer.from_pretrained(other_scorer)
    assert dalle.generate("a cat", candidates=3).settings["sampling"]["rank"] == expected
    likelihood = dalle.generate("a cat", candidates=3, rank="likelihood")
    assert likelihood.metadata() == tiny_dalle.generate("a cat", candidates=3, rank="likelihood").metadata()


def test_results_record_a_scorer_that_was_set_and_ranked(tiny_dalle, other_scorer):
    dalle, scorer = copy_of(tiny_dalle), Scorer.from_pretrained(other_scorer)
    dalle.scorer = scorer
    recorded = {"name": str(other_scorer), "identity": scorer_identity(scorer)}
    assert dalle.scorer_source == recorded
    assert dalle.generate("a cat", candidates=2).settings["scorer"] == recorded
    assert "scorer" not in dalle.generate("a cat", candidates=2, rank="likelihood").settings
    dalle.scorer = tiny_dalle.scorer
    assert "scorer" not in dalle.generate("a cat", candidates=2, rank="both").settings
    dalle.scorer = None
    without = dalle.generate("a cat", candidates=2)
    assert without.settings["sampling"]["rank"] == "likelihood"
    assert "scorer" not in without.settings


@pytest.mark.parametrize("wrong", ["hf:openai/clip-vit-base-patch32", 3, Scorer, RedScorer()], ids=repr)
def test_what_is_no_scorer_cannot_be_set(tiny_dalle, wrong):
    dalle = copy_of(tiny_dalle)
    with pytest.raises(UserError, match=r"expected a Scorer, or None for none, got \w+; load one with Scorer"):
        dalle.scorer = wrong
    assert dalle.scorer is tiny_dalle.scorer


@pytest.mark.parametrize(
    ("rank", "keep", "left"), [("likelihood", 1, 3), ("both", 1, 3), ("clip", 5, 5), ("none", 1, 1)]
)
def test_with_prune_the_candidates_left_are_ranked_as_before(tiny_dalle, rank, keep, left):
    options = {"candidates": 9, "seed": 3, "rank": rank}
    every = {candidate.seed: candidate for candidate in tiny_dalle.generate("a red heart", keep=9, **options)}
    request = tiny_dalle.request("a red heart", keep=keep, prune=True, **options)
    (generated,) = generate_many(tiny_dalle.transformer, tiny_dalle.stream, [request.ids])
    assert len(generated.indices) == left
    pruned = tiny_dalle.generate("a red heart", keep=keep, prune=True, **options)
    seeds = [request.seeds[index] for index in generated.indices]
    best = [seed for seed in every if seed in seeds][:keep]
    assert [candidate.seed for candidate in pruned] == best
    assert [candidate.score for candidate in pruned] == [every[seed].score for seed in best]
    assert pruned.settings["sampling"]["prune"] is True


@pytest.mark.parametrize(("rank", "decoded"), [("likelihood", 2), ("none", 2), ("clip", 5), ("both", 5)])
def test_only_candidates_that_are_kept_or_scored_are_decoded(tiny_dalle, monkeypatch, rank, decoded):
    counts = []
    decode = tiny_dalle.image_tokenizer.decode

    def counting_decode(image_ids, tile):
        counts.append(len(image_ids))
        return decode(image_ids, tile)

    monkeypatch.setattr(tiny_dalle.image_tokenizer, "decode", counting_decode)
    result = tiny_dalle.generate("a red heart", candidates=5, keep=2, rank=rank)
    assert sum(counts) == decoded
    for candidate in result:
        assert candidate.image.tobytes() == to_images(decode(candidate.image_ids[None]))[0].tobytes()


class BrightnessOfPixels:
    """A scorer that says it is on a GPU, and gets pixels."""

    scale = 1000.0
    is_on_gpu = True

    def embed_images(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return images[:, 0].float().mean((1, 2), keepdim=True)[:, 0] / 255

    def embed_texts(self, texts):
        return torch.ones(1, 1)


def test_a_scorer_on_a_gpu_gets_the_pixels_of_the_same_pictures(tiny_dalle):
    options = {"candidates": 7, "keep": 3, "seed": 3, "rank": "clip"}
    expected = with_scorer(tiny_dalle, RedScorer()).generate("a red heart", **options)
    found = with_scorer(tiny_dalle, BrightnessOfPixels()).generate("a red heart", **options)
    for candidate, other in zip(found, expected, strict=True):
        assert candidate.seed == other.seed
        assert candidate.image.tobytes() == other.image.tobytes()
        assert candidate.score == pytest.approx(other.score)


@pytest.mark.parametrize(("candidates", "keep", "expected"), [(1, 1, 1), (3, 8, 3), (5, 2, 2)])
def test_at_most_all_candidates_are_kept(tiny_dalle, candidates, keep, expected):
    assert len(tiny_dalle.generate("a cat", candidates=candidates, keep=keep)) == expected


class FailingScorer(RedScorer):
    """A scorer whose cosine of some pictures is not a number."""

    def __init__(self, failing):
        super().__init__()
        self.failing = failing

    def embed_images(self, images):
        embed = super().embed_images(images)
        embed[list(self.failing)] = math.nan
        return embed


@pytest.mark.parametrize("rank", ["clip", "both"])
def test_a_candidate_whose_score_is_not_a_number_comes_last_without_a_score(tiny_dalle, rank):
    dalle = with_scorer(tiny_dalle, FailingScorer({0, 3}))
    ranked = dalle.generate("a red heart", candidates=5, keep=5, rank=rank)
    assert [candidate.seed for candidate in ranked[3:]] == [candidate_seed(0, 0), candidate_seed(0, 3)]
    assert [candidate.score is None for candidate in ranked] == [False, False, False, True, True]
    json.dumps(ranked.metadata(), allow_nan=False)


def test_candidates_without_any_score_are_refused(tiny_dalle):
    dalle = with_scorer(tiny_dalle, FailingScorer(range(5)))
    with pytest.raises(UserError, match="expected finite scores of candidates, got 5 of 5 that are not"):
        dalle.generate("a red heart", candidates=5, rank="clip")


def test_scorers_get_prompts_without_marks_at_the_end(tiny_dalle):
    scorer = RedScorer()
    with_scorer(tiny_dalle, scorer).generate("A red heart!", candidates=5, rank="clip")
    assert scorer.calls == [(5, "A red heart")]


def test_diverse_candidates_are_good_and_unlike_those_before():
    embed = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    scores = torch.tensor([5.0, 4.9, 1.0, 5.0, 3.0])
    assert most_diverse(scores, embed, 0.0, 5) == [0, 1, 4, 2, 3]  # equal pictures come last in any case
    # Less twice the cosine with the nearest before: 4.9 - 1.92, 1 - 0, 3 - 1.2; then 1 - 2 * 0.28, 3 - 2 * 0.8.
    assert most_diverse(scores, embed, 2.0, 5) == [0, 1, 4, 2, 3]
    assert most_diverse(scores, embed, 5.0, 5) == [0, 2, 1, 4, 3]
    assert most_diverse(scores, embed, 5.0, 2) == [0, 2]
    broken = torch.tensor([torch.nan, 4.9, 1.0, 5.0, torch.inf])
    assert most_diverse(broken, embed, 5.0, 5) == [3, 2, 1, 0, 4]


@pytest.mark.parametrize("rank", ["clip", "both"])
def test_diverse_pictures_are_remade_in_their_order(tiny_dalle, rank):
    options = {"candidates": 24, "seed": 3, "rank": rank, "temperature": 2.0, "guidance": 1.0}
    weight = 3.0 if rank == "clip" else 1e4  # random weights: likelihoods differ by far more than cosines
    best = tiny_dalle.generate("a red heart", keep=6, **options)
    kept = tiny_dalle.generate("a red heart", keep=6, diversity=weight, **options)
    assert kept[0].seed == best[0].seed
    assert [c.seed for c in kept] != [c.seed for c in best]
    embed = tiny_dalle.scorer.embed_images([c.image for c in kept])
    other = tiny_dalle.scorer.embed_images([c.image for c in best])
    assert (embed @ embed.T).mean() < (other @ other.T).mean()
    assert kept.settings["sampling"]["diversity"] == weight
    (request,) = parse_recorded({**kept.metadata(), "precision": "fp32"}, "x.png").requests()
    again = tiny_dalle.generate(**request)
    assert [(c.seed, c.score) for c in again] == [(c.seed, pytest.approx(c.score)) for c in kept]


def test_diverse_pictures_are_embedded_once(tiny_dalle):
    scorer = RedScorer()
    with_scorer(tiny_dalle, scorer).generate("a red heart", candidates=11, keep=4, rank="clip", diversity=0.5)
    assert scorer.embedded == 11


def test_diversity_needs_a_scorer(tiny_dalle):
    dalle = with_scorer(tiny_dalle, None)
    with pytest.raises(UserError, match=r"expected a scorer for diversity 0\.2, .*, got none; leave diversity out, or"):
        dalle.generate("a cat", candidates=2, diversity=0.2)
    dalle.sampling = replace(dalle.sampling, diversity=0.2)  # what a model recommends is no request
    assert len(dalle.generate("a cat", candidates=2)) == 2


def test_diversity_is_no_negative_number(tiny_dalle):
    with pytest.raises(UserError, match=r"expected a diversity of 0 or more, got -1\.0; 0 keeps the best"):
        tiny_dalle.generate("a cat", candidates=1, diversity=-1)


def test_transparent_pictures_are_those_without_it_cut_out(tiny_dalle):
    options = {"candidates": 3, "seed": 3, "rank": "both"}
    plain = tiny_dalle.generate("a red heart", **options)
    cut = tiny_dalle.generate("a red heart", transparent=True, **options)
    assert [c.seed for c in cut] == [c.seed for c in plain]
    assert [c.image.tobytes() for c in cut] == [without_ground(c.image).tobytes() for c in plain]
    assert cut.grid().mode == "RGBA"
    assert cut.grid().getpixel((0, 0))[3] == 0
    assert plain.grid().mode == "RGB"
    assert cut.settings["sampling"]["transparent"] is True
