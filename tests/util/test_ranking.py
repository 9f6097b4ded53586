"""The order of scores, and scores that are no numbers."""

import math

import pytest
import torch

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ranking import best_first, check_finite


def test_equal_scores_keep_their_order_and_those_that_are_no_numbers_come_last():
    scores = torch.tensor([math.nan, 1.0, math.inf, 2.0, -math.inf, 1.0])
    assert best_first(scores).tolist() == [3, 1, 5, 0, 2, 4]
    assert best_first(scores.view(2, 3)).tolist() == [[1, 0, 2], [0, 2, 1]]


def test_finite_values_are_passed_on_and_others_counted():
    values = torch.tensor([1.0, 2.0])
    assert check_finite(values, "values", "advice") is values
    with pytest.raises(UserError, match=r"^expected finite values, got 1 of 2 that are not; advice$"):
        check_finite(torch.tensor([1.0, math.nan]), "values", "advice")
