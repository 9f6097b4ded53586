"""Imported vocabularies of CharBPETokenizer and BERT give the ids that the tokenizers library's own classes give."""

from pathlib import Path

import pytest
from helpers.foreign_texts import BERT_VOCAB, TEXTS, write_text
from helpers.models import CAPTIONS

from dalle_mini_impl.interop.text.import_text_tokenizer import guess_kind, import_text_tokenizer
from dalle_mini_impl.util.errors import UserError

tokenizers = pytest.importorskip("tokenizers")


@pytest.mark.parametrize("unknown", ["[UNK]", "<unk>"])
def test_char_bpe_ids_match_the_library_as_mindalle_uses_it(tmp_path, unknown):
    trained = tokenizers.CharBPETokenizer(unk_token=unknown)
    trained.train_from_iterator(CAPTIONS, 211, special_tokens=[unknown], show_progress=False)
    trained.save_model(str(tmp_path), "bpe-16k")
    vocab, merges = "bpe-16k-vocab.json", "bpe-16k-merges.txt"
    original = tokenizers.CharBPETokenizer.from_file(vocab, merges, unk_token=unknown, lowercase=True)
    original.add_special_tokens(["[PAD]"])
    assert [guess_kind(path) for path in (vocab, merges)] == ["char-bpe"] * 2
    tokenizer = import_text_tokenizer(merges, lowercase=True)
    assert tokenizer.identity == import_text_tokenizer(vocab, lowercase=True).identity
    assert tokenizer.vocab_size == original.get_vocab_size()
    assert tokenizer.pad_id == original.token_to_id("[PAD]")
    for text in [*TEXTS, "a [PAD] b", f"a{unknown}b"]:
        assert tokenizer.encode(text) == original.encode(text).ids, ascii(text)
    assert tokenizer.decode(tokenizer.encode("A red heart")) == "a red heart"
    assert import_text_tokenizer(vocab).encode("A") != tokenizer.encode("A")


@pytest.mark.parametrize("lowercase", [False, True])
def test_bert_ids_match_the_library(lowercase):
    path = write_text("vocab.txt", BERT_VOCAB)
    vocab = {token: token_id for token_id, token in enumerate(BERT_VOCAB.split())}
    original = tokenizers.BertWordPieceTokenizer(vocab, lowercase=lowercase)
    tokenizer = import_text_tokenizer(path, lowercase=lowercase)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (15, 0, 3, 4)
    assert tokenizer.encode("心形A cats!") == [6, 7, 8 if lowercase else 11, 9, 10, 12]
    for text in [*TEXTS, "心 [MASK]形", "é cate"]:
        assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids, ascii(text)


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        (
            {"vocab.json": '{"a</w>": 0, "b": "x"}'},
            None,
            "expected a whole number for every token in vocab.json, got 'x' for 'b'; download",
        ),
        ({"vocab.json": '{"Ġa": 0}'}, None, "expected tokens that end with </w>, .*, got none in vocab.json; load it"),
        (
            {"merges.txt": "#version: 0.2\na b</w>\n", "vocab.json": '{"a": 0, "b</w>": 1}'},
            None,
            "expected a merge of two tokens of vocab.json in merges.txt, line 2, got 'a b</w>'; download both files",
        ),
        (
            {"vocab.txt": "a\nb\na\n"},
            "bert",
            "expected a new token in vocab.txt, line 3, got 'a' of line 1 again; download",
        ),
        ({"vocab.txt": "a\nb\n"}, "bert", r"expected a line \[PAD\], got none among the 2 of vocab.txt; give"),
    ],
)
def test_files_that_do_not_fit_are_refused(files, kind, message):
    for name, content in files.items():
        Path(name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        import_text_tokenizer(list(files)[-1], kind)
