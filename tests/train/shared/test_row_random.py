import numpy as np
import pytest

from dalle_mini_impl.train.shared.row_random import row_generators


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**70 + 3])
@pytest.mark.parametrize("step", [0, 1, 123_456, 2**33])
def test_generators_are_those_that_numpy_seeds(seed, step):
    rows = [0, 1, 5, 64, 2**32 - 1]
    for row, random in zip(rows, row_generators(seed, step, rows), strict=True):
        expected = np.random.default_rng([seed, step, row])
        assert random.bit_generator.state == expected.bit_generator.state
        assert random.random() == expected.random()
        assert random.integers(1000) == expected.integers(1000)


def test_no_rows():
    assert row_generators(0, 0, []) == []
