"""`dalle import text-tokenizer` writes a text tokenizer, or nothing and one line of explanation."""

from pathlib import Path

import pytest
from helpers.foreign_texts import write_text
from helpers.foreign_yttm import SMALL_MODEL

from dalle_mini_impl.checkpoint.find import load_text_tokenizer

pytest.importorskip("tokenizers")


def test_command_writes_a_text_tokenizer(run):
    write_text("bpe.model", SMALL_MODEL)
    printed = run("import", "text-tokenizer", "bpe.model", "--out", "model", "--lowercase", "--bos", "--eos")
    assert "15 text ids; padding 0, BOS 2, EOS 3 (-1 is none)" in printed
    tokenizer = load_text_tokenizer(Path("model"))
    assert printed.endswith(f"text tokenizer {tokenizer.identity} written to model/text_tokenizer.json\n")
    assert tokenizer.encode("ABC") == [2, 13, 3]


def test_file_of_another_kind_is_refused_in_one_line(refused):
    write_text("bpe.model", SMALL_MODEL)
    message = refused("import", "text-tokenizer", "bpe.model", "--out", "model", "--kind", "bert")
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not Path("model").exists()
