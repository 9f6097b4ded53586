"""Patches of image ids: the model over them is an exact model over single ids."""

import pytest
import torch
from helpers.models import randomise
from torch.nn import functional as F

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.patches import PatchTransformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import image_logits, likelihood_table, log_likelihood
from dalle_mini_impl.sampling.seeds import uniform_rows
from dalle_mini_impl.util.errors import UserError

GRID = (4, 6)
STREAM = StreamConfig(text_length=7, text_vocab=37, grid=GRID, image_vocab=11, patch=2)
CONFIG = TransformerConfig(n_layer=3, n_head=2, n_embd=24, patch=2, depth_layers=2)
T = 8 + 24
CAPTION = [5, 30, 17]
SETTINGS = SamplingConfig(temperature=0.9, top_k=7, guidance=2.5)


@pytest.fixture(params=["rope", "learned", "absolute"])
def model(request):
    config = TransformerConfig(n_layer=3, n_head=2, n_embd=24, patch=2, depth_layers=2, position=request.param)
    return randomise(build_transformer(config, STREAM), 3).double()


@pytest.fixture(scope="module")
def pair():
    return randomise(build_transformer(CONFIG, STREAM), 3), Stream(STREAM)


def random_stream(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stream = Stream(STREAM)
    ids = torch.randint(11, (batch, *GRID), generator=generator)
    return stream.join(stream.prefix([CAPTION] * batch), ids)


def reference_hidden(model: PatchTransformer, ids: torch.Tensor) -> torch.Tensor:
    """One stream, id by id: the backbone over all that is whole, then the depth transformer over the rest."""
    rows = []
    for t in range(len(ids)):
        text, image = ids[:8][: t + 1], ids[8 : t + 1]
        vectors = [model.embed.weight[i] for i in text]
        for patch in image[: len(image) // 4 * 4].view(-1, 4):
            vectors.append(model.merge.weight @ torch.cat([model.embed.weight[i] for i in patch]))
        x = torch.stack(vectors)[None]
        if model.positions is not None:
            for embedding, column in zip(model.positions, model.coordinates[: x.shape[1]].T, strict=True):
                x = x + embedding(column)
        table = None if model.table is None else model.table[: x.shape[1]]
        for block in model.blocks:
            x = block(x, table)
        hidden = model.norm(x)[0, -1]
        if t >= 7:
            depth = [model.depth.enter.weight @ hidden]
            depth += [model.embed.weight[i] for i in image[len(image) // 4 * 4 :]]
            y = (torch.stack(depth) + model.depth.positions.weight[: len(depth)])[None]
            for block in model.depth.blocks:
                y = block(y, None)
            hidden = model.depth.norm(y)[0, -1]
        rows.append(hidden)
    return torch.stack(rows)


def test_hidden_states_equal_the_reference(model):
    ids = random_stream()
    with torch.no_grad():
        hidden = model(ids)
        for row in range(3):
            torch.testing.assert_close(hidden[row], reference_hidden(model, ids[row]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [0, 6, 7, 8, 9, 10, 11, 12, 20, T - 2])
def test_no_id_depends_on_later_ones(model, t):
    ids = random_stream()
    changed = ids.clone()
    changed[:, t + 1] = (ids[:, t + 1] + 1) % model.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert bool((before[:, t + 1 :] != after[:, t + 1 :]).any(-1).all())


@pytest.mark.parametrize(
    "sizes",
    [[1] * T, [1, 2, 3, 5, 7, 5, 9], [8] + [1] * 24, [9, 2, 6, 15], [11, 21], [31, 1], [1, 31], [T], [8, 4, 4, 1, 15]],
    ids=lambda sizes: "-".join(map(str, sizes[:5])),
)
def test_cached_equals_uncached_at_every_id(model, sizes):
    ids = random_stream()
    cache = model.new_cache(3)
    pieces, start = [], 0
    with torch.no_grad():
        for size in sizes:
            pieces.append(model(ids[:, start : start + size], cache))
            start += size
            assert cache.length == start
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), atol=1e-12, rtol=0)


@pytest.mark.parametrize("start", [5, 8, 9, 11, 12, 14])
def test_rows_that_branch_off_continue_their_prompts(model, start):
    prompts, rest = random_stream(2), random_stream(6, seed=1)[:, start:]
    whole = torch.cat([prompts[:, :start].repeat_interleave(3, 0), rest], 1)
    kept = torch.tensor([2, 0, 5, 3])
    with torch.no_grad():
        cache = model.new_cache(2, start)
        model(prompts[:, :start], cache)
        branched = cache.branch(torch.tensor([0, 0, 0, 1, 1, 1]), T)
        first = model(rest[:, :2], branched)
        branched.keep(kept)
        second = model(rest[kept, 2:], branched)
        expected = model(whole)
    torch.testing.assert_close(first, expected[:, start : start + 2], atol=1e-12, rtol=0)
    torch.testing.assert_close(second, expected[kept, start + 2 :], atol=1e-12, rtol=0)


def test_likelihood_sums_to_one_and_is_that_of_sampling(pair):
    transformer, stream = pair
    drawn = generate(transformer, stream, Prompt(CAPTION), [3, 4, 5], SETTINGS, chunk=2)
    nats = log_likelihood(transformer, stream, CAPTION, drawn.image_ids)
    torch.testing.assert_close(nats.sum(1), drawn.log_likelihood, atol=1e-4, rtol=0)
    table = likelihood_table(transformer, stream, [CAPTION, [1]], drawn.image_ids)
    torch.testing.assert_close(table[:, 0], drawn.log_likelihood, atol=1e-4, rtol=0)
    every_last = drawn.image_ids[:1].repeat(11, 1, 1)
    every_last[:, -1, -1] = torch.arange(11)  # the last cell is the last of its patch
    last = log_likelihood(transformer, stream, CAPTION, every_last)[:, -1]
    assert float(last.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_blind_likelihood_scores_each_cell_at_its_place_in_the_stream(pair):
    transformer, stream = pair
    picture = torch.randint(11, GRID, generator=torch.Generator().manual_seed(2))
    hidden = torch.cat([stream.prefix([CAPTION]), torch.full((1, 23), STREAM.bos_id)], 1)
    with torch.no_grad():
        nats = transformer.logits(transformer(hidden)[:, 7:], stream.image_range).log_softmax(-1)[0]
    total, place = 0.0, 0
    for top in (0, 2):
        for left in (0, 2, 4):
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                total += float(nats[place, picture[row, column]])
                place += 1
    table = likelihood_table(transformer, stream, [CAPTION], picture[None], blind=True)
    assert float(table) == pytest.approx(total, abs=1e-4)


def test_sampling_takes_the_ids_of_a_patch_in_turn(pair):
    transformer, stream = pair
    greedy = SamplingConfig(temperature=0.0, guidance=1.0)
    ids = generate(transformer, stream, Prompt(CAPTION), [0], greedy).image_ids
    expected = torch.zeros(1, *GRID, dtype=torch.int64)
    for top in (0, 2):
        for left in (0, 2, 4):
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                logits = image_logits(transformer, stream, CAPTION, expected).unflatten(1, GRID)
                expected[0, row, column] = logits[0, row, column].argmax()
    assert torch.equal(ids, expected)


def test_known_ids_stay_and_a_candidate_depends_on_its_seed_alone(pair):
    transformer, stream = pair
    picture = torch.randint(11, GRID, generator=torch.Generator().manual_seed(1))
    redraw = torch.zeros(GRID, dtype=torch.bool)
    redraw[1:, 3:] = True
    known = KnownIds(picture, redraw)
    together = generate(transformer, stream, Prompt(CAPTION), [1, 2, 3], SETTINGS, known=known)
    assert torch.equal(together.image_ids[:, ~redraw], picture[~redraw].expand(3, -1))
    assert (together.image_ids[:, redraw] != picture[redraw]).any()
    alone = generate(transformer, stream, Prompt(CAPTION), [2], SETTINGS, known=known)
    assert torch.equal(alone.image_ids[0], together.image_ids[1])
    assert uniform_rows(2, stream.image_length, 2).shape == (2, 24)


def test_cells_in_the_order_of_the_stream():
    stream = Stream(STREAM)
    cells = torch.arange(24).view(GRID)
    assert stream.to_order(cells)[:8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert torch.equal(stream.to_grid(stream.to_order(cells)), cells)
    assert torch.equal(stream.to_grid(stream.to_order(cells)[:12]), cells[:2])
    assert torch.equal(stream.split(stream.join(stream.prefix([CAPTION]), cells[None] % 11))[1], cells[None] % 11)
    assert stream.coordinates()[8:].tolist() == [[8 + i, 8 + j] for i in range(2) for j in range(3)]
    assert stream.length == 32


def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model, stream = build_transformer(CONFIG, STREAM), Stream(STREAM)
    assert isinstance(model, PatchTransformer)
    ids = random_stream(4, seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(80):
        logits = model.logits(model(ids[:, :-1])[:, 7:], stream.image_range)
        loss = F.cross_entropy(logits.flatten(0, 1), (ids[:, 8:] - stream.image_offset).flatten())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(2.398, abs=0.01)  # ln 11
    assert loss.item() < 0.1


def test_what_does_not_fit_patches_is_refused():
    with pytest.raises(UserError, match="expected a grid of whole patches of 2 × 2 cells, got 3 × 6 cells"):
        Stream(StreamConfig(text_length=7, text_vocab=37, grid=(3, 6), image_vocab=11, patch=2))
    with pytest.raises(UserError, match="expected a stream with patch 1 as in the model, got 2"):
        build_transformer(TransformerConfig(n_layer=1, n_head=2, n_embd=24), STREAM)
    with pytest.raises(UserError, match="expected attention masks full with patches"):
        build_transformer(TransformerConfig(n_layer=1, n_head=2, n_embd=24, patch=2, attention_masks=("row",)), STREAM)
    with pytest.raises(UserError, match="expected patch 1 with blocks that only imported models have"):
        build_transformer(
            TransformerConfig(n_layer=1, n_head=2, n_embd=24, patch=2, block=BlockConfig(token_shift=True)), STREAM
        )


def test_every_weight_has_a_gradient_where_the_picture_is_one_patch():
    layout = StreamConfig(text_length=7, text_vocab=37, grid=(2, 2), image_vocab=11, patch=2)
    model = build_transformer(CONFIG, layout)
    stream = Stream(layout)
    ids = stream.join(stream.prefix([CAPTION]), torch.tensor([[[1, 2], [3, 4]]]))
    model(ids[:, :-1]).square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == ["head.weight"]
