import torch

from dalle_mini_impl.train.shared.figures import Figures


def test_figures_come_back_once_in_the_order_of_the_steps():
    figures = Figures()
    assert figures.look() == []
    figures.add(3, {"loss": torch.tensor(1.5, requires_grad=True), "norms": torch.tensor([2.0, 4.0])})
    figures.add(4, {"loss": torch.tensor(2.5), "weight": torch.tensor(0.25, dtype=torch.float64)})
    assert figures.look() == [(3, {"loss": 1.5, "norms": [2.0, 4.0]}), (4, {"loss": 2.5, "weight": 0.25})]
    assert figures.look() == []
