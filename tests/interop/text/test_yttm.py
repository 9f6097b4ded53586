"""Imported models of YouTokenToMe give the ids that its encoder gives."""

import numpy as np
import pytest
from helpers.foreign_texts import TEXTS, write_text
from helpers.foreign_yttm import SMALL_MODEL, train_yttm, yttm_ids

from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("tokenizers")


@pytest.fixture
def small_model():
    return write_text("bpe.model", SMALL_MODEL)


def test_ids_of_a_small_model_worked_out_by_hand(small_model):
    tokenizer = import_text_tokenizer(small_model)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (15, 0, 2, 3)
    assert tokenizer.encode("abc") == [13]  # ▁a, bc, then ▁abc
    assert tokenizer.encode("abcd") == [13, 8]  # ▁a+bc comes before bc+d
    assert tokenizer.encode("bcd") == [4, 14]
    assert tokenizer.encode(" a\t\tbc▁d\n") == [11, 4, 12, 4, 8]
    assert tokenizer.encode("axyzb xx") == [11, 1, 6, 4, 1]  # a run of unknown characters is one
    assert tokenizer.encode("a\u00a0b") == [11, 1, 6]  # only ASCII white space separates words
    assert tokenizer.encode("<a>") == [4, 9, 5, 10]
    assert tokenizer.encode("") == tokenizer.encode(" \n▁") == []
    assert tokenizer.decode([2, 13, 8, 4, 14, 3, 0, 0]) == "abcd bcd"
    assert tokenizer.decode([]) == tokenizer.decode([2, 3, 0]) == ""


@pytest.mark.parametrize("special", [(1, 0, 2, 3), (0, -1, -1, -1), (70, 3, -1, 5)])
def test_ids_match_the_reference(tmp_path, special):
    characters, rules = train_yttm(tmp_path / "a.model", special)
    tokenizer = import_text_tokenizer("a.model")
    assert tokenizer.vocab_size == len(characters) + len(rules) + sum(token_id >= 0 for token_id in special)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == special[1:]
    random = np.random.default_rng(1)
    noise = ["".join(random.choice(list("abdehsu aeh\tß▁"), size=random.integers(1, 31))) for _ in range(307)]
    for text in [*TEXTS, *noise]:
        ids = tokenizer.encode(text)
        assert ids == yttm_ids(text, characters, rules, special[0]), ascii(text)
        assert set(ids).isdisjoint(token_id for token_id in special[1:] if token_id >= 0)
    assert len(tokenizer.encode("a house and a tree")) < 11


def test_captions_of_rudalle_are_lower_case_between_bos_and_eos(small_model):
    tokenizer = import_text_tokenizer(small_model, lowercase=True, bos=True, eos=True)
    assert tokenizer.encode("ABC") == [2, 13, 3]
    assert tokenizer.encode("") == [2, 3]
    assert import_text_tokenizer(small_model, eos=True).encode("ABC") == [4, 1, 3]
    with pytest.warns(UserWarning, match="'abc bcd' has 5 text ids, 2 fit; cut off: 'bcd'"):
        assert tokenizer.truncate(tokenizer.encode("abc bcd"), 2, "abc bcd") == [2, 13]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (
            1,
            "7 4 1",
            r"expected the counts of characters and rules \(2 whole numbers\) in bpe.model, line 1, got '7 4 1'; the",
        ),
        (3, "97 x", r"expected a character and its id \(2 whole numbers\) in bpe.model, line 3, got '97 x'; the file"),
        (3, "1114112 5", "in bpe.model, line 3, got '1114112 5'"),
        (
            4,
            "98 5",
            "expected a new id and token in bpe.model, line 4, got 5 for 'b' when there is 'a'; the file is damaged",
        ),
        (10, "6 77 12", "expected a rule on ids of earlier lines in bpe.model, line 10, got 6 77 12; the file"),
        (11, "4 5 13", "line 11, got 13 for '▁a' when there is 11;"),
        (13, "1 0 2", r"expected special ids \(4 whole numbers\) in bpe.model, line 13, got '1 0 2'"),
        (13, "1 0 2 4", "line 13, got 4 for '<EOS>' when there is '▁';"),
        (
            13,
            "-1 0 2 3",
            "expected ids without gaps, among them those of unknown and ▁, got 14 ids up to 14, unknown -1 and ▁ 4 in",
        ),
        (13, "1 0 2 30", "got 15 ids up to 30"),
    ],
)
def test_damaged_model_is_refused_with_the_line(line, text, message):
    lines = SMALL_MODEL.splitlines()
    lines[line - 1] = text
    with pytest.raises(UserError, match=message) as caught:
        import_text_tokenizer(write_text("bpe.model", "\n".join(lines)), "yttm")
    assert "\n" not in str(caught.value)


def test_truncated_model_is_refused():
    path = write_text("bpe.model", "\n".join(SMALL_MODEL.splitlines()[:5]))
    message = r"expected a character and its id \(2 whole numbers\) in bpe.model, line 6, got 'the end of the file'"
    with pytest.raises(UserError, match=message):
        import_text_tokenizer(path)
