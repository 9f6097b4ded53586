import pytest
import torch
from helpers.models import make_transformer

from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask, mask_matrix

CPU = torch.device("cpu")
SHAPE = (2, 4, 7, 6)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled_cache(length=5):
    cache = KVCache(3, SHAPE, CPU, torch.float64)
    for layer in range(3):
        q, k, v = (noise(2, 4, length, 6, seed=10 * layer + n) for n in range(3))
        cache.attend(layer, q, k, v)
    cache.length = length
    return cache


def test_a_cache_is_allocated_once():
    cache = KVCache(3, SHAPE, CPU, torch.bfloat16)
    assert cache.keys.shape == cache.values.shape == (3, 2, 4, 7, 6)
    assert cache.keys.dtype == torch.bfloat16
    address = cache.keys.data_ptr()
    cache.attend(1, *[torch.ones(2, 4, 3, 6, dtype=torch.bfloat16)] * 3)
    assert cache.keys.data_ptr() == address
    assert cache.length == 0  # advanced by the model, after its last layer


def test_attend_writes_after_the_filled_positions_and_nowhere_else():
    cache = filled_cache()
    before = cache.keys.clone(), cache.values.clone()
    one = torch.ones(2, 4, 1, 6, dtype=torch.float64)
    cache.attend(1, one, 3 * one, 5 * one)
    assert bool((cache.keys[1, :, :, 5] == 3).all())
    assert bool((cache.values[1, :, :, 5] == 5).all())
    for now, then in zip((cache.keys, cache.values), before, strict=True):
        assert torch.equal(now[1, :, :, :5], then[1, :, :, :5])
        assert torch.equal(now[[0, 2]], then[[0, 2]])
        assert not now[1, :, :, 6:].any()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_branches_of_a_prompt_equal_whole_streams(count, prompts, position):
    # One prompt, or two as with guidance, and several continuations of each
    model = make_transformer(position)[0].double()
    ids = torch.randint(model.vocab_size, (prompts, 8), generator=torch.Generator().manual_seed(0))
    ends = torch.randint(model.vocab_size, (prompts * count, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = model.new_cache(prompts, 8)
        model(ids, cache)
        more = cache.branch(torch.arange(prompts).repeat_interleave(count), model.max_length)
        cached = torch.cat([model(ends[:, t : t + 1], more) for t in range(15)], 1)
        whole = model(torch.cat([ids.repeat_interleave(count, 0), ends], 1))[:, 8:]
    assert more.length == 23
    torch.testing.assert_close(cached, whole, atol=1e-12, rtol=0)


def test_branches_do_not_share_memory():
    cache = filled_cache()
    before = cache.keys.clone()
    first, second = (cache.branch(torch.tensor([0, 0, 1, 1]), 7) for _ in range(2))
    q, k, v = (noise(4, 4, 1, 6, seed=n) for n in range(3))
    once = first.attend(0, q, k, v)
    first.length += 1
    first.attend(0, q, 9 * k, 9 * v)
    assert torch.equal(second.attend(0, q, k, v), once)
    assert torch.equal(cache.keys, before)
    assert cache.length == 5


def test_kept_rows_continue_as_before():
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    cache = filled_cache().branch(rows, 7)
    few = filled_cache().branch(rows, 7)
    few.keep(torch.tensor([0, 2, 3, 5]))
    q, k, v = (noise(6, 4, 1, 6, seed=n) for n in range(3))
    kept = [0, 2, 3, 5]
    assert torch.equal(few.attend(1, q[kept], k[kept], v[kept]), cache.attend(1, q, k, v)[kept])
    assert few.length == 5


def test_a_single_position_reads_only_what_its_mask_allows():
    cache, mask = filled_cache(), AttentionMask(mask_matrix("column", 2, (2, 3)))
    cache.keys[:, :, :, 3:5], cache.values[:, :, :, 3:5] = torch.nan, torch.nan
    q, k, v = (noise(2, 4, 1, 6, seed=n) for n in range(3))
    attended = [0, 1, 2]  # text and the cell above; position 5 is the query's own
    keys, values = (torch.cat([part[0][:, :, attended], new], 2) for part, new in ((cache.keys, k), (cache.values, v)))
    expected = torch.softmax(q @ keys.transpose(2, 3) * 6**-0.5, -1) @ values
    torch.testing.assert_close(cache.attend(0, q, k, v, mask), expected)


def test_bytes_of_a_branch_are_those_that_it_allocates():
    cache = KVCache(3, SHAPE, CPU, torch.bfloat16)
    branch = cache.branch(torch.tensor([1, 0, 1, 1, 0]), 11)
    assert cache.branch_bytes(5, 11) == branch.keys.nbytes + branch.values.nbytes
