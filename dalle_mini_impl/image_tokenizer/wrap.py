"""Convolutions on a torus."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dalle_mini_impl.errors import UserError


@contextmanager
def wrapped(network: nn.Module) -> Iterator[None]:
    """While it lasts, every padded convolution of a network sees the opposite edge beyond each edge.

    Norms over all places and attention among them do not care where a place lies. So what the network makes of
    rolled input is its output, rolled.

    Raises:
        UserError: the network has transposed convolutions, which PyTorch cannot wrap.
    """
    if any(isinstance(layer, nn.ConvTranspose2d) for layer in network.modules()):
        raise UserError("tile was given to a decoder with transposed convolutions; use another image tokenizer")
    padded = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)]
    for layer in padded:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in padded:
            layer.padding_mode = "zeros"
