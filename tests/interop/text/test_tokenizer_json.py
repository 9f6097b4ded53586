"""An imported tokenizer.json gives the ids of the tokenizers library and of DALLE-pytorch's HugTokenizer."""

import json
from pathlib import Path

import pytest
from helpers.foreign_texts import TEXTS, train_tokenizer_json

from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
from dalle_mini_impl.util.errors import UserError

tokenizers = pytest.importorskip("tokenizers")


def test_special_tokens_padding_and_dropout_of_the_file_are_dropped(tmp_path):
    original = train_tokenizer_json(tmp_path / "t.json")
    tokenizer = import_text_tokenizer("t.json")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (331, 0, 2, 1)
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids, ascii(text)
    assert tokenizer.decode([2, *tokenizer.encode("a red heart"), 1, 0]) == "a red heart"
    with_bos_and_eos = import_text_tokenizer("t.json", bos=True, eos=True)
    assert with_bos_and_eos.encode("a tree") == original.encode("a tree").ids
    assert import_text_tokenizer("t.json", lowercase=True).encode("A TREE") == tokenizer.encode("a tree")


def test_ids_match_hug_tokenizer(tmp_path, dalle_pytorch_tokenizer):
    original_json = train_tokenizer_json(tmp_path / "t.json").to_str()
    Path("t.json").write_text(json.dumps(json.loads(original_json)))
    tokenizer = import_text_tokenizer("t.json")
    original = dalle_pytorch_tokenizer.HugTokenizer(tmp_path / "t.json")
    assert [tokenizer.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_json_without_model_is_refused():
    Path("t.json").write_text('{"version": "1.0"}')
    message = "expected model and added_tokens as the tokenizers library writes them, got t.json without; give a file"
    with pytest.raises(UserError, match=message):
        import_text_tokenizer("t.json", "json")


def test_bos_without_a_common_name_is_refused():
    model = tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")
    tokenizers.Tokenizer(model).save("w.json")
    with pytest.raises(
        UserError, match=r"expected BOS under a common name, got none in w.json; import it without --bos"
    ):
        import_text_tokenizer("w.json", bos=True)
