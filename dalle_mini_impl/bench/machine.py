"""The machine's limits (roofline model, Williams et al. 2009): memory bandwidth and matrix throughput.

They are measured in the same run as everything that is compared with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dalle_mini_impl.bench.timing import median_seconds

COPY_BYTES = 256 * 2**20
"""Size of the copy: larger than any cache."""
SIDE = 2048
"""Side of the square matrices: large enough for full throughput."""


@dataclass(frozen=True)
class MachineSpeed:
    """Limits of a device."""

    device: str
    copy: float
    """Bytes read plus bytes written per second by a large memory copy."""
    flops: dict[str, float]
    """Floating-point operations per second of a large matrix product, by dtype: `bf16`, `fp32`."""

    def seconds(self, flops: float, bytes_moved: float, dtype: str) -> float:
        """Least time for work with so many operations and bytes.

        Args:
            flops: floating-point operations.
            bytes_moved: bytes read and written.
            dtype: `fp32`, `bf16` or `int8`, whose products are computed in bf16.
        """
        return max(flops / self.flops["bf16" if dtype == "int8" else dtype], bytes_moved / self.copy)


def measure_machine(device: str, repeats: int = 7) -> MachineSpeed:
    """Time a large copy and large matrix products; medians of `repeats` interleaved runs."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    squares = {
        name: torch.randn(SIDE, SIDE, device=device).to(dtype)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    runs: dict[str, Callable[[], Any]] = {"copy": partial(target.copy_, source)}
    runs |= {name: partial(torch.matmul, square, square) for name, square in squares.items()}
    seconds = median_seconds(runs, device, repeats, warm_up=1)
    flops = {name: 2 * SIDE**3 / seconds[name] for name in squares}
    return MachineSpeed(device, 2 * COPY_BYTES / seconds["copy"], flops)
