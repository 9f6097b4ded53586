"""The imported tokenizer of CLIP gives the ids that DALLE-pytorch's SimpleTokenizer gives."""

import gzip
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers.foreign_texts import TEXTS, write_text
from helpers.models import CAPTIONS

from dalle_mini_impl.interop.text.import_text_tokenizer import guess_kind, import_text_tokenizer
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("tokenizers")

MERGES = "header\nc a\nca t</w>\n"
BYTE_WITH_END = 256
"""What is added to the id of a byte at the end of a word. The ids of bytes begin with ! (0), so that a is 64."""


def test_ids_of_two_merges_worked_out_by_hand():
    tokenizer = import_text_tokenizer(write_text("bpe.txt", MERGES), "clip-bpe")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (516, -1, 514, 515)
    ca, cat = 512, 513
    assert tokenizer.encode("Cat's CAT cats") == [cat, 6, 82 + BYTE_WITH_END, cat, ca, 83, 82 + BYTE_WITH_END]
    assert tokenizer.encode("12!?") == [16 + BYTE_WITH_END, 17 + BYTE_WITH_END, 0, 30 + BYTE_WITH_END]
    assert tokenizer.encode("é") == tokenizer.encode("e\u0301") == [127, 102 + BYTE_WITH_END]
    assert tokenizer.encode("&lt;&amp;amp; ＣＡＴ") == [27, 5 + BYTE_WITH_END, cat]
    assert tokenizer.encode("“c”") == [1 + BYTE_WITH_END, 66 + BYTE_WITH_END, 1 + BYTE_WITH_END]
    assert tokenizer.encode("a <|endoftext|>") == [64 + BYTE_WITH_END, 515]
    assert tokenizer.encode(" \n") == []
    assert tokenizer.decode([514, *tokenizer.encode("cats, é!"), 515]) == "cats , é !"


def test_compressed_file_gives_the_same_tokenizer():
    Path("bpe.txt.gz").write_bytes(gzip.compress(MERGES.replace("header", "x#version: 0.2").encode()))
    assert guess_kind("bpe.txt.gz") == "clip-bpe"
    compressed = import_text_tokenizer("bpe.txt.gz")
    assert compressed.identity == import_text_tokenizer(write_text("bpe.txt", MERGES), "clip-bpe").identity


@pytest.mark.parametrize("line", ["c", "c a t", "c xx", "", "c a"])
def test_line_that_is_no_merge_is_refused(line):
    path = write_text("bpe.txt", f"header\nc a\n{line}\nd e\n")
    with pytest.raises(UserError, match=f"expected a new merge of two earlier tokens in bpe.txt, line 3, got '{line}'"):
        import_text_tokenizer(path, "clip-bpe")


def test_merge_of_a_merged_token_is_accepted():
    path = write_text("bpe.txt", "header\nc a\nca t</w>\nd e\n")
    assert import_text_tokenizer(path, "clip-bpe").vocab_size == 517


TEXTS_TO_CLEAN = (
    "I'LL've DON'T 'S 'tis it’s", "&amp; &lt;b&gt; &#39;x&#39; &nbsp; AT&amp;T &copy &hearts; &#x1f984;",
    "&amp;amp;lt;", "<b>&amp;</b>", "“quoted” ‘x’", "ΌΔΟΣ ΑΣ. ΣΑΣ", "İstanbul", "<|startoftext|> a <|endoftext|>",
    "a<|ENDOFTEXT|>b", "ｆｕｌｌ　ｗｉｄｔｈ ｶﾞ", "x\x0b\x1cy\x85z", "\x1b[31;1mred\x1b[0m", "👩🏽‍🚀 🇳🇴 ❤️", 
    "ﬁne ﬅop ŉ Ǆ", "a_b-c...d", "\u0345a", "a\nb&amp;\r\nc <i> &amp;lt;", "\ufeffa\u200bb", "½ Ⅷ ① x²",
    "a photo of the eiffel tower",
)  # fmt: skip


def test_ids_match_simple_tokenizer(dalle_pytorch_tokenizer):
    tokenizer = import_text_tokenizer(dalle_pytorch_tokenizer.default_bpe())
    original = dalle_pytorch_tokenizer.SimpleTokenizer()
    assert tokenizer.vocab_size == original.vocab_size == 49408
    random = np.random.default_rng(0)
    # Letters that every recent Unicode version has, without Latin-1: ftfy takes a run of it for wrongly decoded text
    ranges = (
        range(0x20, 0x7F),
        range(0x100, 0x180),
        range(0x300, 0x600),
        range(0x900, 0x980),
        range(0x2010, 0x2060),
        range(0x3040, 0x3100),
        range(0xFF01, 0xFFF0),
        range(0x1F300, 0x1F400),
    )
    pool = [chr(n) for part in ranges for n in part if unicodedata.category(chr(n)) != "Cn" and n != ord("&")]
    noise = ["".join(random.choice(pool, size=random.integers(1, 13))) for _ in range(307)]
    for text in [*TEXTS, *TEXTS_TO_CLEAN, *noise]:
        assert tokenizer.encode(text) == original.encode(text), ascii(text)
    for text in CAPTIONS:
        ids = original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids).strip()
