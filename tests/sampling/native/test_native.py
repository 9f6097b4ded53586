"""The compiled code against matrix products and models in full precision."""

import copy

import pytest
import torch
from helpers.models import check_rows_and_threads, randomise

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.native.blocks import fits
from dalle_mini_impl.sampling.native.cache import LARGE_PAGE, zeros
from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias
from dalle_mini_impl.sampling.native.next_id import sample_top_k
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.util.errors import UserError

TWICE = torch.tensor([0, 0])
"""Two rows that continue the first one."""


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 13, 33])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bias", [None, noise(70, seed=2)])
def test_a_linear_layer_equals_the_product(machine, rows, int8, bias):
    weight, x = noise(70, 96), noise(rows, 96, seed=1)
    rounded = weight.bfloat16().double()
    if int8:
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded = (weight / scale).round().double() * scale.double()
    y = NativeLinear(machine, WeightAndBias(weight, bias), int8)(x.view(rows, 1, 96))
    assert y.shape == (rows, 1, 70)
    expected = x.bfloat16().double() @ rounded.T + (0 if bias is None else bias.double())
    torch.testing.assert_close(y[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


def models(width, heads, position="rope", precision="bf16"):
    layout = StreamConfig(text_length=7, text_vocab=313, grid=(5, 6), image_vocab=61, bos_id=1)
    config = TransformerConfig(n_layer=3, n_head=heads, n_embd=width, position=position)
    exact, stream = randomise(build_transformer(config, layout), 3), Stream(layout)
    return exact, pack(copy.deepcopy(exact), precision, stream.image_range), stream


def distance(x, y):
    """Root of the mean square difference, in standard deviations of y."""
    return float((x - y).square().mean().sqrt() / y.std())


# Head widths of fewer vectors than are added at a time, exactly as many, one more, and the most.
@pytest.mark.parametrize(("width", "heads"), [(32, 2), (64, 1), (160, 2), (256, 1)])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_every_position_is_close_to_full_precision(machine, width, heads, position):
    exact, native, stream = models(width, heads, position)
    ids = torch.randint(exact.vocab_size, (3, stream.length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, rounded, logits = (
            model.logits(model(ids), stream.image_range).float()
            for model in (exact, copy.deepcopy(exact).bfloat16(), native)
        )
    for position in range(stream.length):
        assert 0 < distance(logits[:, position], expected[:, position]) < 0.03
    assert distance(logits, expected) < distance(rounded, expected)


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 14])
def test_branches_of_a_prompt_equal_whole_streams(machine, prompts, count):
    _, native, stream = models(64, 2)
    ids = torch.randint(stream.vocab_size, (prompts, 9), generator=torch.Generator().manual_seed(0))
    ends = torch.randint(stream.vocab_size, (prompts * count, 26), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        cache = native.new_cache(prompts, 9)
        native(ids[:, :5], cache)
        native(ids[:, 5:], cache)
        more = cache.branch(torch.arange(prompts).repeat_interleave(count), stream.length)
        cached = torch.cat([native(ends[:, t : t + 1], more) for t in range(26)], 1)
        whole = native(torch.cat([ids.repeat_interleave(count, 0), ends], 1))[:, 9:]
    assert (cache.length, more.length) == (9, 35)
    # The only difference: one splits sums over keys at the end of the prompt
    assert distance(cached, whole) < 0.004


def test_a_row_does_not_depend_on_other_rows_or_threads(machine, threads):
    _, native, stream = models(96, 2)
    ids = torch.randint(stream.vocab_size, (29, stream.length), generator=torch.Generator().manual_seed(0))
    check_rows_and_threads(native, ids, threads)


def test_nothing_overflows(machine):
    # Scores of ± 1000 before the softmax, and gates far beyond the range of the exponential
    exact, native, stream = models(64, 1)
    with torch.no_grad():
        for block in exact.blocks:
            block.attention.q_norm.weight.fill_(1000)
            block.mlp.up.weight.mul_(1000)
    native = pack(copy.deepcopy(exact), "bf16", stream.image_range)
    with torch.inference_mode():
        assert bool(native(torch.arange(stream.length)[None]).isfinite().all())


def test_more_positions_than_the_capacity_are_refused(machine):
    _, native, stream = models(64, 2)
    cache = native.new_cache(1, 16).branch(TWICE, stream.length)
    native(torch.zeros(2, stream.length, dtype=torch.int64), cache)
    with pytest.raises(UserError, match="expected at most 0 more positions in this cache, got 1; make a longer"):
        native(torch.zeros(2, 1, dtype=torch.int64), cache)
    with pytest.raises(UserError, match="expected at most 16 more positions in this cache, got 17"):
        native(torch.zeros(1, 17, dtype=torch.int64), native.new_cache(1, 16))


def test_a_cache_with_another_number_of_rows_is_refused(machine):
    native = models(64, 2)[1]
    with pytest.raises(UserError, match="expected 8 rows, as the cache has, got 4; make a cache of 4 rows"):
        native(torch.zeros(4, 3, dtype=torch.int64), native.new_cache(8))


def test_a_branch_cannot_be_branched(machine):
    _, native, stream = models(64, 2)
    with pytest.raises(UserError, match="expected the cache of a prompt, got one that continues a prompt"):
        native.new_cache(1, 9).branch(TWICE, stream.length).branch(TWICE, stream.length)


def test_only_whole_vectors_and_small_heads_fit():
    assert fits(64, 4, 16)
    assert fits(512, 2, 256)
    assert fits(96, 1, 64)
    for width, heads, size in ((48, 1, 48), (64, 8, 8), (1024, 2, 512), (64, 3, 16), (64, 4, 24)):
        assert not fits(width, heads, size)


def test_shapes_that_do_not_fit_are_refused(machine):
    _, native, _stream = models(64, 2)
    other = models(96, 2)[1]
    with pytest.raises(ValueError, match=r"expected x of shape \(2, 3, 64\), got \(2, 3, 96\)"):
        native.blocks(torch.zeros(2, 3, 96))
    with pytest.raises(ValueError, match=r"expected a cache of .*, got one of"):
        native(torch.zeros(2, 3, dtype=torch.int64), other.new_cache(2))
    linear = NativeLinear(machine, WeightAndBias(noise(70, 96)))
    with pytest.raises(ValueError, match="expected vectors of width 96, got 80"):
        linear(noise(3, 80))
    with pytest.raises(ValueError, match="expected a width in multiples of 16, got 24"):
        NativeLinear(machine, WeightAndBias(noise(70, 24)))


def test_nothing_to_compute_is_nothing(machine):
    _, native, _ = models(64, 2)
    linear = NativeLinear(machine, WeightAndBias(noise(70, 96)))
    assert linear(torch.empty(0, 96)).shape == (0, 70)
    assert NativeLinear(machine, WeightAndBias(torch.empty(0, 96)))(noise(3, 96)).shape == (3, 0)
    assert native(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 64)
    assert native(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0, 64)


def test_rows_continue_any_prompts_and_are_dropped_one_by_one(machine):
    # Unequally many rows for each prompt, in any order, as where several prompts share a batch
    _, native, stream = models(64, 2)
    prompts = torch.randint(stream.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    ends = torch.randint(stream.vocab_size, (6, 26), generator=torch.Generator().manual_seed(1))
    rows, kept = torch.tensor([2, 0, 2, 1, 2, 0]), torch.tensor([5, 0, 1, 4])
    with torch.inference_mode():
        cache = native.new_cache(3, 9)
        native(prompts, cache)
        more = cache.branch(rows, stream.length)
        first = torch.cat([native(ends[:, t : t + 1], more) for t in range(11)], 1)
        more.keep(kept)
        second = torch.cat([native(ends[kept, t : t + 1], more) for t in range(11, 26)], 1)
        for row, prompt in enumerate(rows):  # the same bits as alone
            alone = native.new_cache(1, 9)
            native(prompts[prompt : prompt + 1], alone)
            own = alone.branch(torch.tensor([0]), stream.length)
            hidden = torch.cat([native(ends[row : row + 1, t : t + 1], own) for t in range(26)], 1)[0]
            assert torch.equal(first[row], hidden[:11])
            if row in kept:
                assert torch.equal(second[kept.tolist().index(row)], hidden[11:])


def test_rows_beyond_a_group_are_those_that_they_are_alone(machine):
    # More rows than go through a layer together, the last group smaller than the others
    _, native, stream = models(64, 2)
    prompts = torch.randint(stream.vocab_size, (67, 9), generator=torch.Generator().manual_seed(0))
    ends = torch.randint(stream.vocab_size, (67, 4), generator=torch.Generator().manual_seed(1))

    def run(rows):
        cache = native.new_cache(len(rows), 9)
        first = native(prompts[rows], cache)
        more = cache.branch(torch.arange(len(rows)), stream.length)
        return torch.cat([first, *(native(ends[rows, t : t + 1], more) for t in range(4))], 1)

    with torch.inference_mode():
        together = run(torch.arange(67))
        for row in (0, 21, 22, 23, 24, 45, 66):
            assert torch.equal(together[row], run(torch.tensor([row]))[0])


def test_large_memory_is_zero_and_begins_with_a_page():
    values = zeros(3, LARGE_PAGE)
    assert (values.shape, values.dtype) == ((3, LARGE_PAGE), torch.bfloat16)
    assert values.data_ptr() % LARGE_PAGE == 0
    assert not values.any()
    values[2, -1] = 1
    assert float(values.sum()) == 1
    assert zeros(2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_rows_of_no_prompt_are_refused(machine):
    _, native, stream = models(64, 2)
    for rows in ([0, 2], [-1]):
        with pytest.raises(ValueError, match=r"expected rows from 0 to 1, got \["):
            native.new_cache(2, 9).branch(torch.tensor(rows), stream.length)


# --- sampling


def sample(logits, uniform, temperature, top_k):
    """Compiled sampling with the same settings for all rows."""
    rows = len(logits)
    return sample_top_k(logits, uniform, torch.full((rows,), 1 / temperature), torch.full((rows,), top_k))


@pytest.mark.parametrize("top_k", [-(2**31), -1, 0, 38, 2**31 - 1])
def test_ids_are_in_range_whatever_the_settings_are(machine, top_k):
    logits = noise(29, 37).round()
    logits[::2, ::3] = float("nan")
    for uniform in (-1.0, 0.0, 1.0, 7.0, float("nan"), float("inf")):
        ids = sample(logits, torch.full((29,), uniform), 0.7, top_k)
        assert bool(((ids >= 0) & (ids < 37)).all())


def test_rows_without_ids_or_numbers_are_refused(machine):
    for logits, uniform in ((noise(3, 0), noise(3)), (noise(3, 5), noise(2)), (noise(3, 5), noise(3, 1))):
        with pytest.raises(ValueError, match=r"expected logits \(N, K\) with K at least 1, and N random numbers"):
            sample(logits, uniform, 1.0, 1)
    assert sample(noise(0, 5), noise(0), 1.0, 1).shape == (0,)


@pytest.mark.parametrize("top_k", [1, 7, 255, 1009])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_each_id_is_sampled_within_its_interval(machine, top_k, temperature):
    logits = (noise(61, 1009) * 3).round() / 4  # many are equal
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    weights = torch.zeros(61, 1009, dtype=torch.float64)
    weights.scatter_(1, order, (logits.double() / temperature).exp().gather(1, order))
    ends = weights.cumsum(1) / weights.sum(1, keepdim=True)
    expected_ids = order.gather(1, torch.arange(61)[:, None] * 37 % top_k)
    middle = (ends - weights / weights.sum(1, keepdim=True) / 2).gather(1, expected_ids)
    assert torch.equal(sample(logits, middle[:, 0], temperature, top_k), expected_ids[:, 0])


def test_bytes_of_a_branch_are_those_that_it_allocates(machine):
    _, native, stream = models(64, 2)
    prompt = native.new_cache(2, 9)
    native(torch.zeros(2, 9, dtype=torch.int64), prompt)
    branch = prompt.branch(torch.tensor([1, 0, 1, 1, 0]), stream.length)
    assert prompt.branch_bytes(5, stream.length) == branch._memory.nbytes + branch._channels.nbytes
