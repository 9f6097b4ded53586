"""Which pictures make up the batch of a step, in time and memory that do not grow with the set.

The order of an epoch is a keyed bijection of the positions onto the pictures: a Feistel network (Luby and Rackoff
1988), whose keys follow from the seed and the epoch, over the smallest rectangle that holds all positions; a result
beyond the last picture goes through it again (cycle walking, Black and Rogaway 2002). So what is at one position is
computed without the others. Runs of version 0.1 permuted all indices in each epoch, and are continued so.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dalle_mini_impl.config.diffusion import DiffusionDecoderRun
from dalle_mini_impl.config.training import ORDERS, ImageTokenizerRun, PriorRun, RunConfig, ScorerRun, TransformerRun
from dalle_mini_impl.train.shared.state import saved_record
from dalle_mini_impl.util.errors import UserError

Training = TypeVar("Training", ImageTokenizerRun, TransformerRun, ScorerRun, PriorRun, DiffusionDecoderRun)

_, PERMUTED = ORDERS
ROUNDS = 16
"""Rounds of the network. Four make it pseudorandom if their functions are (Luby and Rackoff); sets of a few pictures,
whose numbers have few values, need twelve until all of their orders are equally frequent."""
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Of the round function, the finalizer of SplitMix64 (Steele et al. 2014)."""


def batch_indices(step: int, batch_size: int, count: int, run: RunConfig) -> np.ndarray:
    """The pictures of the global batch of a step: every epoch is a new random order of all pictures.

    Args:
        step: optimizer step, from 0.
        batch_size: pictures per step over all processes.
        count: pictures in the set.
        run: settings of the run, of which `seed` and `order` count.

    Returns:
        (batch_size,) int64 indices in [0, count).
    """
    epochs, positions = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), count)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        if run.order == PERMUTED:
            indices[in_epoch] = np.random.default_rng([run.seed, int(epoch)]).permutation(count)[positions[in_epoch]]
        else:
            indices[in_epoch] = keyed_order(positions[in_epoch], count, run.seed, int(epoch))
    return indices


def keyed_order(positions: np.ndarray, count: int, *key: int) -> np.ndarray:
    """The pictures at some positions of an order of all pictures.

    Args:
        positions: (n,) int64 in [0, count).
        count: pictures in the set.
        *key: integers of at least 0 that the order follows from.

    Returns:
        (n,) int64 in [0, count); different ones for different positions.
    """
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    indices = _encipher(positions, count, keys)
    while (outside := indices >= count).any():
        indices[outside] = _encipher(indices[outside], count, keys)
    return indices


def continue_order(config: Training) -> Training:
    """The settings of a run that is resumed, with the order of pictures that its saved state was trained with."""
    order = saved_record(Path(config.run.state_dir)).settings.get("run.order", PERMUTED)
    return replace(config, run=replace(config.run, order=order))


def check_order(run: RunConfig) -> None:
    """Refuse an unknown order.

    Raises:
        UserError: naming the setting.
    """
    if run.order not in ORDERS:
        raise UserError(f"run.order is {run.order!r}; expected {' or '.join(ORDERS)}")


def _encipher(numbers: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of the numbers below height × width, a nearly square rectangle of at least `count` cells."""
    height = np.uint64(math.isqrt(count - 1) + 1)
    width = np.uint64(-(-count // int(height)))
    row, column = np.divmod(numbers.astype(np.uint64), width)
    for first, second in keys.reshape(-1, 2):
        row = (row + _mix(column ^ first) % height) % height
        column = (column + _mix(row ^ second) % width) % width
    return (row * width + column).astype(np.int64)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Pseudorandom numbers (n,) uint64 that follow from others."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(multiplier)
    return numbers ^ (numbers >> np.uint64(31))
