"""YouTokenToMe: models in its file format, and a slow reference for its encoder."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from helpers.models import CAPTIONS

SMALL_MODEL = """7 4
9601 4
97 5
98 6
99 7
100 8
60 9
62 10
4 5 11
6 7 12
11 12 13
12 8 14
1 0 2 3
"""
"""▁ a b c d < > and the rules ▁+a, b+c, ▁a+bc, bc+d; unknown 1, padding 0, BOS 2, EOS 3."""


def train_yttm(
    path: Path, special: tuple[int, int, int, int] = (1, 0, 2, 3), size: int = 67, seed: int = 0
) -> tuple[dict[str, int], list[tuple[int, int, int]]]:
    """Write a model of the tests' captions: the most frequent pair becomes the next rule; ids are in random order.

    Args:
        path: the file to write.
        special: ids of unknown, padding, BOS and EOS; -1 for none.
        size: number of rules.
        seed: of the order of ids.

    Returns:
        Characters with their ids, and rules (left, right, new).
    """
    words = [["▁", *word] for text in CAPTIONS for word in text.split()]
    symbols = list(dict.fromkeys(["▁", *(char for word in words for char in word if char not in "tr")]))
    n_ids = len(symbols) + size + sum(token_id >= 0 for token_id in special)
    free_ids = [token_id for token_id in range(n_ids) if token_id not in special]
    ids = iter(np.random.default_rng(seed).permutation(free_ids).tolist())
    characters = {char: next(ids) for char in symbols}
    spelled = [[characters[char] for char in word if char in characters] for word in words]
    rules = []
    for new in ids:
        pairs = Counter(pair for word in spelled for pair in itertools.pairwise(word))
        (left, right), _ = pairs.most_common(1)[0]
        rules.append((left, right, new))
        for word in spelled:
            for index in range(len(word) - 1):
                if word[index : index + 2] == [left, right]:
                    word[index : index + 2] = [new]
    lines = [
        f"{len(characters)} {len(rules)}",
        *(f"{ord(char)} {token_id}" for char, token_id in characters.items()),
        *(" ".join(map(str, rule)) for rule in rules),
        " ".join(map(str, special)),
        "",
    ]
    path.write_text("\n".join(lines))
    return characters, rules


def yttm_ids(text: str, characters: dict[str, int], rules: list[tuple[int, int, int]], unknown: int) -> list[int]:
    """The ids of YouTokenToMe's encoder: in each word, the earliest rule that fits anywhere, leftmost first."""
    for blank in "\t\n\v\f\r▁":
        text = text.replace(blank, " ")
    ids = []
    for word in (word for word in text.split(" ") if word):
        pieces: list[int | None] = [characters["▁"]]
        for char in word:
            if char in characters:
                pieces.append(characters[char])
            elif pieces[-1] is not None:
                pieces.append(None)  # a run of unknown characters is one
        while True:
            applicable = [
                (rank, index, new)
                for rank, (left, right, new) in enumerate(rules)
                for index in range(len(pieces) - 1)
                if pieces[index] == left and pieces[index + 1] == right
            ]
            if not applicable:
                break
            _, index, new = min(applicable)
            pieces[index : index + 2] = [new]
        ids += [unknown if piece is None else piece for piece in pieces]
    return ids
