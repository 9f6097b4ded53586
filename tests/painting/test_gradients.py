import torch
from torch.nn import functional as F

from dalle_mini_impl.painting.gradients import (
    clamp_with_inward_gradient,
    half_squared_angle,
    nearest_ids,
    stop_gradient_below,
    straight_through,
)


def unit_vectors(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def test_half_squared_angle_equals_that_of_the_arc_cosine():
    a = unit_vectors(97, 13)
    b = unit_vectors(97, 13, seed=1)
    angle = (a * b).sum(-1).acos()
    torch.testing.assert_close(half_squared_angle(a, b), angle**2 / 2)
    torch.testing.assert_close(half_squared_angle(a, b), 2 * ((a - b).norm(dim=-1) / 2).arcsin() ** 2)
    assert half_squared_angle(a, a).max() == 0


def test_half_squared_angle_has_a_finite_gradient_for_equal_and_opposite_vectors():
    for sign in (1, -1):
        a = unit_vectors(3, 13).requires_grad_()
        half_squared_angle(a, sign * a.detach()).sum().backward()
        assert a.grad.isfinite().all()


def test_straight_through_quantizes_to_the_nearest_vectors_and_passes_gradients_unchanged():
    table = torch.randn(61, 5, generator=torch.Generator().manual_seed(0))
    z = torch.randn(1, 5, 3, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids = nearest_ids(z, table)
    expected = [[int(((table - z[0, :, y, x]) ** 2).sum(1).argmin()) for x in range(7)] for y in range(3)]
    assert ids[0].tolist() == expected
    quantized = straight_through(z, table)
    torch.testing.assert_close(quantized[0, :, 2, 5], table[ids[0, 2, 5]])
    gradient = torch.randn(1, 5, 3, 7)
    (quantized * gradient).sum().backward()
    assert torch.equal(z.grad, gradient)


def test_clamp_blocks_only_gradients_that_move_values_further_out():
    x = torch.tensor([-3.0, -3.0, 0.5, 0.5, 3.0, 3.0], requires_grad=True)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent moves the other way
    clamped = clamp_with_inward_gradient(x, -1, 1)
    assert clamped.tolist() == [-1, -1, 0.5, 0.5, 1, 1]
    (clamped * gradient).sum().backward()
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_distances_below_the_threshold_have_no_gradient():
    distance = torch.tensor([0.1, 0.5], requires_grad=True)
    stopped = stop_gradient_below(distance, torch.tensor(0.3))
    torch.testing.assert_close(stopped, distance)
    stopped.sum().backward()
    assert distance.grad.tolist() == [0, 1]
