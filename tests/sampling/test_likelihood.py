import copy

import pytest
import torch
from helpers import reference
from helpers.models import GRID, TEXT_LENGTH, make_transformer
from helpers.sampling import PROMPT, make_packable_text_model, make_text_model, random_image_ids, sample

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.sampling import likelihood
from dalle_mini_impl.sampling.likelihood import likelihood_table, log_likelihood, text_log_likelihood
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.util.errors import UserError

CAPTIONS = [[5, 300, 17], [], [41], [1, 2, 3, 4, 5, 6, 7]]


@pytest.fixture(scope="module")
def text_model():
    return make_text_model()


# --- pictures


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("caption", [[5, 300, 17], []])
def test_log_likelihood_equals_the_reference(position, caption):
    transformer, stream = make_transformer(position)
    image_ids = random_image_ids(0, count=3)
    nats = log_likelihood(transformer, stream, caption, image_ids)
    assert nats.shape == (3, 15)
    assert float(nats.max()) <= 0
    for row, ids in zip(nats, image_ids, strict=True):
        expected = reference.log_likelihood(transformer, stream, caption, ids.flatten().tolist())
        assert row.tolist() == pytest.approx(expected, abs=2e-5)


def test_probabilities_of_all_last_ids_sum_to_one(model):
    image_ids = torch.zeros(61, *GRID, dtype=torch.int64)
    image_ids[:, -1, -1] = torch.arange(61)
    nats = log_likelihood(*model, [5], image_ids)
    assert float(nats[:, -1].exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(nats[:, :-1], nats[:1, :-1].expand(61, -1), atol=1e-5, rtol=0)


def test_greedy_sampling_takes_the_likeliest_ids(model):
    greedy = sample(model, [0], settings=SamplingConfig(temperature=0.0, guidance=1.0)).image_ids
    best = log_likelihood(*model, PROMPT.text_ids, greedy)[0]
    for cell in (0, 7, 14):
        others = greedy.flatten(1).repeat(61, 1)
        others[:, cell] = torch.arange(61)
        nats = log_likelihood(*model, PROMPT.text_ids, others.unflatten(1, GRID))
        assert float(nats[:, cell].max()) == pytest.approx(float(best[cell]), abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 3), (1, 3, 6)])
def test_image_ids_of_another_grid_are_refused(model, shape):
    with pytest.raises(UserError, match=r"expected image ids of grid \(3, 5\)"):
        log_likelihood(*model, [5], torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(UserError, match=r"expected image ids of grid \(3, 5\)"):
        likelihood_table(*model, CAPTIONS, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("image_id", [-1, 61])
def test_image_ids_out_of_range_are_refused(model, image_id):
    with pytest.raises(UserError, match=f"{image_id}"):
        log_likelihood(*model, [5], torch.full((1, *GRID), image_id))


# --- captions


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_text_log_likelihood_equals_the_reference(position, monkeypatch):
    transformer, stream = make_text_model(position)
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    nats = text_log_likelihood(transformer, stream, CAPTIONS)
    assert nats.shape == (4, TEXT_LENGTH)
    for row, caption in zip(nats, CAPTIONS, strict=True):
        assert row.tolist() == pytest.approx(reference.text_log_likelihood(transformer, stream, caption), abs=2e-5)


def test_captions_that_are_too_long_are_refused(text_model):
    with pytest.raises(UserError, match="expected captions of up to 7 text ids, got 8"):
        text_log_likelihood(*text_model, [[1] * 8])


# --- pictures × captions


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_table_holds_the_log_likelihood_of_each_picture_given_each_caption(text_model, chunk, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    transformer, stream = text_model
    pictures = random_image_ids(0, count=5)
    calls: list[int] = []
    table = likelihood_table(transformer, stream, CAPTIONS, pictures, progress=calls.append)
    assert table.shape == (5, 4)
    assert sum(calls) == 20
    for column, caption in zip(table.T, CAPTIONS, strict=True):
        expected = log_likelihood(transformer, stream, caption, pictures).sum(1)
        torch.testing.assert_close(column, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [3, 64])
def test_a_blind_table_hides_the_other_image_ids(text_model, chunk, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    transformer, stream = text_model
    pictures = random_image_ids(0, count=5)[:2]
    table = likelihood_table(transformer, stream, CAPTIONS, pictures, blind=True)
    for row, ids in zip(table, pictures, strict=True):
        image_ids = ids.flatten().tolist()
        expected = [reference.blind_log_likelihood(transformer, stream, text, image_ids) for text in CAPTIONS]
        assert row.tolist() == pytest.approx(expected, abs=2e-4)


def test_a_stream_without_bos_has_no_probability_of_its_first_id_and_no_blind_table():
    transformer, stream = make_text_model(bos_id=-1)
    pictures = random_image_ids(0, count=5)
    assert text_log_likelihood(transformer, stream, CAPTIONS).shape == (4, TEXT_LENGTH - 1)
    expected = log_likelihood(transformer, stream, CAPTIONS[0], pictures).sum(1)
    torch.testing.assert_close(likelihood_table(transformer, stream, CAPTIONS, pictures)[:, 0], expected)
    with pytest.raises(UserError, match="expected a stream with BOS"):
        likelihood_table(transformer, stream, CAPTIONS, pictures, blind=True)


@pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
def test_compiled_bf16_code_loses_at_most_3_percent_of_the_spread_of_likelihoods():
    exact, stream = make_packable_text_model()
    packed = pack(copy.deepcopy(exact), "bf16", stream.image_range)
    pictures = random_image_ids(0, count=5)
    for evaluate in (
        lambda transformer: text_log_likelihood(transformer, stream, CAPTIONS).sum(1),
        lambda transformer: likelihood_table(transformer, stream, CAPTIONS, pictures),
        lambda transformer: likelihood_table(transformer, stream, CAPTIONS, pictures, blind=True),
    ):
        expected = evaluate(exact)
        error = (evaluate(packed) - expected).square().mean().sqrt() / expected.std()
        assert 0 < float(error) < 0.03
