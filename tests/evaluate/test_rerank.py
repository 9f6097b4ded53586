"""R-precision of the best of N candidates by each ranking method."""

import shutil
import sys
from dataclasses import replace
from typing import cast

import pytest
import torch
from helpers.priors import add_prior, take_embeddings
from PIL import Image

from dalle_mini_impl.evaluate import rerank
from dalle_mini_impl.evaluate.generation import GeneratedPictures
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.util.errors import UserError

HITS = torch.tensor([[True, False, False, True, False, True, True], [False] * 6 + [True]])
SCORES = torch.tensor([[5.0, 4, 9, 8, 1, 1, 0], [7, 6, 5, 4, 3, 2, 99]])
# Likelihoods after two and after four of eight ids; equal ones keep their order.
CUMULATIVE = torch.tensor([[[2.0, 2], [1, 9], [1, 1], [3, 1], [5, 5], [5, 5], [9, 9]], [[0.0, 0]] * 7])
CUMULATIVE = torch.cat([CUMULATIVE.repeat_interleave(2, 2), torch.zeros(2, 7, 4)], 2)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [4 / 7, 1 / 7]),  # alone, each candidate is its own best
        (2, [1 / 3, 0]),  # of the first six: 5 against 4 hits; 9 against 8 does not, nor the first of 1 and 1
        (3, [1 / 2, 0]),  # 9 does not hit, 8 does
        (7, [0, 1]),
    ],
)
def test_hit_rate_of_the_best_of_each_group(count, expected):
    assert rerank.hit_rate_of_best(HITS, SCORES, count).tolist() == pytest.approx(expected)


def test_hit_rate_without_scores_is_the_mean_of_whole_groups():
    assert rerank.hit_rate_of_best(HITS, None, 2).tolist() == pytest.approx([3 / 6, 0])
    assert rerank.hit_rate_of_best(HITS, None, 7).tolist() == pytest.approx([4 / 7, 1 / 7])


def make_curve():
    """Two prompts with seven candidates each; the results' own contents are not used."""
    ranks = torch.where(HITS, torch.tensor([[3], [0]]), 99)  # hits at rank 4, and at rank 1
    pictures = GeneratedPictures([cast(Result, range(7))] * 2, [0, 1], {}, {"pixels": ranks})
    totals = {method.score: SCORES for method in rerank.METHODS.values() if method.score != "chance"}
    totals["both"] = HITS.float()
    seconds = {
        (method.rank, method.prune, n): n + method.prune / 2 for method in rerank.METHODS.values() for n in (1, 2, 4)
    }
    return rerank.build_curve(pictures, rerank.CandidateScores(totals, CUMULATIVE), seconds)


def test_curve_has_a_point_for_each_method_and_number_of_candidates():
    points = make_curve()
    values = {(p.method, p.candidates): [s.value for s in p.shares["pixels"]] for p in points}
    assert set(values) == {(method, n) for method in rerank.METHODS for n in (1, 2, 4)}
    assert values["both", 4] == pytest.approx([0, 1 / 2])  # the first four: a hit at the fourth place, and none
    assert values["clip", 2] == pytest.approx([0, 1 / 6])
    assert values["chance", 1] == pytest.approx([1 / 14, (4 / 7 + 1 / 7) / 2])
    assert values["both", 2] == pytest.approx([0, 1 / 2])
    assert values["both, pruned", 2] == pytest.approx([0, 1 / 3])  # one of three hits is pruned
    assert [p.seconds for p in points if p.method == "likelihood, pruned"] == [1.5, 2.5, 4.5]
    lines = rerank.accuracy_table(points, "pixels").splitlines()
    assert lines[0].split()[-3:] == ["1", "2", "4"]
    assert lines[1 + list(rerank.METHODS).index("both")].split() == ["by", "both", "0.36", "0.50", "0.50"]
    line = rerank.seconds_table(points).splitlines()[1 + list(rerank.METHODS).index("both, pruned")]
    assert line.split() == ["by", "both,", "pruned", "1.50", "2.50", "4.50"]


def test_weights_rank_by_likelihood_plus_as_many_scaled_cosines():
    ranks = torch.tensor([[0, 9, 9], [9, 9, 3]])
    pictures = GeneratedPictures([cast(Result, range(3))] * 2, [0, 1], {}, {"pixels": ranks})
    # Scaled by 2, the cosines of the first prompt outweigh its likelihoods from 10 / 9 on, of the second from 25 on.
    totals = {
        "likelihood": torch.tensor([[0.0, 10, 1], [50, 0, 0]]),
        "clip": torch.tensor([[4.5, 0, 4], [0, 0, 1.0]]),
    }
    rows = rerank.weight_rows(pictures, rerank.CandidateScores(totals, torch.zeros(2, 3, 8)), 2.0)
    assert [row.name for row in rows] == [f"by both, clip_weight {weight:g}" for weight in rerank.CLIP_WEIGHTS]
    top1 = {weight: row.shares["pixels"][0].value for weight, row in zip(rerank.CLIP_WEIGHTS, rows, strict=True)}
    top5 = {weight: row.shares["pixels"][1].value for weight, row in zip(rerank.CLIP_WEIGHTS, rows, strict=True)}
    assert top1 == {0.5: 0, 1: 0, 2: 0.5, 4: 0.5, 8: 0.5, 12: 0.5, 16: 0.5, 32: 0.5}
    assert top5 == {0.5: 0, 1: 0, 2: 0.5, 4: 0.5, 8: 0.5, 12: 0.5, 16: 0.5, 32: 1}


def test_pruning_drops_the_weaker_half_of_each_group_twice():
    assert rerank.prune_scores(SCORES, CUMULATIVE, 1).equal(SCORES)
    two = rerank.prune_scores(SCORES, CUMULATIVE, 2)
    assert two.isfinite().tolist() == [
        [True, False, False, True, True, False, False],
        [True, False, True, False, True, False, False],
    ]
    # Of four candidates, 0 and 3 remain after two ids and 0 after four; the last three form no group.
    assert rerank.prune_scores(SCORES, CUMULATIVE, 4)[0].tolist() == [5.0] + 6 * [-torch.inf]


def test_pruning_matches_that_of_generate(tiny_model):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    result = dalle.generate("a red heart", candidates=8, keep=8, seed=1, rank="none")
    scores = rerank.score_candidates(dalle, result)
    remaining = rerank.prune_scores(scores.totals["likelihood"][None], scores.cumulative[None], 8)[0]
    best = dalle.generate("a red heart", candidates=8, keep=1, seed=1, rank="likelihood", prune=True)[0]
    assert remaining.isfinite().sum() == 2
    assert result[int(remaining.argmax())].seed == best.seed


def test_seconds_are_measured_for_each_rank_and_prune_argument(monkeypatch):
    now, calls = [0.0], []

    class SlowModel:
        """Takes as long per candidate as its prompt says."""

        def generate(self, prompt, **options):
            calls.append((prompt, options))
            now[0] += {"a": 1.0, "b": 5.0, "c": 2.0}[prompt] * options["candidates"]

    monkeypatch.setattr(rerank.time, "perf_counter", lambda: now[0])
    seconds = rerank.measure_seconds(SlowModel(), ["a", "b", "c"], 3)
    arguments = {(method.rank, method.prune) for method in rerank.METHODS.values()}
    assert seconds == {
        (rank, prune, count): 2.0 * (1 if rank == "none" else count) for rank, prune in arguments for count in (1, 2)
    }
    assert all(options["keep"] == 1 for _, options in calls)


def test_curve_is_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    path = rerank.plot_curve(make_curve(), tmp_path / "curve.png")
    assert Image.open(path).size == (770, 462)


def test_missing_matplotlib_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib.*eval"):
        rerank.plot_curve(make_curve(), tmp_path / "curve.png")


def test_scores_are_those_generate_ranks_by(tiny_model):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    dalle.sampling = replace(dalle.sampling, clip_weight=3.0)
    result = dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank="none")
    scores = rerank.score_candidates(dalle, result)
    assert set(scores.totals) == {method.score for method in rerank.METHODS.values()} - {"chance"}
    for rank in ("clip", "likelihood", "both"):
        ranked = {c.seed: c.score for c in dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank=rank)}
        expected = torch.tensor([ranked[candidate.seed] for candidate in result])
        torch.testing.assert_close(scores.totals[rank], expected, rtol=1e-4, atol=1e-3)
    clip = scores.totals["both"] - scores.totals["likelihood"]
    torch.testing.assert_close(scores.totals["ratio + clip"] - scores.totals["ratio"], clip)
    assert not torch.allclose(scores.totals["ratio"], scores.totals["likelihood"])
    torch.testing.assert_close(scores.cumulative[:, -1], scores.totals["likelihood"])


@pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only
@pytest.mark.parametrize("prior", ["ar", "text"])
def test_likelihoods_are_given_the_embedding_that_a_candidate_was_drawn_from(tiny_model, tmp_path, prior):
    folder = add_prior(take_embeddings(shutil.copytree(tiny_model, tmp_path / "model")), "ar")
    dalle = DalleMini.from_pretrained(folder, "cpu", "fp32")
    dalle.sampling = replace(dalle.sampling, prior=prior)
    result = dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank="none")
    scores = rerank.score_candidates(dalle, result)
    ranked = {c.seed: c.score for c in dalle.generate("a red heart", 5, 5, seed=1, rank="likelihood")}
    expected = torch.tensor([ranked[candidate.seed] for candidate in result])
    torch.testing.assert_close(scores.totals["likelihood"], expected, rtol=1e-4, atol=1e-3)
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    assert not torch.allclose(dalle.log_likelihood("a red heart", image_ids).sum(1), expected, atol=1e-2)
