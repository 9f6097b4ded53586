"""Weights that are not numbers are found in every type; networks with too many weights are never allocated."""

import pytest
import torch
from torch import nn

from dalle_mini_impl.checkpoint.check_weights import EXTRA_NUMBERS, limited_numbers, non_finite
from dalle_mini_impl.util.errors import UserError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_found_in_every_type(dtype, value):
    tensor = torch.linspace(-3, 3, 7).to(dtype)
    assert non_finite({"a": tensor}) == []
    tensor[2] = value
    assert non_finite({"a": tensor, "b": torch.ones(2)}) == ["a"]


@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_the_largest_numbers_are_finite(dtype):
    extremes = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).smallest_normal, -0.0])
    assert non_finite({"a": extremes.to(dtype)}) == []


def test_numbers_too_large_for_float32_and_complex_ones_are_not_finite():
    tensors = {"a": torch.tensor([1e300], dtype=torch.float64), "b": torch.ones(1, dtype=torch.complex64)}
    assert non_finite(tensors) == ["a", "b"]


def test_integers_empty_and_transposed_tensors_are_finite():
    tensors = {"a": torch.tensor([-1, 2**40]), "b": torch.ones(0), "c": torch.rand(3, 2).T, "d": torch.tensor(True)}
    assert non_finite(tensors) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2**20, 2**20),
        lambda: nn.Embedding(2**40, 8),
        lambda: nn.Conv2d(2**20, 2**20, 3),
        lambda: torch.zeros((2**40,)),
        lambda: torch.zeros(size=(2**40,)),
        lambda: torch.full((2**20, 2**20), 1.0),
        lambda: torch.randint(0, 5, (2**40,)),
        lambda: torch.arange(2**40),
        lambda: torch.arange(0, 2**40, 2),
        lambda: torch.arange(0, end=2**40),
        lambda: torch.linspace(0, 1, 2**40),
        lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)),
    ],
)
def test_too_many_numbers_are_refused_before_they_are_allocated(make):
    with pytest.raises(UserError, match="more weights than the file has"), limited_numbers(100):
        make()


def test_the_limit_counts_all_tensors_together():
    with limited_numbers(0):
        torch.zeros(EXTRA_NUMBERS // 2, dtype=torch.bool)
        torch.zeros(EXTRA_NUMBERS // 2, dtype=torch.bool)
        with pytest.raises(UserError, match="more weights than the file has"):
            torch.zeros(1)
    torch.zeros(1)
