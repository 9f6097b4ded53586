import sys

import pytest
import torch
from PIL import Image

from dalle_mini_impl.evaluate import rerank
from dalle_mini_impl.evaluate.generation import Drawing
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

HITS = torch.tensor([[True, False, False, True, False, True, True], [False] * 6 + [True]])
SCORES = torch.tensor([[5.0, 4, 9, 8, 1, 1, 0], [7, 6, 5, 4, 3, 2, 99]])
# Likelihoods after two and after four of eight ids; equal ones stay in their order.
SO_FAR = torch.tensor([[[2.0, 2], [1, 9], [1, 1], [3, 1], [5, 5], [5, 5], [9, 9]], [[0.0, 0]] * 7])
SO_FAR = torch.cat([SO_FAR.repeat_interleave(2, 2), torch.zeros(2, 7, 4)], 2)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [4 / 7, 1 / 7]),  # alone, each candidate is its own best
        (2, [1 / 3, 0]),  # of the first six: 5 against 4 hits; 9 against 8 does not, nor the first of 1 and 1
        (3, [1 / 2, 0]),  # 9 does not hit, 8 does
        (7, [0, 1]),
    ],
)
def test_the_best_of_each_group_counts(count, expected):
    assert rerank.best_of(HITS, SCORES, count).tolist() == pytest.approx(expected)


def test_chance_is_the_mean_candidate_of_whole_groups():
    assert rerank.best_of(HITS, None, 2).tolist() == pytest.approx([3 / 6, 0])
    assert rerank.best_of(HITS, None, 7).tolist() == pytest.approx([4 / 7, 1 / 7])


def make_curve():
    ranks = torch.where(HITS, torch.tensor([[3], [0]]), 99)  # hits at the fourth place, and at the first
    drawing = Drawing([[None] * 7] * 2, {"pixels": ranks})
    whole = {way.score: SCORES for way in rerank.WAYS.values() if way.score != "chance"}
    whole["both"] = HITS.float()
    seconds = {(way._replace(score=""), n): n + way.prune / 2 for way in rerank.WAYS.values() for n in (1, 2, 4)}
    return rerank.curve(drawing, rerank.Scored(whole, SO_FAR), seconds)


def test_the_curve_has_a_point_for_each_way_and_size():
    points = make_curve()
    found = {(p.way, p.candidates): [s.value for s in p.shares["pixels"]] for p in points}
    assert set(found) == {(way, n) for way in rerank.WAYS for n in (1, 2, 4)}
    assert found["both", 4] == pytest.approx([0, 1 / 2])  # the first four: a hit at the fourth place, and none
    assert found["clip", 2] == pytest.approx([0, 1 / 6])
    assert found["chance", 1] == pytest.approx([1 / 14, (4 / 7 + 1 / 7) / 2])
    assert found["both", 2] == pytest.approx([0, 1 / 2])
    assert found["both, pruned", 2] == pytest.approx([0, 1 / 3])  # one of three hits was given up
    assert [p.seconds for p in points if p.way == "likelihood, pruned"] == [1.5, 2.5, 4.5]
    lines = rerank.table(points, "pixels").splitlines()
    assert lines[0].split()[-3:] == ["1", "2", "4"]
    assert lines[1 + list(rerank.WAYS).index("both")].split() == ["by", "both", "0.36", "0.50", "0.50"]
    line = rerank.seconds_table(points).splitlines()[1 + list(rerank.WAYS).index("both, pruned")]
    assert line.split() == ["by", "both,", "pruned", "1.50", "2.50", "4.50"]


def test_pruning_gives_up_the_weaker_half_of_each_group_twice():
    assert rerank.pruned(SCORES, SO_FAR, 1).equal(SCORES)
    two = rerank.pruned(SCORES, SO_FAR, 2)
    assert two.isfinite().tolist() == [
        [True, False, False, True, True, False, False],
        [True, False, True, False, True, False, False],
    ]
    # Of four, 0 and 3 go on after two ids and 0 after four; the last three are no group.
    assert rerank.pruned(SCORES, SO_FAR, 4)[0].tolist() == [5.0] + 6 * [-torch.inf]


def test_what_is_pruned_here_is_pruned_by_generate(tiny_model):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    result = dalle.generate("a red heart", candidates=8, keep=8, seed=1, rank="none")
    scored = rerank.scores(dalle, result)
    left = rerank.pruned(scored.whole["likelihood"][None], scored.so_far[None], 8)[0]
    best = dalle.generate("a red heart", candidates=8, keep=1, seed=1, rank="likelihood", prune=True)[0]
    assert left.isfinite().sum() == 2
    assert result[int(left.argmax())].seed == best.seed


def test_seconds_are_measured_for_each_way_to_ask(monkeypatch):
    now, asked = [0.0], []

    class Dalle:
        def generate(self, prompt, **options):
            asked.append((prompt, options))
            now[0] += {"a": 1.0, "b": 5.0, "c": 2.0}[prompt] * options["candidates"]

    monkeypatch.setattr(rerank.time, "perf_counter", lambda: now[0])
    seconds = rerank.measure_seconds(Dalle(), ["a", "b", "c"], 3)
    ways = {(way.rank, way.prune) for way in rerank.WAYS.values()}
    assert {(way.rank, way.prune) for way, _ in seconds} == ways
    assert {(way.rank, count): value for (way, count), value in seconds.items()} == {
        (rank, count): 2.0 * (1 if rank == "none" else count) for rank, _ in ways for count in (1, 2)
    }
    assert all(options["keep"] == 1 for _, options in asked)


def test_the_curve_as_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = rerank.plot(make_curve(), tmp_path / "curve.png")
    assert Image.open(path).size == (770, 462)


def test_a_picture_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib.*eval"):
        rerank.plot(make_curve(), tmp_path / "curve.png")


def test_scores_are_those_generate_ranks_by(tiny_model):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    result = dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank="none")
    scored = rerank.scores(dalle, result)
    assert set(scored.whole) == {way.score for way in rerank.WAYS.values()} - {"chance"}
    for way in ("clip", "likelihood", "both"):
        ranked = {c.seed: c.score for c in dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank=way)}
        expected = torch.tensor([ranked[candidate.seed] for candidate in result])
        torch.testing.assert_close(scored.whole[way], expected, rtol=1e-4, atol=1e-3)
    clip = scored.whole["both"] - scored.whole["likelihood"]
    torch.testing.assert_close(scored.whole["ratio + clip"] - scored.whole["ratio"], clip)
    assert not torch.allclose(scored.whole["ratio"], scored.whole["likelihood"])
    torch.testing.assert_close(scored.so_far[:, -1], scored.whole["likelihood"])
