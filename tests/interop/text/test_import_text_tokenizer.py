"""The format of a text tokenizer is guessed; files of no known format are refused in one line."""

from pathlib import Path

import pytest
from helpers.foreign_texts import BERT_VOCAB, train_tokenizer_json, write_text
from helpers.foreign_yttm import train_yttm

from dalle_mini_impl.cli.import_.text_tokenizer import KINDS
from dalle_mini_impl.interop.text.import_text_tokenizer import CONVERTERS, guess_kind, import_text_tokenizer
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("tokenizers")


def test_kinds_are_guessed(tmp_path):
    train_tokenizer_json(tmp_path / "t.json")
    train_yttm(tmp_path / "bpe.model")
    write_text("clip.txt", '"bpe#version: 0.2\nc a\n')
    write_text("vocab.txt", BERT_VOCAB)
    write_text("v.json", '{"model": 0, "a</w>": 1}')
    names = ("clip.txt", "vocab.txt", "v.json", "t.json", "bpe.model")
    assert [guess_kind(name) for name in names] == ["clip-bpe", "bert", "char-bpe", "json", "yttm"]


def test_command_offers_every_kind():
    assert tuple(CONVERTERS) == KINDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"hello world\n",
            "expected a text tokenizer of a known format, got file, which begins with 'hello world'; name its kind: ",
        ),
        (b"", "which begins with ''"),
        (b"\x1f\x8b\x08broken", "expected a gzip file, got file, which is damaged"),
        (b'{\n"model": {', r"expected JSON, got file, which is not: .*line 2 column 11"),
        (
            b"\n\xff\xfe",
            "expected text in UTF-8, got byte 1 of file, which is none; if it is a SentencePiece model, copy it into",
        ),
    ],
)
def test_files_of_no_known_format_are_refused(content, message):
    Path("file").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        import_text_tokenizer("file")
    assert "\n" not in str(caught.value)


def test_missing_files_other_json_and_unknown_kinds_are_refused():
    with pytest.raises(UserError, match=r"expected the file of a text tokenizer, got nothing: No such file"):
        import_text_tokenizer("nothing")
    Path("list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"expected a JSON object, got list\.json, which holds a list; give the file"):
        import_text_tokenizer("list.json", "json")
    with pytest.raises(UserError, match="expected a kind of text tokenizer, got 'spm'; give one of clip-bpe, json"):
        import_text_tokenizer("list.json", "spm")
