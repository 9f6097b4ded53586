"""The order of an epoch: a permutation, as random as NumPy's, whose cost does not grow with the set."""

import functools
import json
import math
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from helpers.training import interrupt, outcome

from dalle_mini_impl.config.training import RunConfig, TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.train.shared.order import batch_indices, keyed_order
from dalle_mini_impl.train.shared.saved_tensors import seal
from dalle_mini_impl.train.shared.state import STATE_FILE
from dalle_mini_impl.util.errors import UserError

LARGEST_DEVIATION = 5.0
"""Standard deviations that a sum of many independent terms stays within, but once in 1.7 million tries."""


def drawn(steps, batch_size, count, seed=0, order="keyed"):
    run = RunConfig(seed=seed, order=order)
    return np.concatenate([batch_indices(step, batch_size, count, run) for step in range(steps)])


# --- permutations


COUNTS = [*range(1, 41), 97, 127, 128, 129, 255, 256, 257, 1009, 4095, 4096, 4097, 65_536, 65_537, 99_991]


@pytest.mark.parametrize("count", COUNTS)
def test_an_order_holds_every_picture_once(count):
    for epoch in range(3):
        order = keyed_order(np.arange(count), count, 7, epoch)
        assert (np.sort(order) == np.arange(count)).all()


@pytest.mark.parametrize("order", ["keyed", "permuted"])
@pytest.mark.parametrize(("batch_size", "count"), [(5, 23), (7, 21), (31, 11), (3, 3), (1, 2), (4, 1)])
def test_each_epoch_is_a_permutation(batch_size, count, order):
    epochs = 4
    indices = drawn(math.ceil(epochs * count / batch_size), batch_size, count, order=order)[: epochs * count]
    for epoch in indices.reshape(epochs, count):
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_differ():
    epochs = drawn(4, 23, 23)
    assert len({tuple(epoch) for epoch in epochs.reshape(4, 23)}) == 4
    assert (drawn(1, 23, 23, seed=1) != epochs[:23]).any()


def test_the_batch_of_a_step_does_not_depend_on_earlier_calls():
    assert (drawn(9, 5, 23)[8 * 5 :] == batch_indices(8, 5, 23, RunConfig())).all()


def test_the_cost_does_not_grow_with_the_set():
    tracemalloc.start()
    try:
        indices = batch_indices(10**6, 256, 10**11, RunConfig())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(set(indices.tolist())) == 256
    assert 0 <= indices.min() < 10**10 < 9 * 10**10 < indices.max() < 10**11


# --- as random as NumPy's: each statistic and its bound hold for both, and not for what is less random


@functools.cache
def keyed(count, epochs):
    return np.stack([keyed_order(np.arange(count), count, epoch % 3, epoch // 3) for epoch in range(epochs)])


def permuted(count, epochs):
    return np.stack([np.random.default_rng(epoch).permutation(count) for epoch in range(epochs)])


def regular(count, epochs):
    """Orders that go through the pictures with one stride, each from another picture."""
    return np.stack([(7 * np.arange(count) + epoch) % count for epoch in range(epochs)])


def deviation_from_even(table, freedom):
    """Standard deviations by which Pearson's statistic of counts (…, n), whose rows should be even, exceeds its mean.

    Its mean are the degrees of freedom, its variance is twice as large.
    """
    expected = table.sum(-1, keepdims=True) / table.shape[-1]
    return (((table - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def place_deviation(orders):
    """Which tenth of the pictures is at which tenth of the positions."""
    tenths = orders.reshape(len(orders), 10, -1) * 10 // orders.shape[1]
    return deviation_from_even(np.stack([(tenths == tenth).sum(-1) for tenth in range(10)], -1), 81 * len(orders))


def step_deviation(orders):
    """How far apart neighbours are, around the set, in tenths of it."""
    distances = np.diff(orders, axis=1) % orders.shape[1] * 10 // orders.shape[1]
    return deviation_from_even(np.stack([(distances == tenth).sum(-1) for tenth in range(10)], -1), 9 * len(orders))


def neighbour_deviation(orders):
    """Correlation of neighbours: of a random permutation -1 / (n - 1) on average, with a variance of about 1 / n."""
    count = orders.shape[1]
    shares = (orders - (count - 1) / 2) / math.sqrt((count**2 - 1) / 12)
    return ((shares[:, 1:] * shares[:, :-1]).sum() + len(orders)) / math.sqrt(count * len(orders))


def epoch_deviation(orders):
    """Correlation of the pictures at one position in consecutive epochs."""
    count = orders.shape[1]
    shares = (orders - (count - 1) / 2) / math.sqrt((count**2 - 1) / 12)
    return (shares[1:] * shares[:-1]).sum() / math.sqrt(count * (len(orders) - 1))


STATISTICS = [place_deviation, step_deviation, neighbour_deviation, epoch_deviation]


@pytest.mark.parametrize("make", [keyed, permuted])
@pytest.mark.parametrize("count", [1000, 1020, 4100])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_places_are_random(statistic, count, make):
    assert abs(statistic(make(count, 120))) < LARGEST_DEVIATION


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_statistics_notice_regular_orders(statistic):
    assert abs(statistic(regular(1020, 120))) > 2 * LARGEST_DEVIATION


@pytest.mark.parametrize("make", [keyed, permuted])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_small_sets_have_each_of_their_orders_equally_often(count, make):
    orders = make(count, 20 * math.factorial(count))
    occurred = np.array([(orders == order).all(1).sum() for order in permutations(range(count))])
    assert abs(deviation_from_even(occurred, len(occurred) - 1)) < LARGEST_DEVIATION


# --- runs of version 0.1


def test_an_unknown_order_is_refused(home):
    with pytest.raises(UserError, match=r"run\.order is 'sorted'; expected keyed or permuted"):
        home.run("transformer", "run.order=sorted")


@pytest.mark.parametrize("has_record", [False, True])
def test_a_run_of_version_0_1_goes_on_in_its_order(home, tmp_path, monkeypatch, has_record):
    broken, keyed_run = (home.copy(tmp_path / name) for name in ("broken", "keyed"))
    home.run("transformer", "run.order=permuted")
    keyed_run.run("transformer")
    assert outcome(keyed_run, "transformer") != outcome(home, "transformer")
    interrupt(broken, "transformer", 6, monkeypatch, "run.order=permuted")
    path = broken.folder / "transformer" / STATE_FILE
    state = torch.load(path, weights_only=True)
    record = json.loads(state.pop("record"))
    assert record["settings"].pop("run.order") == "permuted"
    torch.save({**state, **({"record": json.dumps(record)} if has_record else {})}, path)
    seal(path)
    interrupt(broken, "transformer", 9, monkeypatch, "--resume")
    broken.run("transformer", "--resume")
    assert outcome(broken, "transformer") == outcome(home, "transformer")
    assert load(TransformerRun, broken.folder / "transformer" / "config.yaml").run.order == "permuted"
