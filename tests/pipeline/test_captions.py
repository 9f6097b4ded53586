import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import reference
from helpers.models import GRID, TEXT_LENGTH, TEXT_VOCAB, make_transformer, randomise
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline import captions
from dalle_mini_impl.pipeline.captions import CaptionModel, RankedCaption
from dalle_mini_impl.sampling import likelihood
from dalle_mini_impl.sampling.likelihood import likelihood_table, log_likelihood, text_log_likelihood
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.texts import generate_texts
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

needs_compiler = pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
PLAIN = SamplingConfig()
SHORT = ("a red heart", "two cats", "心形", "สีแดง", "a house", "a tree", "a green tree", "a cat", "star", "heart")
TEXTS = [[5, 300, 17], [], [41], [1, 2, 3, 4, 5, 6, 7]]


def make(position="rope", bos_id=2):
    """A model that ends some captions early and others late."""
    transformer, stream = make_transformer(position)
    if bos_id != 2:
        layout = StreamConfig(text_length=7, text_vocab=367, grid=GRID, image_vocab=61, bos_id=bos_id)
        config = TransformerConfig(n_layer=3, n_head=2, n_embd=24)
        transformer, stream = randomise(build_transformer(config, layout), 3), Stream(layout)
    with torch.no_grad():
        transformer.head.weight[TEXT_VOCAB : TEXT_VOCAB + TEXT_LENGTH] *= 6
    return transformer, stream


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(61, (5, *GRID), generator=torch.Generator().manual_seed(0))


# --- drawing: against the slow reference, uncached and one at a time


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize(
    ("settings", "beginning"),
    [
        (PLAIN, []),
        (PLAIN, [5, 300]),
        (SamplingConfig(temperature=0.7, top_k=41), [17]),
        (SamplingConfig(temperature=1.3, top_p=0.9), []),
        (SamplingConfig(temperature=0.0), [3]),
    ],
    ids=["plain", "continued", "top-k", "top-p", "greedy"],
)
def test_the_reference_agrees(position, settings, beginning):
    transformer, stream = make(position)
    seeds = [3, 2**32 - 1, 11, 12, 13]
    drawn = generate_texts(transformer, stream, beginning, seeds, settings)
    expected = [reference.generate_text(transformer, stream, beginning, seed, settings) for seed in seeds]
    assert drawn == expected


def test_captions_are_of_many_lengths(model):
    drawn = generate_texts(*model, [], range(101), PLAIN)
    assert {len(text_ids) for text_ids in drawn} == set(range(2, TEXT_LENGTH + 1))


def test_a_caption_depends_on_its_seed_alone(model):
    seeds = list(range(100, 137))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = generate_texts(*model, [5], seeds, PLAIN)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(text_ids) for text_ids in whole}) > 20
    for number in (0, 17, 36):
        assert generate_texts(*model, [5], [seeds[number]], PLAIN) == [whole[number]]
    assert generate_texts(*model, [5], seeds, PLAIN, chunk=7) == whole
    assert generate_texts(*model, [5], seeds[::-1], PLAIN) == whole[::-1]


def test_only_text_ids_and_the_own_padding_are_drawn():
    transformer, stream = make_transformer()
    with torch.no_grad():  # a model that would rather have image ids, or any padding but the right one
        transformer.head.weight[stream.image_offset :] *= 1000
    drawn = generate_texts(transformer, stream, [], range(211), SamplingConfig(temperature=5.0))
    seen = {text_id for text_ids in drawn for text_id in text_ids}
    assert min(seen) >= 0
    assert max(seen) < TEXT_VOCAB
    assert len(seen) > 0.9 * TEXT_VOCAB  # none is left out either
    assert all(drawn)  # "no caption" is none


def test_the_model_sees_what_it_was_trained_on(model):
    transformer, stream = model
    seen = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    drawn = generate_texts(transformer, stream, [5, 300], list(range(11)), PLAIN)
    hook.remove()
    assert seen[0].tolist() == [[2, 5, 300]]  # the beginning, once for all
    assert torch.equal(torch.cat([seen[0].expand(11, -1), *seen[1:]], 1), stream.prefix(drawn)[:, :-1])


def test_drawing_stops_when_all_captions_have_ended():
    transformer, stream = make_transformer()
    steps = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: steps.append(args[0].shape))
    with torch.no_grad():  # always ends where it may
        transformer.head.weight[:] = 0
        transformer.norm.weight[:] = 0
    generate_texts(transformer, stream, [5], [1, 2, 3], SamplingConfig(temperature=0.0))
    with_room = len(steps)
    transformer.norm.weight.data[:] = 1
    transformer.head.weight.data[TEXT_VOCAB : TEXT_VOCAB + TEXT_LENGTH] = 1e-3
    hidden = transformer(torch.tensor([[2, 5]]))[0, -1]
    transformer.head.weight.data[TEXT_VOCAB + 1] = hidden
    steps.clear()
    assert generate_texts(transformer, stream, [5], [1, 2, 3], SamplingConfig(temperature=0.0)) == [[5]] * 3
    hook.remove()
    assert steps == [(1, 2)]
    assert with_room == 1 + TEXT_LENGTH - 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "expected at least one seed, got none; give one per caption"),
        ({"chunk": 0}, "chunk of at least 1 caption, got 0"),
        ({"sampling": SamplingConfig(top_k=368)}, r"top_k from 0 to 367, got 368"),
        ({"beginning": [1] * 7}, "a beginning of at most 6 text ids, got 7"),
        ({"beginning": [367]}, "expected text ids from 0 to 366"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model, change, message):
    how = {"beginning": [5], "seeds": [1], "sampling": PLAIN, **change}
    with pytest.raises(UserError, match=message):
        generate_texts(*model, **how)


def test_a_stream_without_bos_wants_a_beginning(pictures):
    transformer, stream = make(bos_id=-1)
    with pytest.raises(UserError, match="this model's stream has no BOS, got none; give at least one text id"):
        generate_texts(transformer, stream, [], [1], PLAIN)
    drawn = generate_texts(transformer, stream, [5], range(37), PLAIN)
    assert {text_ids[0] for text_ids in drawn} == {5}
    assert len({len(text_ids) for text_ids in drawn}) > 3
    assert text_log_likelihood(transformer, stream, TEXTS).shape == (4, TEXT_LENGTH - 1)
    expected = log_likelihood(transformer, stream, TEXTS[0], pictures).sum(1)
    torch.testing.assert_close(likelihood_table(transformer, stream, TEXTS, pictures)[:, 0], expected)
    with pytest.raises(UserError, match="expected a stream with BOS"):
        likelihood_table(transformer, stream, TEXTS, pictures, blind=True)


# --- judging


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_text_log_likelihood_equals_brute_force(position, monkeypatch):
    transformer, stream = make(position)
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    nats = text_log_likelihood(transformer, stream, TEXTS)
    assert nats.shape == (4, TEXT_LENGTH)
    for row, caption in zip(nats, TEXTS, strict=True):
        assert row.tolist() == pytest.approx(reference.text_log_likelihood(transformer, stream, caption), abs=2e-5)


def test_a_caption_that_is_too_long_is_refused(model):
    with pytest.raises(UserError, match="expected captions of up to 7 text ids, got 8"):
        text_log_likelihood(*model, [[1] * 8])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_each_picture_is_judged_by_each_caption(model, pictures, chunk, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    told = []
    table = likelihood_table(*model, TEXTS, pictures, progress=told.append)
    assert table.shape == (5, 4)
    assert sum(told) == 20
    for column, caption in zip(table.T, TEXTS, strict=True):
        torch.testing.assert_close(column, log_likelihood(*model, caption, pictures).sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [3, 64])
def test_blind_judging_hides_the_other_ids(model, pictures, chunk, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    table = likelihood_table(*model, TEXTS, pictures[:2], blind=True)
    for row, ids in zip(table, pictures, strict=False):
        expected = [reference.blind_log_likelihood(*model, text, ids.flatten().tolist()) for text in TEXTS]
        assert row.tolist() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("shape", [(1, 5, 3), (1, 3, 6)])
def test_pictures_of_another_grid_are_refused(model, shape):
    with pytest.raises(UserError, match="grid"):
        likelihood_table(*model, TEXTS, torch.zeros(shape, dtype=torch.int64))


@needs_compiler
def test_compiled_code_knows_text_as_well(pictures):
    layout = StreamConfig(text_length=7, text_vocab=367, grid=GRID, image_vocab=61)
    exact, stream = randomise(build_transformer(TransformerConfig(n_layer=3, n_head=2, n_embd=64), layout), 3), None
    stream = Stream(layout)
    exact.norm.weight.data *= torch.linspace(0.2, 3, 64)  # the norm's gain is folded into the head
    packed = pack(copy.deepcopy(exact), "bf16", stream.image_range)
    for judge in (
        lambda model: text_log_likelihood(model, stream, TEXTS).sum(1),
        lambda model: likelihood_table(model, stream, TEXTS, pictures),
        lambda model: likelihood_table(model, stream, TEXTS, pictures, blind=True),
    ):
        expected = judge(exact)
        lost = (judge(packed) - expected).square().mean().sqrt() / expected.std()
        assert 0 < float(lost) < 0.03
    drawn = generate_texts(packed, stream, [5], range(29), PLAIN)
    assert drawn == generate_texts(packed, stream, [5], range(29), PLAIN, chunk=7)
    # What greedy draws from the cache is among the likeliest in one pass over the whole
    (greedy,) = generate_texts(packed, stream, [], [1], SamplingConfig(temperature=0.0))
    prefix = stream.prefix([greedy])
    with torch.inference_mode():
        scores = packed.logits(packed(prefix[:, :-1]), stream.text_range)[0, : len(greedy)]
    lost = scores[:, :TEXT_VOCAB].amax(1) - scores.gather(1, prefix[0, 1 : 1 + len(greedy), None])[:, 0]
    assert float(lost.max()) < 0.1 * float(scores.std())


# --- texts


class Painter:
    """A transformer that knows what each caption looks like by its first id, and how likely that id is."""

    def __init__(self, stream, image_scores, text_scores):
        self.device = torch.device("cpu")
        self.scores = {stream.image_range: image_scores, stream.text_range: text_scores}

    def new_cache(self, batch, capacity=None):
        return self.Cache(None)

    class Cache(SimpleNamespace):
        def __init__(self, first):
            super().__init__(first=first)

        def branch(self, count, capacity):
            return type(self)(self.first.repeat_interleave(count, 0))

    def __call__(self, ids, cache=None):
        first = ids[:, 1] if cache is None or cache.first is None else cache.first
        if cache is not None:
            cache.first = first
        return first[:, None, None].expand(-1, ids.shape[1], 1)

    def logits(self, hidden, allowed):
        return self.scores[allowed][hidden[..., 0]]


class Letters:
    """Ids are letters: a is 0, b is 1 …"""

    eos_id = -1

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, text_ids):
        return "".join(chr(text_id + ord("a")) for text_id in text_ids)

    def truncate(self, text_ids, length, text=""):
        return text_ids[:length]


@pytest.fixture(scope="module")
def painter():
    """Captions a, b, c draw mostly image id 0, 1, 2 of 3 at every place; no caption draws all alike."""
    stream = Stream(StreamConfig(text_length=2, text_vocab=3, grid=(2, 2), image_vocab=3, bos_id=2))
    shares = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]])
    text = torch.zeros(4, stream.image_offset)
    text[0, [0, 4]] = 9.0  # "a", and then the end, is what it likes to say
    return CaptionModel(Letters(), Painter(stream, shares.log(), text), stream)


def test_captions_are_ranked_by_what_they_gain(painter):
    picture = torch.tensor([[0, 0], [2, 0]])
    first, second, third = painter.rank(picture, ["c", "b", "a", "b"])
    assert [one.text for one in (first, second, third)] == ["a", "c", "b"]
    null = 4 * torch.tensor(1 / 3).log()
    assert first.gain == pytest.approx(float(3 * torch.tensor(0.8).log() + torch.tensor(0.1).log() - null), abs=1e-5)
    assert second.gain == pytest.approx(float(3 * torch.tensor(0.2).log() + torch.tensor(0.6).log() - null), abs=1e-5)
    assert third.gain == pytest.approx(float(4 * torch.tensor(0.1).log() - null), abs=1e-5)
    assert first.nats == pytest.approx(float(painter.text_nats(["a"])), abs=1e-6)
    assert painter.rank(picture, ["c", "b", "a"], 2, blind=True) == [first, second]  # it never looks anyway


def test_the_prior_may_change_the_order(painter):
    picture = torch.tensor([[0, 0], [2, 2]])
    gains = painter.rank(picture, ["a", "c"])
    assert [one.text for one in gains] == ["c", "a"]
    assert gains[0].gain - gains[1].gain < gains[1].nats - gains[0].nats
    assert painter.rank(picture, ["a", "c"], prior=True) == gains[::-1]


def test_equally_good_captions_keep_their_order(painter):
    ranked = painter.rank(torch.tensor([[2, 2], [2, 2]]), ["ba", "bb", "b", "bc"])
    assert [one.text for one in ranked] == ["ba", "bb", "b", "bc"]


def test_captions_are_sampled_where_none_are_given(painter, monkeypatch):
    asked = []

    def draw(transformer, stream, beginning, seeds, sampling, chunk):
        asked.append((beginning, len(seeds), sampling.temperature, chunk))
        return [[1], [0, 2], [1]]

    monkeypatch.setattr(captions, "generate_texts", draw)
    ranked = painter.rank(torch.tensor([[0, 0], [0, 0]]), beginning="b", candidates=11, temperature=0.5, chunk=3)
    assert asked == [([1], 11, 0.5, 3)]
    assert [one.text for one in ranked] == ["ac", "b"]
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: [])
    with pytest.raises(UserError, match="expected captions to choose from, got none; give some, or sample more"):
        painter.rank(torch.tensor([[0, 0], [0, 0]]))
    with pytest.raises(UserError, match="expected captions to choose from"):
        painter.rank(torch.tensor([[0, 0], [0, 0]]), [])


def test_a_beginning_is_gone_on_with_where_a_tokenizer_would_end_it(painter, monkeypatch):
    class Ending(Letters):
        eos_id = 2

        def encode(self, text):
            return [*super().encode(text), self.eos_id]

        def decode(self, text_ids):
            return super().decode([text_id for text_id in text_ids if text_id != self.eos_id])

    asked = []

    def draw(transformer, stream, beginning, *rest, **more):
        asked.append(beginning)
        return [[0, 2], [1, 2]]

    monkeypatch.setattr(captions, "generate_texts", draw)
    found = dataclasses.replace(painter, text_tokenizer=Ending()).complete("a")
    assert asked == [[0]]
    assert {text for text, _ in found} == {"a", "b"}


@pytest.mark.parametrize("numbers", [{"keep": 0}, {"candidates": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(painter, numbers):
    (name, value), *_ = numbers.items()
    with pytest.raises(UserError, match=f"{name} {value}"):
        painter.complete("b", **numbers)
    with pytest.raises(UserError, match=f"{name} {value}"):
        painter.rank(torch.tensor([[0, 0], [0, 0]]), ["a"], **numbers)


def test_only_text_is_returned_once_and_likeliest_first(tiny_dalle, text_tokenizer, monkeypatch):
    byte = {number: text_tokenizer._model.piece_to_id(f"<0x{number:02X}>") for number in range(256)}
    heart, star = (text_tokenizer.encode(text) for text in ("a red heart", "star"))
    spelled = [text_tokenizer._model.piece_to_id(piece) for piece in ("▁", "s", "t", "a", "r")]
    drawn = [
        heart, spelled, [byte[0xE4]], [*star, byte[0xBF], byte[0xE5]], [1], [2, 0, 3], [byte[0x20]],
        [byte[letter] for letter in "猫".encode()], star, [byte[letter] for letter in b"zqzqzqz"],
    ]  # fmt: skip
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: drawn)
    found = tiny_dalle.complete_text(candidates=10, keep=10)
    assert {text for text, _ in found} <= {"a red heart", "star", "猫", "zqzqzqz"}
    assert {text for text, _ in found} >= {"a red heart", "star", "猫"}
    assert [nats for _, nats in found] == sorted((nats for _, nats in found), reverse=True)
    for text, nats in found:
        assert len(text_tokenizer.encode(text)) <= TEXT_LENGTH
        assert nats == pytest.approx(float(tiny_dalle.text_log_likelihood(text).sum()), abs=1e-3)
    assert tiny_dalle.complete_text(candidates=10, keep=1) == found[:1]
    monkeypatch.setattr(captions, "generate_texts", lambda *rest, **more: [[1], [byte[0xE4]]])
    assert tiny_dalle.complete_text() == []


# --- the API


def test_captions_begin_as_asked(tiny_dalle):
    found = tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=3)
    assert len(found) > 5
    assert all(text.startswith("a red") for text, _ in found)
    assert found == tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=3, chunk=5)
    assert found != tiny_dalle.complete_text("a red", candidates=17, keep=17, seed=4)


def test_text_log_likelihood_is_that_of_the_text_ids(tiny_dalle, text_tokenizer):
    nats = tiny_dalle.text_log_likelihood("a red heart")
    expected = text_log_likelihood(tiny_dalle.transformer, tiny_dalle.stream, [text_tokenizer.encode("a red heart")])
    assert nats.shape == (TEXT_LENGTH,)
    assert torch.equal(nats, expected[0])
    with pytest.warns(UserWarning, match="text ids, 7 fit"):
        tiny_dalle.text_log_likelihood("a red heart " * 3)


def test_a_picture_is_captioned(tiny_dalle, pictures):
    picture = tiny_dalle.decode(pictures[:1])[0]
    ranked = tiny_dalle.caption(picture, SHORT, keep=7)
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


def test_the_shipped_model_knows_what_it_drew():
    dalle = DalleMini.from_pretrained("emoji", "cpu")
    picture = dalle.generate("a red heart", candidates=4, keep=1, seed=0)[0].image
    names = ["a house", "a green apple", "a red heart", "a cat", "ein gelber Stern"]
    for blind in (False, True):
        best, *_, worst = dalle.caption(picture, names, blind=blind)
        assert best.text == "a red heart"
        assert best.gain > 0 > worst.gain
    found = dict(dalle.complete_text("a red", candidates=32, keep=32, seed=1))
    assert all(text.startswith("a red") for text in found)
    assert {"a red circle", "a red heart, noto"} & set(found)
    likely, odd = (float(dalle.text_log_likelihood(text).sum()) for text in ("a red heart", "heart red a"))
    assert likely > odd + 5
    sampled = dalle.caption(picture, beginning="a red", candidates=32, seed=1)
    assert "heart" in " ".join(one.text for one in sampled)
