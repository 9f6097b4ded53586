"""The loss of the transformer over a stream, and what the transformer is told in training only."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.train.losses.image_targets import soft_cross_entropy

Loss = TypeVar("Loss", float, Tensor)


class StreamLoss(nn.Module):
    """The transformer and its loss as one module, because DDP and FSDP hook into the forward pass of one module.

    Two things can be told to the transformer by vectors that are added to what enters it: that a picture is an
    augmented variant, and which place of a picture comes next where that is not the next one of the stream. Without
    these vectors, as when it draws, a picture is not augmented and in the order of the stream. They are zero at first,
    and no part of the transformer.

    Args:
        transformer: what is trained.
        stream: its layout.
        tells_augmentation: whether there is a vector for augmented pictures.
        tells_order: whether there is a vector for each place.
    """

    def __init__(
        self, transformer: Transformer, stream: Stream, tells_augmentation: bool = False, tells_order: bool = False
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.stream = stream
        if tells_augmentation:
            self.augmented = nn.Parameter(torch.zeros(transformer.n_embd))
        if tells_order:
            self.next_place = nn.Parameter(torch.zeros(stream.places, transformer.n_embd))

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        likely_ids: Tensor | None = None,
        probabilities: Tensor | None = None,
        image_embed: Tensor | None = None,
        is_augmented: Tensor | None = None,
        order: Tensor | None = None,
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
            is_augmented: (B,) bool, whether each picture is an augmented variant; needs `tells_augmentation`.
            order: (places,) places of the picture in the order in which `inputs` and `targets` have them, if that is
                not the stream's; needs `tells_order`.

        Returns:
            The text loss and the image loss, both scalars.
        """
        hidden = self.transformer(inputs, None, image_embed, self._added(is_augmented, order), self._places(order))
        text_places = slice(max(0, self.stream.text_offset - 1), self.stream.prefix_length - 1)
        text = self.transformer.logits(hidden[:, text_places], self.stream.text_range)
        image = self.transformer.logits(hidden[:, text_places.stop :], self.stream.image_range)
        text_loss = F.cross_entropy(text.flatten(0, 1).float(), targets[:, text_places].flatten())
        if likely_ids is not None and probabilities is not None:
            soft_targets = (self._to_order(values, order) for values in (likely_ids, probabilities))
            return text_loss, soft_cross_entropy(image.float(), *soft_targets)
        image_targets = targets[:, text_places.stop :] - self.stream.image_offset
        return text_loss, F.cross_entropy(image.flatten(0, 1).float(), image_targets.flatten())

    def _added(self, is_augmented: Tensor | None, order: Tensor | None) -> Tensor | None:
        """What is added to the positions of the transformer, (B or 1, T, C); None for nothing."""
        length = self.stream.positions - 1  # nothing follows the last place
        added = None
        if is_augmented is not None:
            bos = max(0, self.stream.text_offset - 1)
            told = is_augmented[:, None, None] * self.augmented
            added = F.pad(told, (0, 0, bos, length - bos - 1))
        if order is not None:
            # The vectors belong to random orders: in the stream's own order the model draws without them.
            is_random = (order != torch.arange(len(order), device=order.device)).any()
            following = F.pad(is_random * self.next_place[order], (0, 0, self.stream.prefix_length - 1, 0))[None]
            added = following if added is None else added + following
        return added

    def _places(self, order: Tensor | None) -> Tensor | None:
        """Where in the stream the positions of the transformer stand, (T,); None if in its order."""
        if order is None:
            return None
        first = self.stream.prefix_length
        return torch.cat([torch.arange(first, device=order.device), first + order[:-1]])

    def _to_order(self, values: Tensor, order: Tensor | None) -> Tensor:
        """Values of cells in raster order (B, h × w, k) -> in the order of the stream, or of the places given."""
        ordered = self.stream.to_order(values.transpose(1, 2).unflatten(2, self.stream.config.grid))
        return (ordered if order is None else self.stream.reorder(ordered, order)).transpose(1, 2)


def weighted_loss(text: Loss, image: Loss, image_weight: float) -> Loss:
    """Weighted mean of the text loss (weight 1) and the image loss (Ramesh et al. 2021, section 2.2)."""
    return (text + image_weight * image) / (1 + image_weight)
