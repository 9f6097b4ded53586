"""The loss of the transformer over a stream."""

from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.train.losses.image_targets import soft_cross_entropy


class StreamLoss(nn.Module):
    """The transformer with its loss, as one module, so that distributed training sees a single forward."""

    def __init__(self, transformer: Transformer, stream: Stream) -> None:
        super().__init__()
        self.transformer, self.stream = transformer, stream

    def forward(
        self, inputs: Tensor, targets: Tensor, likely_ids: Tensor | None = None, shares: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean nats per text id and per image id.

        Each position is scored among the ids that may stand there: text and padding, or image ids.

        Args:
            inputs: (B, T - 1) stream without its last id, possibly corrupted.
            targets: (B, T - 1) stream without its first id.
            likely_ids: (B, h × w, k) image ids of which any may be right; the targets' then do not count.
            shares: (B, h × w, k) their probabilities, which sum to 1.
        """
        hidden, length = self.transformer(inputs), self.stream.prefix_length - 1
        text = self.transformer.logits(hidden[:, :length], self.stream.text_range)
        image = self.transformer.logits(hidden[:, length:], self.stream.image_range)
        text_loss = F.cross_entropy(text.flatten(0, 1).float(), targets[:, :length].flatten())
        if likely_ids is not None and shares is not None:
            return text_loss, soft_cross_entropy(image.float(), likely_ids, shares)
        image_targets = targets[:, length:] - self.stream.image_offset
        return text_loss, F.cross_entropy(image.flatten(0, 1).float(), image_targets.flatten())
