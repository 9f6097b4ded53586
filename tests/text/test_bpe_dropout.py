"""BPE dropout against its definition, number by number, and its time for long texts."""

import time

import numpy as np
import pytest
from helpers import reference
from helpers.models import CAPTIONS

from dalle_mini_impl.text.bpe_dropout import DRAWN_AT_ONCE, merge_costs, skip_undrawn, split_with_dropout
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer

EMOJI = "tokenizers/emoji.model"
LETTERS = {"ab": -1.0, "bc": -1.0, "abc": -2.0, "aa": -3.0, "aaaa": -4.0, "ca": -5.0, "bca": -5.0, "aaa": -6.0}
COSTS = merge_costs(LETTERS)


@pytest.fixture(scope="module")
def emoji():
    return TextTokenizer(EMOJI)


def generators(seed, left_over):
    """Two equal generators; with `left_over` each has half a number left over from a draw of 32 bits."""
    both = [np.random.default_rng(seed) for _ in range(2)]
    for random in both if left_over else ():
        random.integers(7, dtype=np.int32)
    return both


@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.5, 0.9, 1.0])
def test_pieces_and_generator_are_those_of_the_definition(dropout):
    letters = np.random.default_rng(7)
    for seed in range(150):
        text = "".join(letters.choice(list("abcx"), size=letters.integers(0, 40)))
        ours, plain = generators(seed, left_over=seed % 2)
        assert split_with_dropout(text, COSTS, dropout, ours) == reference.split_with_dropout(
            text, LETTERS, dropout, plain
        )
        assert ours.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("length", [DRAWN_AT_ONCE, DRAWN_AT_ONCE + 1, DRAWN_AT_ONCE + 2, 2 * DRAWN_AT_ONCE])
def test_long_texts_have_the_pieces_of_the_definition(length, dropout):
    text = "".join(np.random.default_rng(length).choice(list("abcx"), size=length))
    ours, plain = generators(length, left_over=length % 2)
    expected = reference.split_with_dropout(text, LETTERS, dropout, plain)
    assert split_with_dropout(text, COSTS, dropout, ours) == expected
    assert ours.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6])
def test_captions_have_the_ids_of_the_definition(emoji, dropout):
    scores = {piece: -cost for piece, cost in emoji._costs.items()}
    texts = [*CAPTIONS, "", "a", "Ein rotes Herz \ud83d und 字字 🦄", "심장 " * 9, "紅い心" * 20]
    for seed, text in enumerate(texts):
        ours, plain = generators(seed, left_over=seed % 2)
        normal = emoji._model.normalize(text.encode("utf-8", "replace").decode()).replace(" ", "\u2581")
        expected = []
        for piece in reference.split_with_dropout(normal, scores, dropout, plain):
            known = emoji._ids.get(piece)
            expected += [emoji._byte_ids[b] for b in piece.encode()] if known is None else [known]
        assert emoji.encode_with_dropout(text, dropout, ours) == expected
        assert ours.bit_generator.state == plain.bit_generator.state
        assert ours.integers(2**31, dtype=np.int32) == plain.integers(2**31, dtype=np.int32)


def test_generator_skips_what_no_dropout_would_draw():
    for text in ("", "a", "aab", "abcabcaaaax"):
        ours, plain = generators(3, left_over=False)
        skip_undrawn(len(text), len(reference.split_with_dropout(text, LETTERS, 0, plain)), ours)
        assert ours.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize("text", ["a red heart " * 21, "a cat and a dog on a mat, " * 4, "紅い心" * 60])
def test_a_limit_cuts_the_ids_and_changes_none(emoji, text):
    for seed in range(5):
        whole = emoji.encode_with_dropout(text, 0.1, np.random.default_rng(seed))
        assert emoji.encode_with_dropout(text, 0.1, np.random.default_rng(seed), 90) == whole[:90]
        assert emoji.encode_with_dropout(text, 0.0, np.random.default_rng(seed), 5) == emoji.encode(text)[:5]


def test_what_is_cut_off_costs_nothing(emoji):
    considered = []
    split = emoji._beginning
    emoji._beginning = lambda *arguments: considered.append(split(*arguments)) or considered[-1]
    try:
        for text in ("a red heart " * 10_000, "x" * 100_000, "紅い心" * 30_000):
            assert len(emoji.encode_with_dropout(text, 0.1, np.random.default_rng(0), 24)) == 24
    finally:
        del emoji._beginning
    assert len(considered[0]) <= 256
    assert max(map(len, considered)) <= 2 * 24 * emoji._longest_piece


def test_time_grows_like_the_length(emoji):
    words = "a yellow face with tears of joy " * 400

    def seconds(text):
        def once():
            start = time.process_time()
            emoji.encode_with_dropout(text, 0.1, np.random.default_rng(0))
            return time.process_time() - start

        return min(once() for _ in range(3))

    assert seconds(words) < 16 * seconds(words[: len(words) // 4])  # a quadratic time would be 16 times as long
