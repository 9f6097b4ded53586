"""`dalle evaluate paint`: what is computed from the measured pictures."""

import pytest
import torch

from dalle_mini_impl.evaluate import paint as measure


def seen(name, guide, second, ranks):
    return measure.Measured(name, torch.tensor(guide), torch.tensor(second), {"judge": torch.tensor(ranks)})


def test_the_best_is_chosen_by_the_guide_alone():
    group = seen(
        "random", [[0.1, 0.3, 0.2], [0.9, 0.3, 0.2]], [[0.5, 0.0, 0.9], [0.7, 0.8, 0.9]], [[0, 7, 0], [3, 0, 0]]
    )
    chosen = measure.best(group, "best")
    assert chosen.guide.tolist() == [[pytest.approx(0.3)], [pytest.approx(0.9)]]
    assert chosen.second.tolist() == [[pytest.approx(0.0)], [pytest.approx(0.7)]]
    assert chosen.ranks["judge"].tolist() == [[7], [3]]
    cells = measure.figures(group)
    assert cells["second's cosine"] == "0.633"
    assert cells["judge top-1"].startswith(".67")
    assert measure.figures(chosen)["judge top-5"].startswith(".50")
    assert chosen.facts()["second"] == pytest.approx([0.0, 0.7])


def test_wins_are_by_the_second_scorer():
    second = {"mean": 0.9, "best": 0.2, "painted": 0.3, "sampled": 0.5, "on": 0.4}
    found = measure.wins([seen(name, [[0.0]], [[value]], [[0]]) for name, value in second.items()])
    assert {name: value.value for name, value in found.items()} == {"painted > best": 1.0, "on > sampled": 0.0}
