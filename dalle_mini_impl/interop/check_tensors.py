"""Compare the tensors of a file with those that a network needs."""

from collections.abc import Mapping

from dalle_mini_impl.checkpoint.check_weights import non_finite
from dalle_mini_impl.interop.read_weights import Weights, abbreviate
from dalle_mini_impl.util.errors import UserError


def check_tensors(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly the expected ones.

    Args:
        weights: the tensors of a file.
        expected: names and shapes.

    Raises:
        UserError: tensors are missing, unknown, of another shape, not floating-point or not finite; some are named.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    differences = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} is {shapes[name]}, expected {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    listed = [f"{len(names)} {kind} ({abbreviate(names)})" for kind, names in differences.items() if names]
    if listed:
        raise UserError(
            f"expected the {len(expected)} tensors of this format, got {weights.source} with {'; '.join(listed)}; "
            f"download the file again or import it as another format"
        )
    if integers := [name for name, tensor in weights.tensors.items() if not tensor.is_floating_point()]:
        raise UserError(
            f"expected floating-point tensors, got integers in {weights.source} ({abbreviate(integers)}); "
            f"import the weights as they were before they were quantized"
        )
    if broken := non_finite(weights.tensors):
        raise UserError(
            f"expected finite weights, got NaN or infinity in {weights.source} ({abbreviate(broken)}); "
            f"the file is damaged or its training diverged: take an earlier one"
        )


def weight_and_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weight and the bias of a linear layer (outputs, inputs) or of a norm (width,)."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
