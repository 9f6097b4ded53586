"""BPE dropout: merging the characters of a text into pieces, with possible merges skipped at random.

Provilkov et al. 2020, https://arxiv.org/abs/1910.13267. In each round every place draws a random number, and the best
merge whose place is not skipped is done. All of these numbers are a quadratic amount, which is drawn at once where the
text is short enough for that to be the fastest. Of rounds with more places only the numbers of merges that are
considered are computed, by moving the generator to them. So the time is linear in the length of the text, but for a
logarithm, while the pieces are those of the definition, number by number.
"""

from bisect import bisect_left
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

import numpy as np

DRAWN_AT_ONCE = 512
"""Places of a round from which on all numbers of this and the following rounds are drawn at once."""
PLACE_BITS = 32
PLACE = 2**PLACE_BITS - 1
"""What is left of a number when a place in a text is taken from it."""
WRAP = 2**128
"""Period of the generator; moving by `WRAP - n` moves back by n."""


def merge_costs(scores: Mapping[str, float]) -> dict[str, int]:
    """What `split_with_dropout` needs to know of pieces: a number for each, lower where the score is higher."""
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores.values()), reverse=True))}
    return {piece: ranks[score] << 2 * PLACE_BITS for piece, score in scores.items()}


def split_with_dropout(text: str, costs: Mapping[str, int], dropout: float, random: np.random.Generator) -> list[str]:
    """Split a normalised text into pieces.

    Args:
        text: its characters are the first pieces.
        costs: of every piece that a merge may give, from `merge_costs`; merges of higher scores are done first, equal
            ones from the left.
        dropout: probability of skipping a possible merge in a round.
        random: a generator of NumPy's default kind (PCG64). It ends as if each round had drawn a number for each two
            neighbouring pieces.

    Returns:
        The pieces, which joined give the text.
    """
    draws = _Draws(random, dropout)
    cost_of = costs.get
    starts = list(range(len(text)))
    """Where the pieces start, in order."""
    ends = [*range(1, len(text) + 1), 0]
    """Where the piece that starts at each place ends; 0 where none starts."""
    before = list(range(-1, len(text)))
    """Start of the piece before the one that starts at each place."""
    candidates = [
        cost + (left << PLACE_BITS) + left + 2
        for left in starts[:-1]
        if (cost := cost_of(text[left : left + 2])) is not None
    ]
    """Possible merges, best first: the cost of the piece that each gives, where that starts, and where it ends."""
    heapify(candidates)
    round_start = drawn_from = 0
    drawn = b""
    for places in range(len(text) - 1, 0, -1):
        if not drawn and places <= DRAWN_AT_ONCE:
            drawn, drawn_from = draws.are_skipped(round_start, places), round_start
        skipped = []
        while candidates:
            merge = heappop(candidates)
            left, end = merge >> PLACE_BITS & PLACE, merge & PLACE
            middle = ends[left]
            if ends[middle] != end or middle == 0:
                continue  # one of the two pieces has been merged with another one
            place = bisect_left(starts, left)
            if drawn[round_start - drawn_from + place] if drawn else draws.is_skipped(round_start + place):
                skipped.append(merge)
            else:
                break
        else:
            round_start += places
            break
        round_start += places
        for merge in skipped:
            heappush(candidates, merge)
        ends[left], ends[middle] = end, 0
        del starts[place + 1]
        if left > 0 and (cost := cost_of(text[(first := before[left]) : end])) is not None:
            heappush(candidates, cost + (first << PLACE_BITS) + end)
        before[end] = left
        if end < len(text) and (cost := cost_of(text[left : ends[end]])) is not None:
            heappush(candidates, cost + (left << PLACE_BITS) + ends[end])
    draws.finish(round_start)
    return [text[start : ends[start]] for start in starts]


def skip_undrawn(characters: int, pieces: int, random: np.random.Generator) -> None:
    """Move a generator to where `split_with_dropout` without dropout leaves it.

    Args:
        characters: of the text.
        pieces: that it was split into.
        random: a generator of NumPy's default kind (PCG64).
    """
    # Rounds of n characters, n - 1 pieces, ..., and a last one without a merge unless a single piece is left.
    drawn = (characters * (characters - 1) - (pieces - 1) * (pieces - 2)) // 2 if characters else 0
    _Draws(random, 0.0).finish(drawn)


class _Draws:
    """Which numbers that a generator would draw are below the dropout, in any order."""

    def __init__(self, random: np.random.Generator, dropout: float) -> None:
        self._random, self._dropout = random, dropout
        self._source = random.bit_generator
        self._half_used = self._source.state
        """Moving the generator forgets the half of a number that a draw of 32 bits has left; restored at the end."""
        self._position = 0

    def is_skipped(self, position: int) -> bool:
        """Whether the number at a position is below the dropout."""
        if self._dropout <= 0:
            return False
        self._move(position)
        self._position += 1
        return self._random.random() < self._dropout

    def are_skipped(self, position: int, places: int) -> bytes:
        """Whether each number of a round of so many places, which begins at a position, and of all following rounds is
        below the dropout; one byte for each.
        """
        count = places * (places + 1) // 2  # the next round has a place less, and so on
        if self._dropout <= 0:
            return bytes(count)
        self._move(position)
        self._position += count
        return (self._random.random(count) < self._dropout).tobytes()

    def finish(self, drawn: int) -> None:
        """Leave the generator as if `drawn` numbers had been drawn."""
        self._move(drawn)
        if self._half_used["has_uint32"]:
            self._source.state = {**self._half_used, "state": self._source.state["state"]}

    def _move(self, position: int) -> None:
        if position != self._position:
            self._source.advance((position - self._position) % WRAP)  # type: ignore[attr-defined]
            self._position = position
