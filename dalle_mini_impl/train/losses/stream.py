"""The loss of the transformer over a stream."""

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.train.losses.image_targets import soft_cross_entropy

Loss = TypeVar("Loss", float, Tensor)


class StreamLoss(nn.Module):
    """The transformer and its loss as one module, because DDP and FSDP hook into the forward pass of one module."""

    def __init__(self, transformer: Transformer, stream: Stream) -> None:
        super().__init__()
        self.transformer = transformer
        self.stream = stream

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        likely_ids: Tensor | None = None,
        probabilities: Tensor | None = None,
        image_embed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per text id and per image id, in nats.

        The softmax of a position is over the ids that may occur there: text ids and padding, or image ids. An
        image embedding and BOS are given, not predicted.

        Args:
            inputs: (B, T - 1) stream without its last id, possibly with corrupted or hidden image ids.
            targets: (B, T - 1) stream without its first id.
            likely_ids: (B, h × w, k) image ids of a soft target, which replaces the image part of `targets`.
            probabilities: (B, h × w, k) their probabilities, which sum to 1.
            image_embed: (B, D) see `Decoder.__call__`.

        Returns:
            The text loss and the image loss, both scalars.
        """
        hidden = self.transformer(inputs, None, image_embed)
        text_places = slice(max(0, self.stream.text_offset - 1), self.stream.prefix_length - 1)
        text = self.transformer.logits(hidden[:, text_places], self.stream.text_range)
        image = self.transformer.logits(hidden[:, text_places.stop :], self.stream.image_range)
        text_loss = F.cross_entropy(text.flatten(0, 1).float(), targets[:, text_places].flatten())
        if likely_ids is not None and probabilities is not None:
            soft_targets = (self._to_order(values) for values in (likely_ids, probabilities))
            return text_loss, soft_cross_entropy(image.float(), *soft_targets)
        image_targets = targets[:, text_places.stop :] - self.stream.image_offset
        return text_loss, F.cross_entropy(image.flatten(0, 1).float(), image_targets.flatten())

    def _to_order(self, values: Tensor) -> Tensor:
        """Values of cells in raster order (B, h × w, k) -> in the order of the stream."""
        grid = self.stream.config.grid
        return self.stream.to_order(values.transpose(1, 2).unflatten(2, grid)).transpose(1, 2)


def weighted_loss(text: Loss, image: Loss, image_weight: float) -> Loss:
    """Weighted mean of the text loss (weight 1) and the image loss (Ramesh et al. 2021, section 2.2)."""
    return (text + image_weight * image) / (1 + image_weight)
