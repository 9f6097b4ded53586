"""Muon (Jordan 2024): the update of a hidden matrix is its momentum, made orthogonal by a Newton–Schulz iteration.

The iteration runs in bfloat16 on stacks of matrices of one shape. Its polynomials are multiplied up among the small
Gram matrices (columns × columns of a tall matrix, rows × rows of a wide one) and applied to the matrix itself once for
every two iterations, instead of twice in each.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.train.shared.fsdp import full_tensor, local_shard, shard_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial that one iteration applies to each singular value (Jordan 2024)."""
ROUNDS = 2
"""Rounds of two iterations. Jordan's five start from the Frobenius norm, far above the largest singular value; these
four start from a closer bound, which saves one."""
STACK_NUMBERS = 2**25
"""Largest number of weights whose updates are computed together; bounds the memory of a step."""
TINY = 1e-30
"""Smallest norm that is divided by."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Convolutions are trained as well, each as the matrix whose rows are its filters. Of matrices sharded by FSDP, every
    process computes the whole update and applies its part.

    Args:
        weights: (out, in), or (out, in, h, w) in either memory format. Their storage must not change afterwards: the
            matrices of convolutions are views of it.
        lr: learning rate; an update has singular values near `lr`, times √(out / in) for a tall matrix.
        momentum: decay of the mean gradient per step.
        weight_decay: share of the weights, times `lr`, that is subtracted per step.
        every: each matrix is changed in every `every`-th step, by `every` times as much; different matrices of one
            shape take turns.
    """

    def __init__(
        self, weights: list[nn.Parameter], lr: float, momentum: float, weight_decay: float, every: int = 1
    ) -> None:
        matrices = [
            nn.Parameter(as_matrix(weight.detach(), weight)) if weight.ndim == 4 else weight for weight in weights
        ]
        self.convolutions = [pair for pair in zip(matrices, weights, strict=True) if pair[1].ndim == 4]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "every": every, "turn": 0}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make a step with the gradients of the weights passed to the constructor.

        The step's number, which decides whose turn it is, is `turn` of the parameter group. It counts up by itself; a
        training loop may set it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for matrix, weight in self.convolutions:
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        for group in self.param_groups:
            trained = [matrix for matrix in group["params"] if matrix.grad is not None]
            for matrix in trained:
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            if trained:
                torch._foreach_lerp_(
                    [local_shard(self.state[matrix]["momentum_buffer"]) for matrix in trained],
                    [local_shard(matrix.grad) for matrix in trained],
                    1 - group["momentum"],
                )
            for matrices in stacks(trained, group["every"], group["turn"]):
                self._change(matrices, group)
            group["turn"] += 1
        return loss

    def _change(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Apply the updates of matrices of one shape."""
        rows, columns = matrices[0].shape
        updates = torch.empty(len(matrices), rows, columns, dtype=torch.bfloat16, device=matrices[0].device)
        for update, matrix in zip(updates, matrices, strict=True):
            assert matrix.grad is not None
            update.copy_(full_tensor(matrix.grad.lerp(self.state[matrix]["momentum_buffer"], group["momentum"])))
        rate = group["lr"] * group["every"]
        for update, matrix in zip(orthogonalise(updates), matrices, strict=True):
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(shard_like(update, matrix), alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients."""
        super().zero_grad(set_to_none)
        for _, weight in self.convolutions:
            weight.grad = None


def stacks(matrices: list[Tensor], every: int, turn: int) -> Iterator[list[Tensor]]:
    """The matrices whose turn it is, in lists of one shape and of up to `STACK_NUMBERS` weights.

    Args:
        matrices: all that are trained.
        every: of those of one shape, every how-maniest is taken.
        turn: number of the step.
    """
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    for shape, alike in by_shape.items():
        chosen = alike[turn % every :: every]
        size = max(1, STACK_NUMBERS // shape.numel())
        yield from (chosen[start : start + size] for start in range(0, len(chosen), size))


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1 (0.7 to 1.2) instead of their own.

    Singular values below about a hundredth of the largest come out smaller; zeros stay zeros.

    Args:
        x: (k, rows, columns) in bfloat16.

    Returns:
        As x.
    """
    a, b, c = COEFFICIENTS
    is_tall = x.shape[1] > x.shape[2]
    for number in range(ROUNDS):
        gram = x.mT @ x if is_tall else x @ x.mT
        if number == 0:
            norm = _norms(gram)
            gram = gram / norm
        square = gram @ gram
        if number == 0:  # the root of this norm is a close bound of the largest singular value of `gram`
            bound = _norms(square).sqrt()
            gram, square = gram / bound, square / bound / bound
            x = x / norm.sqrt() / bound.sqrt()
        # An iteration multiplies x by a + first, where first = b gram + c gram²; the next one likewise by a + second.
        first = gram.mul(b).add_(square, alpha=c)
        gram = torch.baddbmm(gram, first, gram, beta=a)
        gram = torch.baddbmm(gram, gram, first, beta=a)
        second = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        both = torch.baddbmm(first + second, second, first, beta=a)
        left, right = (x, both) if is_tall else (both, x)
        x = torch.baddbmm(x, left, right, beta=a * a)
    return x


def _norms(matrices: Tensor) -> Tensor:
    """Frobenius norms (k, 1, 1) of matrices (k, rows, columns), in their precision."""
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    return norms.clamp(min=TINY).to(matrices.dtype)


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """View a convolution's weight or gradient as a matrix, with columns in the memory order of the weight.

    Args:
        values: (out, in, h, w), the weight or its gradient.
        weight: (out, in, h, w), the weight.

    Returns:
        (out, in × h × w).
    """
    if weight.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
