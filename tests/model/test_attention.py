import math

import pytest
import torch
from helpers import reference
from helpers.models import randomise

from dalle_mini_impl.model.attention import Attention, attend, rms_norm, rotary_table, rotate
from dalle_mini_impl.model.kv_cache import KVCache

BASE = 100.0
COORDINATES = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3], [3, 4], [3, 5], [4, 3], [4, 4], [4, 5], [5, 3], [5, 4]])


def make(width=24, heads=2, seed=0):
    return randomise(Attention(width, heads), seed, scale=2.0).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[True, False], ids=["training", "inference"])
def grad(request):
    """Attention has another implementation with gradients; both must give the same."""
    with torch.set_grad_enabled(request.param):
        yield


# --- rotary positions


def test_the_rotary_table_has_one_angle_per_channel_pair():
    table = rotary_table(torch.tensor([[0, 0], [2, 5]]), 8, BASE)
    assert table.shape == (2, 2, 8)
    assert table[0].tolist() == [[1] * 8, [0] * 8]
    angles = [2.0, 2 / 10, 5.0, 5 / 10]
    cos, sin = ([f(angle) for angle in angles] for f in (math.cos, math.sin))
    assert table[1, 0].tolist() == pytest.approx(cos + cos, abs=1e-6)
    assert table[1, 1].tolist() == pytest.approx([-value for value in sin] + sin, abs=1e-6)


def test_rotate_equals_the_slow_reference():
    x = noise(2, 11, 3, 12)
    rotated = rotate(x, rotary_table(COORDINATES, 12, BASE))
    for b in range(2):
        for head in range(3):
            for t in range(11):
                expected = reference.rotated(x[b, t, head].tolist(), COORDINATES[t].tolist(), BASE)
                assert rotated[b, t, head].tolist() == pytest.approx(expected, abs=1e-5)


def test_rotation_preserves_lengths():
    x = noise(1, 11, 1, 12)
    rotated = rotate(x, rotary_table(COORDINATES, 12, BASE))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)


def test_scores_depend_on_the_offset_alone():
    q, k = noise(12, seed=1), noise(12, seed=2)

    def score(q_coordinates, k_coordinates):
        table = rotary_table(torch.tensor([q_coordinates, k_coordinates]), 12, BASE).double()
        rotated = rotate(torch.stack([q, k])[None], table)[0]
        return float(rotated[0] @ rotated[1])

    expected = score((4, 9), (2, 3))
    assert score((14, 29), (12, 23)) == pytest.approx(expected, abs=1e-5)
    assert score((2, 6), (0, 0)) == pytest.approx(expected, abs=1e-5)
    assert abs(score((9, 4), (3, 2)) - expected) > 0.01  # rows and columns have different channels
    assert abs(score((4, 9), (2, 4)) - expected) > 0.01
    assert abs(score((4, 9), (1, 3)) - expected) > 0.01


# --- attention


@pytest.mark.usefixtures("grad")
@pytest.mark.parametrize("rope", [True, False])
def test_attention_equals_the_slow_reference(rope):
    layer, x = make(), noise(3, 11, 24)
    table = rotary_table(COORDINATES, 12, BASE) if rope else None
    y = layer(x, table).detach()
    coordinates = COORDINATES.tolist() if rope else None
    for b in range(3):
        expected = torch.tensor(reference.attention(x[b].tolist(), layer, coordinates, BASE))
        torch.testing.assert_close(y[b].float(), expected, atol=2e-5, rtol=0)


def test_the_first_position_attends_to_itself_alone():
    layer, x = make(), noise(1, 5, 24)
    value = (x[0, 0] @ layer.qkv.weight.T)[48:]
    torch.testing.assert_close(layer(x, None)[0, 0], value @ layer.out.weight.T)


def test_attention_weights_do_not_depend_on_the_length_of_the_input():
    # Because of QK-norm.
    layer, x = make(), noise(1, 7, 24)
    torch.testing.assert_close(layer(1000 * x, None), 1000 * layer(x, None), atol=1e-3, rtol=1e-5)


@pytest.mark.usefixtures("grad")
@pytest.mark.parametrize("sizes", [[11], [1] * 11, [3, 5, 3], [10, 1], [1, 10], [2, 1, 4, 1, 3]])
@pytest.mark.parametrize("rope", [True, False])
def test_cached_pieces_equal_the_whole(sizes, rope):
    layer, x = make(), noise(3, 11, 24)
    table = rotary_table(COORDINATES, 12, BASE) if rope else None
    cache = KVCache(1, (3, 2, 11, 12), torch.device("cpu"), torch.float64)
    pieces, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        pieces.append(layer(x[:, part], None if table is None else table[part], cache, 0))
        start += size
        cache.length = start
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, table), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("grad")
def test_rms_norm_equals_the_slow_reference():
    x, weight = noise(3, 7), noise(7, seed=1)
    x[1] *= 1e-4  # so small that the epsilon counts
    expected = [reference.rms_norm(row.tolist(), weight.tolist()) for row in x]
    torch.testing.assert_close(rms_norm(x, weight), torch.tensor(expected, dtype=torch.float64))
    assert not rms_norm(torch.zeros(2, 7), weight).any()


@pytest.mark.usefixtures("grad")
def test_rms_norm_keeps_the_dtype_of_its_input():
    assert rms_norm(torch.ones(2, 7, dtype=torch.bfloat16), torch.ones(7)).dtype == torch.bfloat16


@pytest.mark.parametrize("allowed", [None, torch.ones(5, 7, dtype=torch.bool).tril(2)], ids=["all", "causal"])
def test_attend_equals_its_formula_and_has_its_gradients(allowed):
    q, k, v = (noise(2, 3, size, 4, seed=size + n).requires_grad_() for n, size in enumerate((5, 7, 7)))
    weight = noise(2, 3, 5, 4)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / 2
    if allowed is not None:
        scores = scores + torch.where(allowed, 0.0, -torch.inf)
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)
    result = attend(q, k, v, allowed)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(attend(q.detach(), k, v, allowed), expected)
    gradients = [torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (result, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
