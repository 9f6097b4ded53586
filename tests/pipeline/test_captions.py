import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers.models import TEXT_LENGTH
from helpers.sampling import random_image_ids
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline import captions
from dalle_mini_impl.pipeline.captions import CaptionModel, RankedCaption
from dalle_mini_impl.sampling.likelihood import text_log_likelihood
from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

CAPTIONS = (
    "a red heart",
    "two cats",
    "心形",
    "สีแดง",
    "a house",
    "a tree",
    "a green tree",
    "a cat",
    "star",
    "heart",
)


class FixedTransformer:
    """A transformer with fixed logits, which depend on nothing but the first text id.

    Hidden states are this id, as (B, T, 1).
    """

    def __init__(self, stream, image_logits, text_logits):
        self.device = torch.device("cpu")
        self.fixed_logits = {stream.image_range: image_logits, stream.text_range: text_logits}

    def new_cache(self, batch, capacity=None):
        return self.Cache(None)

    class Cache(SimpleNamespace):
        def __init__(self, first):
            super().__init__(first=first)

        def branch_bytes(self, count, capacity):
            return 0

        def branch(self, rows, capacity):
            return type(self)(self.first[rows])

    def __call__(self, ids, cache=None, image_embed=None):
        first = ids[:, 1] if cache is None or cache.first is None else cache.first
        if cache is not None:
            cache.first = first
        return first[:, None, None].expand(-1, ids.shape[1], 1)

    def logits(self, hidden, allowed):
        return self.fixed_logits[allowed][hidden[..., 0]]


class LetterTokenizer:
    """Text ids are letters: a is 0, b is 1 …"""

    eos_id = -1

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    encode_beginning = encode

    def decode(self, text_ids):
        return "".join(chr(text_id + ord("a")) for text_id in text_ids)

    def truncate(self, text_ids, length, text=""):
        return text_ids[:length]


@pytest.fixture(scope="module")
def model():
    """Captions a, b and c make image ids 0, 1 and 2 of 3 the likeliest in every cell; without caption all are equal."""
    stream = Stream(StreamConfig(text_length=2, text_vocab=3, grid=(2, 2), image_vocab=3, bos_id=2))
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]])
    text_logits = torch.zeros(4, stream.image_offset)
    text_logits[0, [0, 4]] = 9.0  # "a" and then the end is the likeliest caption
    return CaptionModel(LetterTokenizer(), FixedTransformer(stream, probabilities.log(), text_logits), stream)


def test_captions_are_ranked_by_how_much_likelier_they_make_the_picture(model):
    picture = torch.tensor([[0, 0], [2, 0]])
    first, second, third = model.rank(picture, ["c", "b", "a", "b"])
    assert [one.text for one in (first, second, third)] == ["a", "c", "b"]
    uncaptioned = 4 * torch.tensor(1 / 3).log()
    assert first.gain == pytest.approx(
        float(3 * torch.tensor(0.8).log() + torch.tensor(0.1).log() - uncaptioned), abs=1e-5
    )
    assert second.gain == pytest.approx(
        float(3 * torch.tensor(0.2).log() + torch.tensor(0.6).log() - uncaptioned), abs=1e-5
    )
    assert third.gain == pytest.approx(float(4 * torch.tensor(0.1).log() - uncaptioned), abs=1e-5)
    assert first.nats == pytest.approx(float(model.text_nats(["a"])), abs=1e-6)
    # This transformer's logits of image ids do not depend on other image ids anyway.
    assert model.rank(picture, ["c", "b", "a"], 2, blind=True) == [first, second]


def test_with_prior_the_captions_own_probability_counts_too(model):
    picture = torch.tensor([[0, 0], [2, 2]])
    by_gain = model.rank(picture, ["a", "c"])
    assert [one.text for one in by_gain] == ["c", "a"]
    assert by_gain[0].gain - by_gain[1].gain < by_gain[1].nats - by_gain[0].nats
    assert model.rank(picture, ["a", "c"], prior=True) == by_gain[::-1]


def test_equally_good_captions_keep_their_order(model):
    ranked = model.rank(torch.tensor([[2, 2], [2, 2]]), ["ba", "bb", "b", "bc"])
    assert [one.text for one in ranked] == ["ba", "bb", "b", "bc"]


def test_captions_are_sampled_if_none_are_given(model, monkeypatch):
    calls = []

    def fake_generate_texts(transformer, stream, beginning, seeds, sampling, chunk):
        calls.append((beginning, len(seeds), sampling.temperature, chunk))
        return [[1], [0, 2], [1]]

    monkeypatch.setattr(captions, "generate_texts", fake_generate_texts)
    ranked = model.rank(torch.tensor([[0, 0], [0, 0]]), beginning="b", candidates=11, temperature=0.5, chunk=3)
    assert calls == [([1], 11, 0.5, 3)]
    assert [one.text for one in ranked] == ["ac", "b"]
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: [])
    with pytest.raises(UserError, match="expected captions to choose from, got none; give some, or sample more"):
        model.rank(torch.tensor([[0, 0], [0, 0]]))
    with pytest.raises(UserError, match="expected captions to choose from"):
        model.rank(torch.tensor([[0, 0], [0, 0]]), [])


def test_eos_at_the_end_of_the_beginning_is_removed(model, monkeypatch):
    class TokenizerWithEos(LetterTokenizer):
        eos_id = 2

        def encode(self, text):
            return [*super().encode(text), self.eos_id]

        encode_beginning = JsonTokenizer.encode_beginning

        def decode(self, text_ids):
            return super().decode([text_id for text_id in text_ids if text_id != self.eos_id])

    calls = []

    def fake_generate_texts(transformer, stream, beginning, *rest, **more):
        calls.append(beginning)
        return [[0, 2], [1, 2]]

    monkeypatch.setattr(captions, "generate_texts", fake_generate_texts)
    completed = dataclasses.replace(model, text_tokenizer=TokenizerWithEos()).complete("a")
    assert calls == [[0]]
    assert {text for text, _ in completed} == {"a", "b"}


@pytest.mark.parametrize("numbers", [{"keep": 0}, {"candidates": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(model, numbers):
    (name, value), *_ = numbers.items()
    with pytest.raises(UserError, match=f"{name} {value}"):
        model.complete("b", **numbers)
    with pytest.raises(UserError, match=f"{name} {value}"):
        model.rank(torch.tensor([[0, 0], [0, 0]]), ["a"], **numbers)


def test_invalid_and_repeated_captions_are_left_out_and_the_likeliest_come_first(
    tiny_dalle, text_tokenizer, monkeypatch
):
    byte = {number: text_tokenizer._model.piece_to_id(f"<0x{number:02X}>") for number in range(256)}
    heart, star = (text_tokenizer.encode(text) for text in ("a red heart", "star"))
    spelled = [text_tokenizer._model.piece_to_id(piece) for piece in ("▁", "s", "t", "a", "r")]
    sampled = [
        heart,
        spelled,
        [byte[0xE4]],
        [*star, byte[0xBF], byte[0xE5]],
        [1],
        [2, 0, 3],
        [byte[0x20]],
        [byte[letter] for letter in "猫".encode()],
        star,
        [byte[letter] for letter in b"zqzqzqz"],
    ]
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: sampled)
    completed = tiny_dalle.complete_text(candidates=10, keep=10)
    assert {text for text, _ in completed} <= {"a red heart", "star", "猫", "zqzqzqz"}
    assert {text for text, _ in completed} >= {"a red heart", "star", "猫"}
    assert [nats for _, nats in completed] == sorted((nats for _, nats in completed), reverse=True)
    for text, nats in completed:
        assert len(text_tokenizer.encode(text)) <= TEXT_LENGTH
        assert nats == pytest.approx(float(tiny_dalle.text_log_likelihood(text).sum()), abs=1e-3)
    assert tiny_dalle.complete_text(candidates=10, keep=1) == completed[:1]
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: [[1], [byte[0xE4]]])
    assert tiny_dalle.complete_text() == []


# --- through DalleMini


def test_completed_captions_begin_with_the_beginning_and_depend_on_the_seed(tiny_dalle):
    completed = tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=3)
    assert len(completed) > 5
    assert all(text.startswith("a red") for text, _ in completed)
    assert completed == tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=3, chunk=5)
    assert completed != tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=4)


def test_text_log_likelihood_of_dalle_mini_is_that_of_the_text_ids(tiny_dalle, text_tokenizer):
    nats = tiny_dalle.text_log_likelihood("a red heart")
    expected = text_log_likelihood(tiny_dalle.transformer, tiny_dalle.stream, [text_tokenizer.encode("a red heart")])
    assert nats.shape == (TEXT_LENGTH,)
    assert torch.equal(nats, expected[0])
    with pytest.warns(UserWarning, match="text ids, 7 fit"):
        tiny_dalle.text_log_likelihood("a red heart " * 3)


def test_captions_of_a_picture_are_ranked_by_gain(tiny_dalle):
    picture = tiny_dalle.decode(random_image_ids(0, count=5)[:1])[0]
    ranked = tiny_dalle.caption(picture, CAPTIONS, keep=7)
    assert len(ranked) == 7
    assert all(isinstance(one, RankedCaption) for one in ranked)
    ids = tiny_dalle.image_tokenizer.encode(to_pixels([picture], (24, 40)))
    for one in ranked:
        gain = tiny_dalle.log_likelihood(one.text, ids).sum() - tiny_dalle.log_likelihood("", ids).sum()
        assert one.gain == pytest.approx(float(gain), abs=0.1)  # bf16 where compiled
    gains = [one.gain for one in ranked]
    assert gains == sorted(gains, reverse=True)
    assert len(tiny_dalle.caption(picture, beginning="a red", candidates=17, keep=3, seed=3)) == 3
    assert tiny_dalle.caption(Image.new("RGBA", (31, 7)), ["a cat"])[0].text == "a cat"


def test_the_shipped_model_finds_the_caption_of_its_own_picture():
    dalle_mini = DalleMini.from_pretrained("emoji", "cpu")
    picture = dalle_mini.generate("a red heart", candidates=4, keep=1, seed=0)[0].image
    names = ["a house", "a green apple", "a red heart", "a cat", "ein gelber Stern"]
    for blind in (False, True):
        best, *_, worst = dalle_mini.caption(picture, names, blind=blind)
        assert best.text == "a red heart"
        assert best.gain > 0 > worst.gain
    completed = dict(dalle_mini.complete_text("a red", candidates=32, keep=32, seed=1))
    assert all(text.startswith("a red") for text in completed)
    assert {"a red pause button", "a red american football, fxemoji"} <= set(completed)
    likely, odd = (float(dalle_mini.text_log_likelihood(text).sum()) for text in ("a red heart", "heart red a"))
    assert likely > odd + 5
    sampled = dalle_mini.caption(picture, beginning="a red", candidates=256, seed=2, blind=True)
    assert sampled[0].text.startswith("a red heart")
