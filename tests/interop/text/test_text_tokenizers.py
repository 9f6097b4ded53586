"""Text tokenizers of other projects, and checkpoint folders that have one."""

import gzip
import importlib
import importlib.util
import itertools
import json
import shutil
import sys
import types
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import CAPTIONS, IMAGE_TOKENIZER, SAMPLING, TRANSFORMER, make_image_tokenizer, randomise
from helpers.reference import yttm_ids

from dalle_mini_impl import DalleMini
from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.checkpoint import parts as checkpoint
from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.settings import save_settings
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer, save_text_tokenizer
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.interop.text import load as text_tokenizers
from dalle_mini_impl.model.build import build_transformer, load_transformer
from dalle_mini_impl.text.json_tokenizer import SETTINGS_KEY, JsonTokenizer
from dalle_mini_impl.util.errors import UserError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    *CAPTIONS, "", " ", "  two   spaces ", "a\tb\nc\r\nd\x0b\x0ce", "A Red HEART", "hearts, stars & cats!", "x",
    "▁", "a▁red ▁", "a\u00a0red\u3000heart", "ππ zz", "a🦄🦄red", "it's 12 o'clock", "<PAD> [UNK] </s> <UNK>",
    "e\u0301 é", "!?", "!",
]  # fmt: skip

YTTM = """7 4
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

CLIP = "header\nc a\nca t</w>\n"


def yttm_file(path, special=(1, 0, 2, 3), size=67, seed=0):
    """A model of the captions: the most frequent pair becomes the next rule; ids in random order."""
    words = [["▁", *word] for text in CAPTIONS for word in text.split()]
    symbols = list(dict.fromkeys(["▁", *(char for word in words for char in word if char not in "tr")]))
    free = [number for number in range(len(symbols) + size + sum(n >= 0 for n in special)) if number not in special]
    ids = iter(np.random.default_rng(seed).permutation(free).tolist())
    chars = {char: next(ids) for char in symbols}
    spelled = [[chars[char] for char in word if char in chars] for word in words]
    rules = []
    for new in ids:
        pairs = Counter(pair for word in spelled for pair in itertools.pairwise(word))
        (left, right), _ = pairs.most_common(1)[0]
        rules.append((left, right, new))
        for word in spelled:
            for place in range(len(word) - 1):
                if word[place : place + 2] == [left, right]:
                    word[place : place + 2] = [new]
    lines = [f"{len(chars)} {len(rules)}", *(f"{ord(char)} {number}" for char, number in chars.items())]
    path.write_text("\n".join([*lines, *(" ".join(map(str, rule)) for rule in rules), " ".join(map(str, special)), ""]))
    return chars, rules


def written(folder, **files):
    """Files of these contents; gives the path of the last."""
    for name, content in files.items():
        path = folder / name.replace("__", "-").replace("_", ".")
        path.write_text(content, encoding="utf-8")
    return path


# --- YouTokenToMe


def test_a_small_yttm_model_by_hand(tmp_path):
    tokenizer = text_tokenizers.load(written(tmp_path, bpe_model=YTTM))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (15, 0, 2, 3)
    assert tokenizer.encode("abc") == [13]  # ▁a, bc, then ▁abc
    assert tokenizer.encode("abcd") == [13, 8]  # ▁a+bc comes before bc+d
    assert tokenizer.encode("bcd") == [4, 14]
    assert tokenizer.encode(" a\t\tbc▁d\n") == [11, 4, 12, 4, 8]
    assert tokenizer.encode("axyzb xx") == [11, 1, 6, 4, 1]  # a run of unknown characters is one
    assert tokenizer.encode("a\u00a0b") == [11, 1, 6]  # white space only of ASCII
    assert tokenizer.encode("<a>") == [4, 9, 5, 10]
    assert tokenizer.encode("") == tokenizer.encode(" \n▁") == []
    assert tokenizer.decode([2, 13, 8, 4, 14, 3, 0, 0]) == "abcd bcd"
    assert tokenizer.decode([]) == tokenizer.decode([2, 3, 0]) == ""


@pytest.mark.parametrize("special", [(1, 0, 2, 3), (0, -1, -1, -1), (70, 3, -1, 5)])
def test_yttm_follows_the_reference(tmp_path, special):
    chars, rules = yttm_file(tmp_path / "a.model", special)
    tokenizer = text_tokenizers.load(tmp_path / "a.model")
    assert tokenizer.vocab_size == len(chars) + len(rules) + sum(number >= 0 for number in special)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == special[1:]
    random = np.random.default_rng(1)
    noise = ["".join(random.choice(list("abdehsu aeh\tß▁"), size=random.integers(1, 31))) for _ in range(307)]
    for text in [*TEXTS, *noise]:
        ids = tokenizer.encode(text)
        assert ids == yttm_ids(text, chars, rules, special[0]), ascii(text)
        assert set(ids).isdisjoint(number for number in special[1:] if number >= 0)
    assert len(tokenizer.encode("a house and a tree")) < 11


def test_rudalle_lowers_and_frames_captions(tmp_path):
    path = written(tmp_path, bpe_model=YTTM)
    tokenizer = text_tokenizers.load(path, lowercase=True, bos=True, eos=True)
    assert tokenizer.encode("ABC") == [2, 13, 3]
    assert tokenizer.encode("") == [2, 3]
    assert text_tokenizers.load(path, eos=True).encode("ABC") == [4, 1, 3]
    with pytest.warns(UserWarning, match="'abc bcd' has 5 text ids, 2 fit; cut off: 'bcd'"):
        assert tokenizer.truncate(tokenizer.encode("abc bcd"), 2, "abc bcd") == [2, 13]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "7 4 1", r"line 1: '7 4 1' came, expected how many characters and rules follow \(2 whole numbers\)"),
        (3, "97 x", r"line 3: '97 x' came, expected a character and its id \(2 whole numbers\)"),
        (3, "1114112 5", "line 3: '1114112 5' came"),
        (4, "98 5", r"line 4: id 5 for 'b' is there already \('a'\)"),
        (10, "6 77 12", "line 10: 6 77 12 joins ids that no line before it has"),
        (11, "4 5 13", r"line 11: id 13 for '▁a' is there already \(11\)"),
        (13, "1 0 2", r"line 13: '1 0 2' came, expected special ids \(4 whole numbers\)"),
        (13, "1 0 2 4", r"line 13: id 4 for '<EOS>' is there already \('▁'\)"),
        (13, "-1 0 2 3", r"has 14 ids, the last 14, unknown -1 and ▁ 4; expected no gap"),
        (13, "1 0 2 30", "has 15 ids, the last 30"),
    ],
)
def test_a_damaged_yttm_model_names_the_line(tmp_path, line, text, message):
    lines = YTTM.splitlines()
    lines[line - 1] = text
    with pytest.raises(UserError, match=message) as caught:
        text_tokenizers.load(written(tmp_path, bpe_model="\n".join(lines)), "yttm")
    assert "\n" not in str(caught.value)


def test_a_truncated_yttm_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 6: 'the end of the file' came, expected a character and its id"):
        text_tokenizers.load(written(tmp_path, bpe_model="\n".join(YTTM.splitlines()[:5])))


# --- CLIP


def test_a_few_clip_merges_by_hand(tmp_path):
    tokenizer = text_tokenizers.load(written(tmp_path, bpe_txt=CLIP), "clip-bpe")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (516, -1, 514, 515)
    # ids: bytes from ! (0) on, so a is 64; the same 256 with </w> at the end of a word; ca 512, cat</w> 513
    assert tokenizer.encode("Cat's CAT cats") == [513, 6, 338, 513, 512, 83, 338]
    assert tokenizer.encode("12!?") == [272, 273, 0, 30 + 256]
    assert tokenizer.encode("é") == tokenizer.encode("e\u0301") == [127, 102 + 256]
    assert tokenizer.encode("&lt;&amp;amp; ＣＡＴ") == [27, 5 + 256, 513]
    assert tokenizer.encode("“c”") == [1 + 256, 66 + 256, 1 + 256]
    assert tokenizer.encode("a <|endoftext|>") == [64 + 256, 515]
    assert tokenizer.encode(" \n") == []
    assert tokenizer.decode([514, *tokenizer.encode("cats, é!"), 515]) == "cats , é !"


def test_clip_merges_may_be_packed(tmp_path):
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(CLIP.replace("header", "x#version: 0.2").encode()))
    path = written(tmp_path, bpe_txt=CLIP)
    assert text_tokenizers.guess(tmp_path / "bpe.txt.gz") == "clip-bpe"
    packed = text_tokenizers.load(tmp_path / "bpe.txt.gz")
    assert packed.identity == text_tokenizers.load(path, "clip-bpe").identity


@pytest.mark.parametrize("line", ["c", "c a t", "ca t</w>", "c xx", "", "c a"])
def test_a_bad_merge_is_named(tmp_path, line):
    path = written(tmp_path, bpe_txt=f"header\nc a\n{line}\nd e\n")
    if line == "ca t</w>":
        assert text_tokenizers.load(path, "clip-bpe").vocab_size == 517
        return
    with pytest.raises(UserError, match=f"line 3: '{line}' is no merge of two tokens that came before it"):
        text_tokenizers.load(path, "clip-bpe")


@pytest.fixture(scope="module")
def peer():
    """dalle_pytorch.tokenizer, with a stand-in for youtokentome, which cannot be built any more."""
    for name in ("ftfy", "regex", "transformers"):
        pytest.importorskip(name)
    if importlib.util.find_spec("dalle_pytorch") is None:
        pytest.skip("dalle-pytorch is not installed")
    import_dalle_pytorch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "youtokentome", types.ModuleType("youtokentome"))
        return importlib.import_module("dalle_pytorch.tokenizer")


CLEANED = (
    "I'LL've DON'T 'S 'tis it’s", "&amp; &lt;b&gt; &#39;x&#39; &nbsp; AT&amp;T &copy &hearts; &#x1f984;",
    "&amp;amp;lt;", "<b>&amp;</b>", "“quoted” ‘x’", "ΌΔΟΣ ΑΣ. ΣΑΣ", "İstanbul", "<|startoftext|> a <|endoftext|>",
    "a<|ENDOFTEXT|>b", "ｆｕｌｌ　ｗｉｄｔｈ ｶﾞ", "x\x0b\x1cy\x85z", "\x1b[31;1mred\x1b[0m", "👩🏽‍🚀 🇳🇴 ❤️", 
    "ﬁne ﬅop ŉ Ǆ", "a_b-c...d", "\u0345a", "a\nb&amp;\r\nc <i> &amp;lt;", "\ufeffa\u200bb", "½ Ⅷ ① x²",
    "a photo of the eiffel tower",
)  # fmt: skip


def test_clip_ids_are_those_of_dalle_pytorch(peer):
    tokenizer, original = text_tokenizers.load(peer.default_bpe()), peer.SimpleTokenizer()
    assert tokenizer.vocab_size == original.vocab_size == 49408
    random = np.random.default_rng(0)
    # Letters that every Unicode of the last years knows, but not Latin-1: a run of it looks wrongly decoded to ftfy.
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
    for text in [*TEXTS, *CLEANED, *noise]:
        assert tokenizer.encode(text) == original.encode(text), ascii(text)
    for text in CAPTIONS:
        ids = original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids).strip()


# --- JSON of the tokenizers library


def json_file(path):
    """A byte-level tokenizer as train_dalle's users make it, with BOS and EOS around texts, padding and dropout."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(dropout=0.9))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=331, special_tokens=["[PAD]", "[SEP]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 2))
    tokenizer.enable_padding(length=31)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    tokenizer.model.dropout = None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def test_a_json_is_taken_over_without_frame_padding_and_dropout(tmp_path):
    original = json_file(tmp_path / "t.json")
    tokenizer = text_tokenizers.load(tmp_path / "t.json")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (331, 0, 2, 1)
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids, ascii(text)
    assert tokenizer.decode([2, *tokenizer.encode("a red heart"), 1, 0]) == "a red heart"
    framed = text_tokenizers.load(tmp_path / "t.json", bos=True, eos=True)
    assert framed.encode("a tree") == original.encode("a tree").ids
    assert text_tokenizers.load(tmp_path / "t.json", lowercase=True).encode("A TREE") == tokenizer.encode("a tree")


def test_hug_tokenizer_gives_the_same_ids(tmp_path, peer):
    values = json.loads(json_file(tmp_path / "t.json").to_str())
    (tmp_path / "t.json").write_text(json.dumps(values))
    tokenizer, original = text_tokenizers.load(tmp_path / "t.json"), peer.HugTokenizer(tmp_path / "t.json")
    assert [tokenizer.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_lone_surrogates_are_replaced(tmp_path):
    tokenizer = text_tokenizers.load(written(tmp_path, bpe_model=YTTM))
    assert tokenizer.encode("a\udcff") == tokenizer.encode("a?")


def test_a_text_that_cannot_be_encoded_is_refused(tmp_path):
    model = tokenizers.models.WordLevel({"cat": 0}, unk_token="?")
    tokenizers.Tokenizer(model).save(str(tmp_path / "w.json"))
    tokenizer = text_tokenizers.load(tmp_path / "w.json")
    assert tokenizer.encode("cat") == [0]
    assert tokenizer.decode([]) == ""
    with pytest.raises(UserError, match=r"w\.json has no ids for 'dog': "):
        tokenizer.encode("dog")


# --- vocab.json and merges.txt, vocab.txt


@pytest.mark.parametrize("unknown", ["[UNK]", "<unk>"])
def test_char_bpe_is_that_of_mindalle(tmp_path, unknown):
    trained = tokenizers.CharBPETokenizer(unk_token=unknown)
    trained.train_from_iterator(CAPTIONS, 211, special_tokens=[unknown], show_progress=False)
    trained.save_model(str(tmp_path), "bpe-16k")
    paths = tmp_path / "bpe-16k-vocab.json", tmp_path / "bpe-16k-merges.txt"
    original = tokenizers.CharBPETokenizer.from_file(*map(str, paths), unk_token=unknown, lowercase=True)
    original.add_special_tokens(["[PAD]"])
    assert [text_tokenizers.guess(path) for path in paths] == ["char-bpe"] * 2
    tokenizer = text_tokenizers.load(paths[1], lowercase=True)
    assert tokenizer.identity == text_tokenizers.load(paths[0], lowercase=True).identity
    assert tokenizer.vocab_size == original.get_vocab_size()
    assert tokenizer.pad_id == original.token_to_id("[PAD]")
    for text in [*TEXTS, "a [PAD] b", f"a{unknown}b"]:
        assert tokenizer.encode(text) == original.encode(text).ids, ascii(text)
    assert tokenizer.decode(tokenizer.encode("A red heart")) == "a red heart"
    assert text_tokenizers.load(paths[0]).encode("A") != tokenizer.encode("A")


BERT = "[PAD]\n[unused1]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n心\n形\na\ncat\n##s\nA\n!\n##e\ne\n"


@pytest.mark.parametrize("lowercase", [False, True])
def test_bert_is_that_of_its_library(tmp_path, lowercase):
    path = written(tmp_path, vocab_txt=BERT)
    vocab = {token: number for number, token in enumerate(BERT.split())}
    original = tokenizers.BertWordPieceTokenizer(vocab, lowercase=lowercase)
    tokenizer = text_tokenizers.load(path, lowercase=lowercase)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (15, 0, 3, 4)
    assert tokenizer.encode("心形A cats!") == [6, 7, 8 if lowercase else 11, 9, 10, 12]
    for text in [*TEXTS, "心 [MASK]形", "é cate"]:
        assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids, ascii(text)


def test_vocabularies_that_do_not_fit_are_refused(tmp_path):
    def refusal(kind, **files):
        with pytest.raises(UserError) as caught:
            text_tokenizers.load(written(tmp_path, **files), kind)
        return str(caught.value)

    assert "'b' is 'x'; expected a number for every token" in refusal("", vocab_json='{"a</w>": 0, "b": "x"}')
    assert "no token that ends with </w>" in refusal("", vocab_json='{"Ġa": 0}')
    pair = {"merges_txt": "#version: 0.2\na b</w>\n", "vocab_json": '{"a": 0, "b</w>": 1}'}
    assert "merges.txt, line 2: 'a b</w>' is no merge of two tokens of" in refusal("", **pair)
    assert "line 3: 'a' is on line 1 already" in refusal("bert", vocab_txt="a\nb\na\n")
    assert "has 2 lines, and [PAD] is none of them" in refusal("bert", vocab_txt="a\nb\n")
    assert "has no model or added_tokens" in refusal("json", t_json='{"version": "1.0"}')
    assert "has no BOS under a name that is known" in _no_bos(tmp_path)


def _no_bos(folder):
    original = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    original.save(str(folder / "w.json"))
    with pytest.raises(UserError) as caught:
        text_tokenizers.load(folder / "w.json", bos=True)
    return str(caught.value)


# --- guessing, reading and damage


def test_kinds_are_guessed(tmp_path):
    json_file(tmp_path / "t.json")
    yttm_file(tmp_path / "bpe.model")
    contents = {"clip_txt": '"bpe#version: 0.2\nc a\n', "vocab_txt": BERT, "v_json": '{"model": 0, "a</w>": 1}'}
    guesses = {name: text_tokenizers.guess(written(tmp_path, **{name: text})) for name, text in contents.items()}
    assert guesses == {"clip_txt": "clip-bpe", "vocab_txt": "bert", "v_json": "char-bpe"}
    assert text_tokenizers.guess(tmp_path / "t.json") == "json"
    assert text_tokenizers.guess(tmp_path / "bpe.model") == "yttm"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world\n", "begins with 'hello world', which is no text tokenizer that is known; say which kind"),
        (b"", "begins with ''"),
        (b"\x1f\x8b\x08broken", "is damaged"),
        (b'{\n"model": {', r"is not JSON: .*line 2 column 11"),
        (b"\n\xff\xfe", r"is not text in UTF-8 \(byte 1\); a SentencePiece model is used as it is"),
    ],
)
def test_files_of_no_known_kind_are_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        text_tokenizers.load(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_more_refusals(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing: No such file"):
        text_tokenizers.load(tmp_path / "nothing")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.json holds a list; expected keys and values"):
        text_tokenizers.load(tmp_path / "list.json", "json")
    with pytest.raises(UserError, match="unknown kind of text tokenizer 'spm'; known are clip-bpe, json"):
        text_tokenizers.load(tmp_path / "list.json", "spm")


def test_a_damaged_text_tokenizer_json_is_refused_in_one_line(tmp_path):
    good = json.loads(text_tokenizers.load(written(tmp_path, bpe_model=YTTM)).content)
    model = good["model"]
    damages = {
        "not a JSON object": [1],
        "unknown key 'pad'": {**good, SETTINGS_KEY: {"pad": 3}},
        "pad_id: expected int, got None": {**good, SETTINGS_KEY: {"pad_id": None}},
        "Model missing": {},
        "Token `q` out of vocabulary": {**good, "model": {**model, "merges": [["q", "a"]]}},
        "NormalizerUntagged": {**good, "normalizer": {"type": "Nothing"}},
    }
    for message, values in damages.items():
        with pytest.raises(UserError, match=message) as caught:
            JsonTokenizer(json.dumps(values).encode(), "text_tokenizer.json")
        assert "\n" not in str(caught.value)
        assert "column" not in str(caught.value)
    for content in (b"", b"{", json.dumps(good).encode()[:-2]):
        with pytest.raises(UserError, match=r"t\.json is no tokenizer of the tokenizers library"):
            JsonTokenizer(content, "t.json")
    with pytest.raises(UserError, match=r"cannot read text tokenizer .*nothing\.json: No such file"):
        JsonTokenizer.read(tmp_path / "nothing.json")


def test_without_our_key_the_defaults_hold(tmp_path):
    original = json_file(tmp_path / "t.json")
    tokenizer = JsonTokenizer.read(tmp_path / "t.json")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (-1, -1, -1)
    assert tokenizer.vocab_size == original.get_vocab_size()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers is not installed; .*\.\[tokenizers\]"):
        JsonTokenizer(b"{}", "t.json")


# --- checkpoint folders


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A whole checkpoint folder with a text tokenizer of YouTokenToMe. Tests must not change it."""
    folder = tmp_path_factory.mktemp("imported")
    text = text_tokenizers.load(written(folder, bpe_model=YTTM))
    save_text_tokenizer(folder / "m", text)
    image = checkpoint.save_part(folder / "m", "image_tokenizer", make_image_tokenizer(), to_dict(IMAGE_TOKENIZER), {})
    stream = StreamConfig(text_length=7, text_vocab=text.vocab_size, grid=(3, 5), image_vocab=61, bos_id=0, pad_id=0)
    transformer = randomise(build_transformer(TRANSFORMER, stream), 3)
    config = {"stream": to_dict(stream), "transformer": to_dict(TRANSFORMER)}
    trained_with = {"text_tokenizer": text.identity, "image_tokenizer": image}
    checkpoint.save_part(folder / "m", "transformer", transformer, config, trained_with)
    save_settings(folder / "m", SAMPLING)
    return folder / "m"


def test_an_imported_text_tokenizer_draws_pictures(imported):
    model = DalleMini.from_pretrained(imported, "cpu")
    assert isinstance(model.text_tokenizer, JsonTokenizer)
    result = model.generate("abc d", candidates=3, keep=2, seed=1)
    assert len(result) == 2
    ids = torch.zeros(1, 3, 5, dtype=torch.int64)
    assert not torch.equal(model.log_likelihood("abc", ids), model.log_likelihood("bcd", ids))
    with pytest.warns(UserWarning, match="cut off: 'd'"):
        assert len(model.encode("d d d d")) == 7
    assert checkpoint.fingerprint(imported) == result.settings["checkpoint"]


def test_info_tells_of_it(imported):
    result = CliRunner().invoke(dalle, ["info", str(imported), "--json"])
    facts = json.loads(result.output)
    identity = load_text_tokenizer(imported).identity
    assert facts["text_tokenizer"] == {"identity": identity, "vocab_size": 15, "megabytes": 0.0}
    assert facts["transformer"]["trained_with"]["text_tokenizer"] == identity


def test_another_one_is_noticed(imported, tmp_path):
    folder = shutil.copytree(imported, tmp_path / "m")
    (folder / "text_tokenizer.json").unlink()
    save_text_tokenizer(folder, text_tokenizers.load(written(tmp_path, bpe_model=YTTM), eos=True))
    with pytest.raises(UserError, match="was trained with text_tokenizer"):
        load_transformer(folder)


def test_a_folder_has_one_text_tokenizer(imported, tiny_model, tmp_path):
    folder = shutil.copytree(imported, tmp_path / "m")
    tokenizer = load_text_tokenizer(folder)
    save_text_tokenizer(folder, tokenizer)  # the same again
    other = text_tokenizers.load(written(tmp_path, bpe_model=YTTM), eos=True)
    with pytest.raises(
        UserError, match=rf"text_tokenizer\.json is text tokenizer {tokenizer.identity}, but the imported"
    ):
        save_text_tokenizer(folder, other)
    ours = tiny_model / "text_tokenizer.model"
    with pytest.raises(
        UserError, match=rf"text_tokenizer\.json is text tokenizer {tokenizer.identity}, but the config"
    ):
        add_text_tokenizer(folder, ours)  # what training does
    with pytest.raises(UserError, match=r"text_tokenizer\.model is text tokenizer"):
        save_text_tokenizer(shutil.copytree(tiny_model, tmp_path / "ours"), other)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        add_text_tokenizer(tmp_path / "new", folder / "text_tokenizer.json")
    shutil.copy(ours, folder)
    with pytest.raises(
        UserError, match=r"expected one text tokenizer, got .* and text_tokenizer\.json; remove the one"
    ):
        load_text_tokenizer(folder)


def test_the_command_writes_it(tmp_path, refused):
    path = written(tmp_path, bpe_model=YTTM)
    arguments = ["import", "text-tokenizer", str(path), "--out", str(tmp_path / "m"), "--lowercase", "--bos", "--eos"]
    result = CliRunner().invoke(dalle, arguments, catch_exceptions=False)
    assert "15 text ids; padding 0, BOS 2, EOS 3 (-1 is none)" in result.output
    tokenizer = load_text_tokenizer(tmp_path / "m")
    assert result.output.endswith(f"text tokenizer {tokenizer.identity} written to {tmp_path}/m/text_tokenizer.json\n")
    assert tokenizer.encode("ABC") == [2, 13, 3]
    message = refused("import", "text-tokenizer", path, "--out", tmp_path / "other", "--kind", "bert")
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_the_command_knows_all_kinds():
    from dalle_mini_impl.cli.import_ import TEXT_KINDS

    assert tuple(text_tokenizers.KINDS) == TEXT_KINDS
