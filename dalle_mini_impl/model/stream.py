"""Text and picture as one stream of ids: `[BOS][text][image]`. Pure arithmetic, no weights.

One id space holds V text ids, one padding id for each of the L text positions, and K image ids:

    0 … V-1        text ids
    V … V+L-1      padding of text position 0 … L-1 (attended to, and part of the loss, as in DALL-E 1)
    V+L … V+L+K-1  image ids

A model that can be told what to draw by an image embedding has E positions for it before BOS. Their ids, one for each
after the image ids, stand for "no embedding"; an embedding is added to theirs (`image_prefix.py`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.util.errors import UserError

INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
"""Types of tensors that can hold ids."""


def check_ids(ids: Tensor, vocab: int, kind: str) -> Tensor:
    """Refuse ids outside of [0, vocab), and tensors that are no ids.

    Args:
        ids: integers of any type and shape; empty ones are accepted.
        vocab: number of ids of this kind.
        kind: `image` or `text`, for the message.

    Returns:
        The ids as int64: torch looks up no rows by some integer types, and takes uint8 for a mask.

    Raises:
        UserError: they are no integers, or one is out of range; naming the smallest and the largest one.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in INTEGERS:
        got = f"a tensor of type {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise UserError(f"expected a tensor of integer {kind} ids, got {got}; convert it, such as with .long()")
    ids = ids.long()
    if ids.numel():
        low, high = torch.stack(ids.aminmax()).tolist()  # one look, because each waits for the device
        if not 0 <= low <= high < vocab:
            raise UserError(
                f"expected {kind} ids from 0 to {vocab - 1}, got ids from {low} to {high}; "
                f"encode with this model's own {kind} tokenizer"
            )
    return ids


class Stream:
    """The layout of one stream. The module describes its id space.

    Args:
        config: lengths and vocabulary sizes.

    Raises:
        UserError: a size is not positive, BOS or padding is no text id, or an image embedding has positions but no
            width.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        h, w = config.grid
        if min(config.text_length, config.text_vocab, config.image_vocab, h, w) < 1:
            raise UserError(
                f"expected a stream whose lengths and numbers of ids are 1 or more, got {config}; change them"
            )
        if max(config.bos_id, config.pad_id) >= config.text_vocab:
            raise UserError(
                f"expected bos_id and pad_id below the {config.text_vocab} text ids, got {config.bos_id} and "
                f"{config.pad_id}; change them"
            )
        if h % config.patch or w % config.patch:
            raise UserError(
                f"expected a grid of whole patches of {config.patch} × {config.patch} cells, got {h} × {w} cells; "
                f"change patch, or the size of the pictures"
            )
        if not 0 <= config.embed_positions <= config.embed_positions * config.embed_dim:
            raise UserError(
                f"expected an image embedding with a width in 0 or more positions, got embed_dim {config.embed_dim} "
                f"and embed_positions {config.embed_positions}; change them"
            )
        self.image_length = h * w
        self.patch_length = config.patch**2
        """Ids of a patch."""
        self.image_offset = config.text_vocab + config.text_length
        self.embed_offset = self.image_offset + config.image_vocab
        """The first id of those that stand for "no image embedding"."""
        self.vocab_size = self.embed_offset + config.embed_positions
        self.text_offset = config.embed_positions + (config.bos_id >= 0)
        """Positions before the caption."""
        self.prefix_length = self.text_offset + config.text_length
        """Positions before the picture."""
        self.length = self.prefix_length + self.image_length
        self.places = self.image_length // self.patch_length
        """Places of a picture: its patches, each of which is one position of the transformer."""
        self.positions = self.prefix_length + self.places
        """Positions of the transformer: one for each text id and each patch."""
        self.text_range = (0, self.image_offset)
        """Ids allowed at text positions: text and padding."""
        self.image_range = (self.image_offset, self.embed_offset)
        """Ids allowed at image positions."""

    def prefix(self, captions: Sequence[Sequence[int]]) -> Tensor:
        """What stands before the picture: no image embedding, BOS and padded captions.

        Args:
            captions: text ids of each caption, each at most `text_length` long; an empty one is "no caption".

        Returns:
            (B, prefix_length) stream ids.

        Raises:
            UserError: a caption is too long, or an id is not a text id.
        """
        length, vocab = self.config.text_length, self.config.text_vocab
        text_ids = torch.tensor([text_id for caption in captions for text_id in caption], dtype=torch.int64)
        check_ids(text_ids, vocab, "text")
        lengths = torch.tensor([len(caption) for caption in captions])
        if (longest := max(map(len, captions), default=0)) > length:
            raise UserError(f"expected captions of up to {length} text ids, got {longest}; shorten the caption")
        rows = torch.arange(vocab, vocab + length).repeat(len(captions), 1)
        # Unlike an assignment to the places, this has shapes that follow from shapes, which `dalle plan` needs.
        filled = rows.masked_scatter(torch.arange(length) < lengths[:, None], text_ids)
        rows = torch.where(filled == self.config.pad_id, rows, filled)
        embed_ids = torch.arange(self.embed_offset, self.vocab_size)
        bos = torch.full((self.text_offset - len(embed_ids),), self.config.bos_id)
        return torch.cat([torch.cat([embed_ids, bos]).expand(len(captions), -1), rows], 1)

    def check_takes_embeddings(self) -> None:
        """Refuse a stream without positions for an image embedding.

        Raises:
            UserError: it has none.
        """
        if not self.config.embed_positions:
            raise UserError(
                "expected a model with positions for an image embedding, got one without; leave the embedding out, or "
                "train a model with image_embed.positions"
            )

    def embeddings(self, rows: Sequence[Sequence[float]]) -> Tensor | None:
        """Image embeddings as the transformer takes them.

        Args:
            rows: B embeddings of any length but 0; an empty one is "no embedding".

        Returns:
            (B, D), each of length 1, or zeros for no embedding; None if there is none in any row.

        Raises:
            UserError: the stream has no positions for them, or one has another width, is zero or is not finite.
        """
        if not any(map(len, rows)):
            return None
        self.check_takes_embeddings()
        return unit_embeddings(rows, self.config.embed_dim)

    def join(self, prefix: Tensor, image_ids: Tensor) -> Tensor:
        """Concatenate prefix (B, prefix_length) and image ids (B, h, w) in [0, K) into the stream (B, T)."""
        return torch.cat([prefix, self.to_order(image_ids) + self.image_offset], 1)

    def to_order(self, cells: Tensor) -> Tensor:
        """Values of cells (…, h, w) -> (…, h * w) in the order of the stream."""
        patch = self.config.patch
        return cells.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).transpose(-3, -2).flatten(-4)

    def reorder(self, values: Tensor, places: Tensor) -> Tensor:
        """Values of all cells in the order of the stream (…, n) -> in that of `places` (n / patch_length,)."""
        return values.unflatten(-1, (-1, self.patch_length))[..., places, :].flatten(-2)

    def to_grid(self, values: Tensor) -> Tensor:
        """Values in the order of the stream (…, n), of as many whole rows of patches -> (…, n / w, w)."""
        width, patch = self.config.grid[1], self.config.patch
        patches = values.unflatten(-1, (-1, width // patch, patch, patch))
        return patches.transpose(-3, -2).flatten(-2).flatten(-3, -2)

    def split(self, ids: Tensor) -> tuple[list[list[int]], Tensor]:
        """Split the stream (B, T) into captions without padding and image ids (B, h, w); the inverse of `join`."""
        text = ids[:, self.text_offset : self.prefix_length]
        captions = [[int(i) for i in row if i < self.config.text_vocab] for row in text]
        image_ids = ids[:, self.prefix_length :] - self.image_offset
        return captions, self.to_grid(image_ids)

    def coordinates(self) -> Tensor:
        """Plane coordinates of each position of the transformer, (positions, 2) integers, for position embeddings.

        Text position t has (t, t), which makes two-dimensional rotary embedding one-dimensional there. With n positions
        for BOS and text, the image id, or the patch of image ids, in row i and column j has (n + i, n + j). The E
        positions of an image embedding have negative coordinates, so that all others are the same with and without it.
        """
        h, w = (side // self.config.patch for side in self.config.grid)
        text_end = self.prefix_length - self.config.embed_positions
        text = torch.arange(-self.config.embed_positions, text_end)[:, None].expand(-1, 2)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        image = torch.stack([rows.flatten(), columns.flatten()], 1) + text_end
        return torch.cat([text, image])


def unit_embeddings(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """Image embeddings of any length but 0 as a tensor (B, width), each of length 1; zeros for an empty one.

    Raises:
        UserError: one has another width, is zero or is not finite.
    """
    embeds = []
    for row in rows:
        if len(row) not in (0, width):
            raise UserError(
                f"expected an image embedding of {width} numbers, as the scorer makes that this model was trained "
                f"with, got {len(row)}; use that scorer"
            )
        length = math.hypot(*row)
        if len(row) and not 0 < length < math.inf:
            raise UserError(
                "expected an image embedding of finite numbers that are not all 0, got another; embed the picture again"
            )
        embeds.append([number / length for number in row] or [0.0] * width)
    return torch.tensor(embeds)
