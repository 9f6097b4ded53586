import copy
import math

import pytest
import torch
from helpers.models import GRID, TEXT_LENGTH, TEXT_VOCAB, make_transformer

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.model.blocks import MLP
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.util.errors import UserError

T = 1 + TEXT_LENGTH + GRID[0] * GRID[1]
POSITIONS = ["rope", "learned"]
STREAM = StreamConfig(text_length=3, text_vocab=17, grid=(2, 3), image_vocab=11)


@pytest.fixture(params=POSITIONS)
def model(request):
    """In double precision, so that tolerances can be tight."""
    return make_transformer(request.param)[0].double()


def random_ids(model, batch=3, seed=0):
    return torch.randint(model.vocab_size, (batch, T), generator=torch.Generator().manual_seed(seed))


def run_in_pieces(model, ids, sizes, cache=None):
    cache = cache or model.new_cache(len(ids))
    pieces, start = [], 0
    for size in sizes:
        pieces.append(model(ids[:, start : start + size], cache))
        start += size
        assert cache.length == start
    return torch.cat(pieces, 1)


def gradients_and_stored(position, recompute):
    """Gradients of a loss, and how many activation values were stored for them."""
    model = make_transformer(position, recompute=recompute)[0].double()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x):
        loss = model(random_ids(model)).square().sum()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], sum(sizes)


@pytest.mark.parametrize("position", POSITIONS)
def test_recomputing_stores_less_and_gives_the_same_gradients(position):
    expected, all_stored = gradients_and_stored(position, False)
    gradients, stored = gradients_and_stored(position, True)
    assert len(gradients) == len(expected) > 10
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, other)
    assert stored < all_stored / 4


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("t", [0, 1, TEXT_LENGTH - 1, TEXT_LENGTH, TEXT_LENGTH + 1, 11, T - 2])
def test_no_position_attends_to_later_ones(model, t, grad):
    ids = random_ids(model)
    changed = ids.clone()
    changed[:, t + 1] = (ids[:, t + 1] + 1) % model.vocab_size
    with torch.set_grad_enabled(grad):
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert bool((before[:, t + 1 :] != after[:, t + 1 :]).any(-1).all())


@pytest.mark.parametrize(
    "sizes",
    [[1] * T, [1, 2, 3, 5, 7, 5], [8] + [1] * 15, [22, 1], [1, 22], [T]],
    ids=["single", "ragged", "prompt", "last", "first", "whole"],
)
def test_cached_equals_uncached_at_every_position(model, sizes):
    ids = random_ids(model)
    with torch.no_grad():
        torch.testing.assert_close(run_in_pieces(model, ids, sizes), model(ids), atol=1e-12, rtol=0)


def test_training_and_inference_give_the_same(model):
    ids = random_ids(model)
    with torch.no_grad():
        inference = model(ids)
    torch.testing.assert_close(model(ids), inference, atol=1e-12, rtol=0)


def test_rows_of_a_batch_are_independent(model):
    ids = random_ids(model)
    with torch.no_grad():
        together = model(ids)
        for row in range(3):
            torch.testing.assert_close(model(ids[row : row + 1])[0], together[row], atol=1e-12, rtol=0)


def test_a_cache_is_neither_read_nor_written_beyond_its_length(model):
    ids, cache = random_ids(model), model.new_cache(3)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    with torch.no_grad():
        hidden = run_in_pieces(model, ids, [5, 1, 3, 2], cache)
    assert bool(hidden.isfinite().all())
    for stored in (cache.keys, cache.values):
        assert bool(stored[..., :11, :].isfinite().all())
        assert bool(stored[..., 11:, :].isnan().all())


def test_a_run_changes_neither_ids_nor_model(model):
    ids, state = random_ids(model), copy.deepcopy(model.state_dict())
    before = ids.clone()
    attributes = set(vars(model))
    with torch.no_grad():
        first = run_in_pieces(model, ids, [8] + [1] * 15)
        second = run_in_pieces(model, ids, [8] + [1] * 15)
    assert torch.equal(ids, before)
    assert torch.equal(first, second)
    assert set(vars(model)) == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_outputs_depend_on_the_position(model):
    # All positions have the same id, except the first: relative positions need something to be relative to.
    ids = torch.full((1, T), 3)
    ids[0, 0] = 5
    with torch.no_grad():
        hidden = model(ids)[0, 1:]
    distances = torch.cdist(hidden, hidden) + torch.eye(T - 1) * 9
    assert float(distances.min()) > 1e-6


def test_logits_of_a_range_are_a_slice_of_all():
    model, stream = make_transformer()
    hidden = model(random_ids(model))
    every = model.logits(hidden)
    assert every.shape == (3, T, stream.vocab_size)
    for allowed in (stream.text_range, stream.image_range, (5, 7)):
        torch.testing.assert_close(model.logits(hidden, allowed), every[..., slice(*allowed)])
    assert model.logits(hidden[:, 0], stream.image_range).shape == (3, 61)


def test_a_tied_head_is_the_embedding():
    model, stream = make_transformer(tied_head=True)
    untied, _ = make_transformer()
    assert set(untied.state_dict()) - set(model.state_dict()) == {"head.weight"}
    hidden = model(random_ids(model))
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embed.weight.T)
    torch.testing.assert_close(model.logits(hidden, stream.image_range), hidden @ model.embed.weight[-61:].T)
    model.logits(hidden, (0, 3)).sum().backward()
    assert bool(model.embed.weight.grad[:3].any(1).all())


def test_a_fresh_model_with_a_tied_head_predicts_nearly_every_id_alike():
    model = build_transformer(TransformerConfig(n_layer=2, n_head=2, n_embd=64, tied_head=True), STREAM)
    assert float(model.logits(model(torch.randint(model.vocab_size, (2, 10)))).detach().std()) < 0.4


def test_gradients_reach_earlier_positions_only():
    model, _ = make_transformer()
    embedded = []
    model.embed.register_forward_hook(lambda module, args, output: embedded.append(output) or output.retain_grad())
    model(random_ids(model, 1))[0, 9].sum().backward()
    grad = embedded[0].grad[0].abs().sum(-1)
    assert bool((grad[:10] > 0).all())
    assert not grad[10:].any()


def test_a_fresh_model_predicts_every_id_alike():
    model = build_transformer(TransformerConfig(n_layer=2, n_head=2, n_embd=8), STREAM)
    ids = torch.randint(model.vocab_size, (2, 10))
    assert not model.logits(model(ids)).any()
    torch.testing.assert_close(model(ids), model.norm(model.embed(ids)))  # every block is the identity


def test_a_fresh_model_with_layer_norm_and_biases_predicts_every_id_alike():
    block = BlockConfig(norm="layer", mlp="gelu", bias=True, qk_norm=False)
    model = build_transformer(
        TransformerConfig(n_layer=2, n_head=3, n_embd=12, position="learned", block=block), STREAM
    )
    assert not model.logits(model(torch.tensor([[1, 2, 18]]))).any()


def test_a_whole_model_can_learn_one_batch():
    torch.manual_seed(0)
    stream = Stream(STREAM)
    model = build_transformer(TransformerConfig(n_layer=2, n_head=2, n_embd=24), stream.config)
    ids = stream.join(stream.prefix([[5], [7, 5], [], [1, 2, 3]]), torch.randint(11, (4, 2, 3)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        hidden = model(ids[:, :-1])[:, 3:]
        loss = torch.nn.functional.cross_entropy(
            model.logits(hidden, stream.image_range).flatten(0, 1), (ids[:, 4:] - stream.image_offset).flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(11), abs=1e-4)
    assert losses[-1] < 0.05


def test_swiglu_equals_its_formula():
    layer = MLP(7).double()
    x = torch.randn(5, 7, dtype=torch.float64)
    gate, value = x @ layer.up.weight[:64].T, x @ layer.up.weight[64:].T
    torch.testing.assert_close(layer(x), (gate / (1 + torch.exp(-gate)) * value) @ layer.down.weight.T)


def test_autocast_keeps_the_residual_stream_in_one_dtype():
    model, _ = make_transformer()
    ids = random_ids(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids)
    assert hidden.dtype == torch.bfloat16
    with torch.no_grad():
        exact = model(ids)
    assert float((hidden - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


def test_learned_positions_are_embeddings_of_rows_and_columns():
    model, stream = make_transformer("learned")
    rows, columns = model.positions
    last = 1 + TEXT_LENGTH
    assert (rows.num_embeddings, columns.num_embeddings) == (last + GRID[0], last + GRID[1])
    assert model.table is None
    assert make_transformer("rope")[0].positions is None
    assert int(stream.coordinates()[:, 1].max()) == columns.num_embeddings - 1


@pytest.mark.parametrize("position", POSITIONS)
def test_input_of_the_first_block_is_the_sum_of_embeddings(position):
    model, stream = make_transformer(position)
    block_inputs = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: block_inputs.append(args[0]))
    ids = random_ids(model)
    model(ids)
    for t, (row, column) in enumerate(stream.coordinates().tolist()):
        expected = model.embed.weight[ids[:, t]]
        if position == "learned":
            expected = expected + model.positions[0].weight[row] + model.positions[1].weight[column]
        torch.testing.assert_close(block_inputs[0][:, t], expected)


def test_a_new_cache_fits_the_model():
    model, _ = make_transformer()
    assert model.new_cache(5).keys.shape == (3, 5, 2, T, 12)
    assert model.new_cache(5, 11).keys.shape == (3, 5, 2, 11, 12)
    assert model.double().new_cache(1).keys.dtype == torch.float64


def test_the_model_takes_plain_arguments():
    coordinates = torch.tensor([[0, 0], [1, 0], [1, 1]])
    model = Transformer(19, coordinates, n_layer=1, n_head=3, n_embd=12)
    assert model(torch.tensor([[1, 2, 18]])).shape == (1, 3, 12)
    assert model.vocab_size == 19
    assert "coordinates" not in model.state_dict()
    assert build_transformer(TransformerConfig(), make_transformer()[1].config).vocab_size == TEXT_VOCAB + 7 + 61


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 22, "n_head": 4}, "got n_embd 22, n_head 4"),
        ({"n_embd": 12, "n_head": 2}, "a multiple of 4"),
        ({"head_dim": 6}, "a multiple of 4"),
        ({"n_embd": 13, "n_head": 2, "position": "learned"}, "that is a whole number"),
        ({"position": "alibi"}, "expected position rope, learned, absolute, got 'alibi'"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Transformer(
            **{
                "vocab_size": 19,
                "coordinates": torch.zeros(3, 2, dtype=torch.int64),
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 8,
                **changes,
            }
        )


def test_learned_positions_need_no_multiple_of_four():
    coordinates = torch.tensor([[0, 0], [1, 0]])
    model = Transformer(19, coordinates, n_layer=1, n_head=2, n_embd=6, position="learned")
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 6)
