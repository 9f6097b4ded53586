"""The start of a step, from its end."""

import pytest
import torch

from dalle_mini_impl.unclip.solve import TOLERANCE, solve


@pytest.mark.parametrize("size", [0.2, 0.9, 3.0])
def test_a_start_is_found_also_where_the_plain_iteration_would_leave_it(size):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q * size
    start = torch.randn(1, 5, generator=generator)

    def step(x):
        return 0.9 * x + 0.3 * torch.tanh(x @ matrix)

    end = step(start)
    found = solve(step, end, 0.9)
    assert float((step(found) - end).abs().max()) <= TOLERANCE * float(end.abs().max())


def test_the_best_is_returned_where_there_is_no_start():
    end = torch.tensor([[3.0, -2.0]])
    found = solve(lambda x: torch.tanh(x), end, 1.0)  # never beyond 1
    assert found.isfinite().all()


def test_a_step_without_network_is_undone_at_once():
    calls = []
    end = torch.tensor([[3.0, -2.0]])
    found = solve(lambda x: calls.append(x) or 0.5 * x, end, 0.5)
    assert torch.equal(found, 2 * end)
    assert len(calls) == 1
