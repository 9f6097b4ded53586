"""Judges: what turns pictures into features, so that a drawing can be matched against real art.

Neither has seen any of the art before. One is EfficientNet-Lite0 (Tan & Le 2019, the Lite variant without
squeeze-and-excitation), trained on ImageNet, whose weights come in the `judge` extra. The other has no
weights at all and guards against trusting the first blindly: a small copy of the picture itself.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError, need_extra

Judge: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels (B, 3, H, W) in [-1, 1] -> features (B, D), which cosines compare once a bank has centred them."""

CHUNK = 64
INPUT_SIZE = 128
"""Side in pixels of what the network looks at. Trained at 224, it tells emoji apart nearly as well at 128,
at a third of the time."""
RAW_SIZE = 16

# Blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
