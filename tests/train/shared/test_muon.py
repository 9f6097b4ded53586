import pytest
import torch
from torch import nn

from dalle_mini_impl.train.shared import muon
from dalle_mini_impl.train.shared.muon import Muon, orthogonalise, stacks


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_values(rows, columns, values, seed=0):
    """A matrix with given singular values."""
    left, _ = torch.linalg.qr(noise(rows, len(values), seed=seed))
    right, _ = torch.linalg.qr(noise(columns, len(values), seed=seed + 1))
    return left * values @ right.T


def jordan(matrix, iterations=5):
    """The iteration of Jordan (2024), in double precision."""
    a, b, c = muon.COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


# --- orthogonal matrices


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (96, 48), (48, 160), (1, 7), (7, 1)])
def test_singular_values_come_near_one_and_vectors_stay(rows, columns):
    values = torch.logspace(0, -1.5, min(rows, columns))
    matrix = with_values(rows, columns, values)
    result = orthogonalise(matrix.bfloat16()[None])[0].float()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ result @ right.T
    assert ((turned.diag() > 0.6) & (turned.diag() < 1.25)).all()
    assert (turned - turned.diag().diag()).norm() < 0.1 * turned.diag().norm()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_the_scale_of_a_matrix_does_not_matter(scale):
    matrix = noise(24, 40)
    torch.testing.assert_close(
        orthogonalise((scale * matrix).bfloat16()[None]), orthogonalise(matrix.bfloat16()[None]), atol=0.1, rtol=0
    )


def test_each_matrix_of_a_stack_is_treated_by_itself():
    stack = torch.stack([noise(24, 40, seed=seed) * 10.0**seed for seed in range(3)]).bfloat16()
    for matrix, result in zip(stack, orthogonalise(stack), strict=True):
        torch.testing.assert_close(orthogonalise(matrix[None])[0], result, atol=0.05, rtol=0)


def test_zeros_stay_zeros():
    assert not orthogonalise(torch.zeros(2, 5, 3, dtype=torch.bfloat16)).any()


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0])
def test_four_iterations_from_a_close_bound_go_as_far_as_jordans_five(decay):
    # The least singular value is what takes longest.
    matrix = with_values(64, 96, torch.logspace(0, -decay, 64))
    least = torch.linalg.svdvals(orthogonalise(matrix.bfloat16()[None])[0].float()).min()
    assert least > 0.9 * torch.linalg.svdvals(jordan(matrix)).min()


# --- steps


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_step_by_hand(shape):
    weight = nn.Parameter(noise(*shape))
    start, momentum = weight.detach().clone(), torch.zeros(shape)
    optimizer = Muon([weight], lr=0.3, momentum=0.9, weight_decay=0.2)
    for seed in range(3):
        gradient = noise(*shape, seed=seed + 5)
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalise((0.1 * gradient + 0.9 * momentum).bfloat16()[None])[0].float()
        start = start * (1 - 0.3 * 0.2) - 0.3 * max(1, shape[0] / shape[1]) ** 0.5 * update
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), start, atol=0.02, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_updated_as_the_matrix_of_its_filters(layout):
    convolution = nn.Conv2d(6, 5, 3).to(memory_format=layout)  # type: ignore[call-overload]
    start = convolution.weight.detach().flatten(1).clone()
    matrix = nn.Parameter(start.clone())
    ours = Muon([convolution.weight], 0.3, 0.95, 0.2)
    theirs = Muon([matrix], 0.3, 0.95, 0.2)
    for seed in range(3):
        gradient = noise(5, 6, 3, 3, seed=seed)
        convolution.weight.grad, matrix.grad = gradient.to(memory_format=layout), gradient.flatten(1)
        for optimizer in (ours, theirs):
            optimizer.step()
    torch.testing.assert_close(convolution.weight.flatten(1), matrix, rtol=0.02, atol=0.02)  # bf16 inside
    assert (matrix - start).abs().mean() > 0.05
    ours.zero_grad()
    assert convolution.weight.grad is None
    before = convolution.weight.clone()
    ours.step()
    assert torch.equal(convolution.weight, before)


def test_matrices_of_one_shape_take_turns():
    wide, tall = [torch.zeros(2, 3) for _ in range(5)], [torch.zeros(3, 2) for _ in range(2)]
    numbers = {id(matrix): name for name, matrix in enumerate((*wide, *tall))}
    found = [[[numbers[id(m)] for m in stack] for stack in stacks([*wide, *tall], 2, turn)] for turn in (0, 1, 2)]
    assert found == [[[0, 2, 4], [5]], [[1, 3], [6]], [[0, 2, 4], [5]]]


def test_large_stacks_are_divided(monkeypatch):
    monkeypatch.setattr(muon, "STACK_NUMBERS", 13)
    found = [len(stack) for stack in stacks([torch.zeros(2, 3) for _ in range(5)] + [torch.zeros(4, 4)], 1, 0)]
    assert found == [2, 2, 1, 1]


def test_a_matrix_that_waits_gets_the_change_of_both_steps():
    gradients = [noise(8, 6, seed=seed) for seed in range(2)]
    moved = []
    for every in (1, 2):
        weights = [nn.Parameter(noise(8, 6, seed=9)) for _ in range(2)]
        optimizer = Muon(weights, 0.1, 0.9, 0.5, every)
        for gradient in gradients:
            for weight in weights:
                weight.grad = gradient.clone()
            optimizer.step()
        moved.append([(weight.detach() - noise(8, 6, seed=9)).norm() for weight in weights])
    torch.testing.assert_close(moved[1], moved[0], rtol=0.2, atol=0)
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    for momentum in momenta:  # gradients count in every step
        torch.testing.assert_close(momentum, 0.1 * (0.9 * gradients[0] + gradients[1]))
