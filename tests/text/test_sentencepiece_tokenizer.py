"""The SentencePiece tokenizer: any text, BPE dropout, batches, training, damaged files."""

import re
import unicodedata
import warnings

import numpy as np
import pytest
import sentencepiece
import torch
from helpers.models import CAPTIONS

from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer, train_text_tokenizer
from dalle_mini_impl.util.errors import UserError

STRANGE = (
    "", "a", " ", "A RED Heart", "🦄", "❤️‍🔥", "👩🏽‍🚀 👨‍👩‍👧‍👦", "🇳🇴", "心形", "紅い心", "قلب أحمر",
    "לב אדום", "हृदय", "ใจแดง",
    "Ⅷ ﬁ ½ ① ㌔ ﷺ", "é e\u0301", "Straße STRASSE", "İstanbul ıI", "ΌΔΟΣ ὀδός", "\x00a\x01b\x7f", "a\tb\nc\r\n",
    "  two   spaces  ", "\u3000wide\u00a0space", "\u200bzero\u200dwidth\ufeff", "\u202eright-to-left",
    "<s></s><pad><unk>",
    "<0x41><0xFF>", "\ufffd", "\U0010fffd", "𝔘𝔫𝔦", "ＦＵＬＬ", "\u1100\u1161\u11a8", "a" * 301, "x\u0323\u0307",
    "\\n %s {}",
)  # fmt: skip


def canonical(text):
    """The text as the tokenizer should restore it: normalised, case folded, with single spaces."""
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.replace("\u2581", " ")).casefold()
    return re.sub(" +", " ", text).strip(" ")


def random_texts(count, seed=0):
    """Texts of assigned characters from everywhere in Unicode."""
    random = np.random.default_rng(seed)
    assigned = [c for c in map(chr, range(0x1FAFF)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    return [
        "".join(assigned[n] for n in random.integers(len(assigned), size=random.integers(1, 23))) for _ in range(count)
    ]


# --- any text


@pytest.mark.parametrize("text", STRANGE)
def test_decoding_restores_any_text(text_tokenizer, text):
    ids = text_tokenizer.encode(text)
    assert canonical(text_tokenizer.decode(ids)) == canonical(clean_caption(text))
    assert all(0 <= number < text_tokenizer.vocab_size for number in ids)


def test_decoding_restores_random_unicode(text_tokenizer):
    for text in random_texts(307):
        decoded = text_tokenizer.decode(text_tokenizer.encode(text))
        assert canonical(decoded) == canonical(clean_caption(text)), ascii(text)


def test_text_never_encodes_to_special_ids(text_tokenizer):
    special = {text_tokenizer.pad_id, text_tokenizer.bos_id, text_tokenizer.eos_id, 1}
    for text in [*STRANGE, *random_texts(101, 1)]:
        assert not special & set(text_tokenizer.encode(text))


def test_lone_surrogates_are_replaced(text_tokenizer):
    # A shell passes bytes that are not UTF-8 as lone surrogates.
    assert text_tokenizer.decode(text_tokenizer.encode("a \udcff heart")).split()[::2] == ["a", "heart"]
    random = np.random.default_rng(0)
    assert text_tokenizer.encode_with_dropout("a \udcff", 0.5, random)


def test_case_and_compatible_forms_have_the_same_ids(text_tokenizer):
    for one, other in (("A RED HEART", "a red heart"), ("ﬁ Ⅷ", "fi viii"), ("e\u0301", "é"), ("心　形", "心 形")):
        assert text_tokenizer.encode(one) == text_tokenizer.encode(other)
    assert text_tokenizer.encode("a red heart") != text_tokenizer.encode("a heart red")


def test_learned_words_have_fewer_ids_than_characters(text_tokenizer):
    assert len(text_tokenizer.encode("a red heart")) < len("a red heart") - 3
    assert text_tokenizer.encode("") == []


def test_decode_drops_special_ids(text_tokenizer):
    t = text_tokenizer
    ids = [t.bos_id, *t.encode("a red heart"), t.eos_id, t.pad_id, t.pad_id]
    assert t.decode(ids) == "a red heart"
    assert t.decode(torch.tensor(ids)) == "a red heart"
    assert t.decode([]) == ""


# --- dropout


def test_zero_dropout_equals_the_library(text_tokenizer):
    random = np.random.default_rng(0)
    for text in [*STRANGE, *CAPTIONS, *random_texts(101, 2)]:
        assert text_tokenizer.encode_with_dropout(text, 0.0, random) == text_tokenizer.encode(text), ascii(text)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
def test_dropout_changes_the_ids_but_not_the_text(text_tokenizer, dropout):
    random = np.random.default_rng(0)
    changed = 0
    for text in [*STRANGE, *CAPTIONS, *CAPTIONS]:
        ids = text_tokenizer.encode_with_dropout(text, dropout, random)
        assert text_tokenizer.decode(ids) == text_tokenizer.decode(text_tokenizer.encode(text))
        changed += ids != text_tokenizer.encode(text)
    assert changed > 7


def test_full_dropout_leaves_single_characters(text_tokenizer):
    ids = text_tokenizer.encode_with_dropout("a red heart", 1.0, np.random.default_rng(0))
    assert len(ids) == len("▁a▁red▁heart")


def test_more_dropout_means_more_ids(text_tokenizer):
    random = np.random.default_rng(0)
    lengths = [
        np.mean([len(text_tokenizer.encode_with_dropout("the heart of a star", p, random)) for _ in range(67)])
        for p in (0.0, 0.1, 0.4, 0.8)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[1] < lengths[3]


def test_dropout_depends_on_the_generator_alone(text_tokenizer):
    def encode_with(seed):
        random = np.random.default_rng(seed)
        return [text_tokenizer.encode_with_dropout("hearts and stars", 0.5, random) for _ in range(11)]

    assert encode_with(3) == encode_with(3)
    assert encode_with(3) != encode_with(4)
    assert len({tuple(ids) for ids in encode_with(3)}) > 3


# --- batches


def test_batch_is_padded_on_the_right(text_tokenizer):
    t = text_tokenizer
    batch = t.encode_batch(["a red heart", "", "a cat"], 13)
    assert batch.shape == (3, 13)
    assert batch.dtype == torch.int64
    for row, text in zip(batch.tolist(), ["a red heart", "", "a cat"], strict=True):
        ids = t.encode(text)
        assert row == ids + [t.pad_id] * (13 - len(ids))


def test_eos_follows_whole_and_cut_captions(text_tokenizer):
    t = text_tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = t.encode_batch(["a cat", "", "the heart of a star"], 5, add_eos=True)
    cat, long = t.encode("a cat"), t.encode("the heart of a star")
    assert batch.tolist() == [
        [*cat, t.eos_id, *[t.pad_id] * (4 - len(cat))],
        [t.eos_id, *[t.pad_id] * 4],
        [*long[:4], t.eos_id],
    ]


def test_empty_batch_has_its_length(text_tokenizer):
    assert text_tokenizer.encode_batch([], 5).shape == (0, 5)


def test_warning_quotes_what_was_cut_off(text_tokenizer):
    ids = text_tokenizer.encode("a red heart and a green tree")
    with pytest.warns(UserWarning, match="cut off") as caught:
        first = text_tokenizer.truncate(ids, 3, "a red heart and a green tree")
    message = str(caught[0].message)
    assert first == ids[:3]
    assert f"'a red heart and a green tree' has {len(ids)} text ids, 3 fit" in message
    assert message.endswith(f"cut off: {text_tokenizer.decode(ids[3:])!r}")
    assert "tree" in message.split("cut off")[1]


def test_no_warning_for_captions_that_fit_or_with_warn_off(text_tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_tokenizer.encode_batch(["a cat"], 5)
        ids = text_tokenizer.encode("a cat")
        assert text_tokenizer.truncate(ids, len(ids), "a cat") == ids
        assert text_tokenizer.encode_batch(["a red heart and a green tree"], 3, warn=False).shape == (1, 3)


def test_cutting_does_not_change_its_argument(text_tokenizer):
    ids = text_tokenizer.encode("a red heart")
    before = list(ids)
    text_tokenizer.truncate(ids, 2)
    text_tokenizer.cut_or_pad(ids, 23, add_eos=True)
    assert ids == before


# --- training and files


def test_special_ids_and_vocabulary_size(text_tokenizer):
    t = text_tokenizer
    assert (t.pad_id, t.bos_id, t.eos_id) == (0, 2, 3)
    assert t.vocab_size == 367


def test_training_is_deterministic_and_identity_follows_the_content(tmp_path, text_tokenizer):
    retrained = train_text_tokenizer(CAPTIONS, tmp_path / "deep" / "a.model", 367)
    assert retrained.identity == text_tokenizer.identity
    assert train_text_tokenizer(CAPTIONS[:-1], tmp_path / "b.model", 367).identity != retrained.identity
    assert re.fullmatch("[0-9a-f]{16}", retrained.identity)


def test_captions_may_come_from_a_generator(tmp_path, text_tokenizer):
    retrained = train_text_tokenizer((text for text in CAPTIONS), tmp_path / "a.model", 367)
    assert retrained.identity == text_tokenizer.identity


def test_plain_nfkc_keeps_case(tmp_path):
    tokenizer = train_text_tokenizer(CAPTIONS, tmp_path / "a.model", 367, "nfkc")
    assert tokenizer.decode(tokenizer.encode("A ﬁne Heart")) == "A fine Heart"


def test_unknown_characters_become_bytes(text_tokenizer):
    ids = text_tokenizer.encode("字")
    assert len(ids) >= 3
    assert text_tokenizer.decode(ids) == "字"


@pytest.mark.parametrize("vocab_size", [7, 259])
def test_too_small_vocabulary_is_refused(tmp_path, vocab_size):
    with pytest.raises(UserError, match=f"no vocabulary of {vocab_size}") as caught:
        train_text_tokenizer(CAPTIONS, tmp_path / "a.model", vocab_size)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("captions", [[], [""], ["", " "]])
def test_training_without_text_is_refused(tmp_path, captions):
    with pytest.raises(UserError, match="no vocabulary"):
        train_text_tokenizer(captions, tmp_path / "a.model", 300)
    assert list(tmp_path.iterdir()) == []


def test_few_captions_give_a_smaller_vocabulary(tmp_path):
    tokenizer = train_text_tokenizer(["a cat", "a hat"], tmp_path / "a.model", 1009)
    assert 260 < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("a red heart")) == "a red heart"


def test_unknown_normalization_is_refused(tmp_path):
    with pytest.raises(UserError, match="normalization is 'nfd'; expected one of nfkc, nfkc_cf"):
        train_text_tokenizer(CAPTIONS, tmp_path / "a.model", 367, "nfd")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.model: No such file or directory; give a trained"):
        TextTokenizer(tmp_path / "nothing.model")
    with pytest.raises(UserError, match=r"expected text tokenizer, got .*, which is a folder"):
        TextTokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"no model", b"\x80\x04pickle", bytes(range(256)) * 13])
def test_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        TextTokenizer(path)


@pytest.mark.parametrize("fraction", [0, 0.5])
def test_truncated_file_is_refused(tmp_path, tiny_model, fraction):
    path = tmp_path / "bad.model"
    content = (tiny_model / "text_tokenizer.model").read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match=r"bad\.model"):
        TextTokenizer(path)


def test_model_without_padding_id_is_refused(tmp_path):
    path = tmp_path / "plain.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS), model_writer=file, model_type="bpe", vocab_size=200, minloglevel=2
        )
    with pytest.raises(UserError, match=r"has the ids pad -1, BOS 1, EOS 2; expected all three .*; train it"):
        TextTokenizer(path)


def test_captions_that_the_library_would_drop_are_learned_in_parts(tmp_path):
    long = "zebra " * 1500
    tokenizer = train_text_tokenizer([long, *CAPTIONS], tmp_path / "a.model", 367)
    assert len(tokenizer.encode("zebra")) == 1


def test_a_vocabulary_too_small_for_the_characters_says_which_would_do(tmp_path):
    captions = [chr(0x4E00 + number) * 2 for number in range(3000)]
    with pytest.raises(UserError, match=r"alone need \d+ ids: set vocab_size to more than that") as caught:
        train_text_tokenizer(captions, tmp_path / "a.model", 2048)
    enough = int(re.search(r"need (\d+) ids", str(caught.value))[1]) + 1
    assert train_text_tokenizer(captions, tmp_path / "a.model", enough).vocab_size <= enough
