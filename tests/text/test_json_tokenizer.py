"""Text tokenizers in the JSON format of the tokenizers library: settings, texts without ids, damaged files."""

import json
import sys

import pytest
from helpers.foreign_texts import train_tokenizer_json, write_text
from helpers.foreign_yttm import SMALL_MODEL

from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY, JsonTokenizer
from dalle_mini_impl.util.errors import UserError

tokenizers = pytest.importorskip("tokenizers")


def test_lone_surrogates_are_replaced(tmp_path):
    tokenizer = import_text_tokenizer(write_text(tmp_path / "bpe.model", SMALL_MODEL))
    assert tokenizer.encode("a\udcff") == tokenizer.encode("a?")


def test_text_that_has_no_ids_is_refused(tmp_path):
    model = tokenizers.models.WordLevel({"cat": 0}, unk_token="?")
    tokenizers.Tokenizer(model).save(str(tmp_path / "w.json"))
    tokenizer = import_text_tokenizer(tmp_path / "w.json")
    assert tokenizer.encode("cat") == [0]
    assert tokenizer.decode([]) == ""
    with pytest.raises(UserError, match=r"w\.json has no ids for 'dog': "):
        tokenizer.encode("dog")


def test_damaged_file_is_refused_in_one_line(tmp_path):
    good = json.loads(import_text_tokenizer(write_text(tmp_path / "bpe.model", SMALL_MODEL)).content)
    model = good["model"]
    damages = {
        "not a JSON object": [1],
        "unknown key 'pad'": {**good, SETTINGS_KEY: {"pad": 3}},
        "pad_id: expected int, got None": {**good, SETTINGS_KEY: {"pad_id": None}},
        "Model missing": {},
        "Token `q` out of vocabulary": {**good, "model": {**model, "merges": [["q", "a"]]}},
        "NormalizerUntagged": {**good, "normalizer": {"type": "Nothing"}},
    }
    for message, content in damages.items():
        with pytest.raises(UserError, match=message) as caught:
            JsonTokenizer(json.dumps(content).encode(), "text_tokenizer.json")
        assert "\n" not in str(caught.value)
        assert "column" not in str(caught.value)
    for damaged in (b"", b"{", json.dumps(good).encode()[:-2]):
        with pytest.raises(UserError, match=r"t\.json is no tokenizer of the tokenizers library"):
            JsonTokenizer(damaged, "t.json")
    with pytest.raises(UserError, match=r"cannot read text tokenizer .*nothing\.json: No such file"):
        JsonTokenizer.read(tmp_path / "nothing.json")


def test_settings_have_defaults_where_the_file_has_none(tmp_path):
    original = train_tokenizer_json(tmp_path / "t.json")
    tokenizer = JsonTokenizer.read(tmp_path / "t.json")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (-1, -1, -1)
    assert tokenizer.vocab_size == original.get_vocab_size()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers is not installed; .*\.\[tokenizers\]"):
        JsonTokenizer(b"{}", "t.json")


def test_a_long_chain_of_html_entities_is_replaced_a_few_times():
    model = tokenizers.models.WordLevel({"?": 0, "&" + "amp;" * 92: 1}, unk_token="?")
    values = json.loads(tokenizers.Tokenizer(model).to_str()) | {SETTINGS_KEY: {"unescape_html": True}}
    tokenizer = JsonTokenizer(json.dumps(values).encode(), "chain.json")
    assert tokenizer.encode("&" + "amp;" * 100) == [1]
