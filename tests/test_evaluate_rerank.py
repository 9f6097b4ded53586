import pytest
import torch

from dalle_mini_impl.evaluate import rerank
from dalle_mini_impl.evaluate.generation import Drawing
from dalle_mini_impl.pipeline import DalleMini

HITS = torch.tensor([[True, False, False, True, False, True, True], [False] * 6 + [True]])
SCORES = torch.tensor([[5.0, 4, 9, 8, 1, 1, 0], [7, 6, 5, 4, 3, 2, 99]])


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


def test_the_curve_has_a_point_for_each_way_and_size():
    ranks = torch.where(HITS, torch.tensor([[3], [0]]), 99)  # hits at the fourth place, and at the first
    drawing = Drawing([[None] * 7] * 2, {"pixels": ranks})
    scored = {way: SCORES for way in rerank.WAYS if way != "chance"}
    scored["both"] = HITS.float()
    points = rerank.curve(drawing, scored)
    found = {(p.way, p.candidates): [s.value for s in p.shares["pixels"]] for p in points}
    assert set(found) == {(way, n) for way in rerank.WAYS for n in (1, 2, 4)}
    assert found["both", 4] == pytest.approx([0, 1 / 2])  # the first four: a hit at the fourth place, and none
    assert found["clip", 2] == pytest.approx([0, 1 / 6])
    assert found["chance", 1] == pytest.approx([1 / 14, (4 / 7 + 1 / 7) / 2])
    lines = rerank.table(points, "pixels").splitlines()
    assert lines[0].split()[-3:] == ["1", "2", "4"]
    assert lines[1 + rerank.WAYS.index("both")].split() == ["by", "both", "0.36", "0.50", "0.50"]


def test_scores_are_those_generate_ranks_by(tiny_model):
    dalle = DalleMini.from_pretrained(tiny_model, "cpu", "fp32")
    result = dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank="none")
    scored = rerank.scores(dalle, result)
    assert set(scored) == {*rerank.WAYS} - {"chance"}
    for way in ("clip", "likelihood", "both"):
        ranked = {c.seed: c.score for c in dalle.generate("a red heart", candidates=5, keep=5, seed=1, rank=way)}
        expected = torch.tensor([ranked[candidate.seed] for candidate in result])
        torch.testing.assert_close(scored[way], expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(scored["ratio"], scored["caption"])
