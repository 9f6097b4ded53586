"""New combinations of the words of a set's captions, in any language: one word of a caption replaced by another's.

Words are exchanged where two captions of equally many words share some and differ in others, as "a red disc" and "a
blue bar" do: "a blue disc" is new, and reads like the set. Where no two captions do, two of them are joined.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

import numpy as np

MOST_EXAMINED = 2000
"""Captions that are combined."""


def new_combinations(seen: Sequence[str], held_out: Sequence[str], count: int) -> list[str]:
    """Captions that no picture has.

    Args:
        seen: captions of training pictures.
        held_out: captions of held-out pictures, which are not new either.
        count: how many to make at most.
    """
    known = {" ".join(text.split()).casefold() for text in (*seen, *held_out)}
    texts = sorted({" ".join(text.split()) for text in seen if text.strip()})
    random = np.random.default_rng(1)
    texts = [texts[number] for number in random.permutation(len(texts))[:MOST_EXAMINED]]
    by_shape: dict[tuple[int, int, str], list[list[str]]] = defaultdict(list)
    for text in texts:
        words = text.split()
        for place, word in enumerate(words):
            by_shape[len(words), place, word.casefold()].append(words)
    made: dict[str, str] = {}
    for text in texts:
        words = text.split()
        for changed in _exchanged(words, by_shape):
            if changed.casefold() not in known | made.keys():
                made[changed.casefold()] = changed
                break
        if len(made) >= count:
            break
    pairs = zip(texts[::2], texts[1::2], strict=False)
    joined = [f"{first}, {second}" for first, second in pairs if f"{first}, {second}".casefold() not in known]
    return [*made.values(), *islice(joined, max(0, count - len(made)))]


def _exchanged(words: list[str], by_shape: dict[tuple[int, int, str], list[list[str]]]) -> list[str]:
    """A caption with one word exchanged for another caption's, for each other caption that shares another word."""
    changed = []
    for shared, word in enumerate(words):
        for other in by_shape[len(words), shared, word.casefold()][:50]:
            for place, new in enumerate(other):
                if place != shared and new.casefold() != words[place].casefold():
                    changed.append(" ".join([*words[:place], new, *words[place + 1 :]]))
    return changed
