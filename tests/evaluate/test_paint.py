"""Measurements of painted pictures; the command is tested in test_generation.py."""

import pytest
import torch

from dalle_mini_impl.evaluate import paint as measure


def measured(name, guide, second, ranks):
    return measure.Measured(name, torch.tensor(guide), torch.tensor(second), {"judge": torch.tensor(ranks)})


def test_best_is_chosen_by_the_guide_alone():
    group = measured(
        "random", [[0.1, 0.3, 0.2], [0.9, 0.3, 0.2]], [[0.5, 0.0, 0.9], [0.7, 0.8, 0.9]], [[0, 7, 0], [3, 0, 0]]
    )
    best = measure.best_by_guide(group, "best")
    assert best.guide.tolist() == [[pytest.approx(0.3)], [pytest.approx(0.9)]]
    assert best.second.tolist() == [[pytest.approx(0.0)], [pytest.approx(0.7)]]
    assert best.ranks["judge"].tolist() == [[7], [3]]
    cells = measure.table_cells(group)
    assert cells["second's cosine"] == "0.633"
    assert cells["judge top-1"].startswith(".67")
    assert measure.table_cells(best)["judge top-5"].startswith(".50")
    assert best.as_json()["second"] == pytest.approx([0.0, 0.7])


def test_wins_are_counted_by_the_second_scorer():
    second = {"mean": 0.9, "best": 0.2, "painted": 0.3, "sampled": 0.5, "painted on": 0.4}
    shares = measure.win_shares([measured(name, [[0.0]], [[value]], [[0]]) for name, value in second.items()])
    assert {name: value.value for name, value in shares.items()} == {"painted > best": 1.0, "painted on > sampled": 0.0}
