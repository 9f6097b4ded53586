"""A transformer over patches of image ids: one position per patch, whose ids a small transformer predicts in turn.

The backbone sees text ids one by one and image ids a patch at a time, as one vector merged from their embeddings. For
each patch a depth transformer continues the backbone's hidden state by the ids of the patch, so the likelihood is exact
and each id depends on all before it, at a fraction of the backbone's positions (Lee et al. 2022, RQ-Transformer; Yu et
al. 2023, MEGABYTE). From outside it is a model over single ids, in the order of `Stream`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.model.attention import RMSNorm
from dalle_mini_impl.model.blocks import Block
from dalle_mini_impl.model.decoder import Cache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.model.transformer import Transformer, add_image_embed, add_positions


@dataclass(frozen=True)
class PatchLayout:
    """How ids fill positions of the backbone."""

    prefix_length: int
    """Ids before the picture, one position each: image embedding, BOS and text. All ids after them are image ids."""
    patch_length: int
    """Ids of a patch, which fill one position together."""

    def positions(self, ids: int) -> int:
        """Positions of the backbone that the first so many ids of a stream fill."""
        return min(ids, self.prefix_length) + max(0, ids - self.prefix_length) // self.patch_length


class PatchCache:
    """What is known of the positions decoded so far. Meets the protocol `decoder.Cache`.

    Args:
        backbone: keys and values of the text and of whole patches.
        layout: how ids fill the backbone's positions.
    """

    def __init__(self, backbone: Cache, layout: PatchLayout) -> None:
        self.backbone = backbone
        self.layout = layout
        self.length = 0
        """Ids decoded so far."""
        self.pending: Tensor | None = None
        """(B, n) ids of the patch that is not whole yet."""
        self.hidden: Tensor | None = None
        """(B, C), from which the depth transformer predicts that patch; None within the text."""
        self.depth: Any = None
        """What the depth transformer remembers of that patch, if it does; it begins anew after several ids at once
        and where rows branch off or are dropped."""

    def branch(self, rows: Tensor, capacity: int) -> "PatchCache":
        """As `Cache.branch`."""
        cache = PatchCache(self.backbone.branch(rows, self.layout.positions(capacity)), self.layout)
        cache.length = self.length
        for name in ("pending", "hidden"):
            values = getattr(self, name)
            setattr(cache, name, None if values is None else values.index_select(0, rows.to(values.device)))
        return cache

    def branch_bytes(self, count: int, capacity: int) -> int:
        """As `Cache.branch_bytes`."""
        return self.backbone.branch_bytes(count, self.layout.positions(capacity))

    def keep(self, rows: Tensor) -> None:
        """As `Cache.keep`."""
        self.backbone.keep(rows)
        self.depth = None
        self.pending = None if self.pending is None else self.pending[rows]
        self.hidden = None if self.hidden is None else self.hidden[rows]


def run_patches(
    ids: Tensor,
    cache: PatchCache | None,
    layout: PatchLayout,
    *,
    embed: Callable[[Tensor], Tensor],
    merge: Callable[[Tensor], Tensor],
    backbone: Callable[[Tensor, int], Tensor],
    depth: Callable[[Tensor, Tensor, PatchCache | None], Tensor],
) -> Tensor:
    """Hidden states of the next ids, by whatever code runs the two transformers.

    Args:
        ids: (B, T) stream ids, continuing those in the cache.
        cache: earlier ids; extended in place, except for the backbone's own cache.
        layout: how ids fill positions.
        embed: ids (B, …) -> (B, …, C).
        merge: embeddings of whole patches (B, P, n, C) -> (B, P, C).
        backbone: (B, P, C) and the first of these positions -> normalised hidden states (B, P, C).
        depth: hidden states (N, C) and the first ids (N, k) of their patches, k < n -> (N, k + 1, C), normalised. Given
            the cache as well, only the last of these, (N, 1, C), are needed.

    Returns:
        (B, T, C): at each id what predicts the next one.
    """
    B, T = ids.shape
    prefix_length, patch_length = layout.prefix_length, layout.patch_length
    start = cache.length if cache is not None else 0
    text = ids[:, : max(0, prefix_length - start)]
    image = ids[:, text.shape[1] :]
    current = None
    if cache is not None and cache.pending is not None:
        image, current = torch.cat([cache.pending, image], 1), cache.hidden
    whole = image.shape[1] // patch_length
    parts = [embed(text)] if text.shape[1] else []
    if whole or cache is None:  # all processes of a training wait for a gradient of every weight, be it of no patch
        parts.append(merge(embed(image[:, : whole * patch_length].unflatten(1, (whole, patch_length)))))
    hidden = backbone(torch.cat(parts, 1), layout.positions(start)) if parts else None
    begun = start + text.shape[1] >= prefix_length  # whether the last id of the text has been reached
    if not begun:
        assert hidden is not None
        result, pending, current = hidden, None, None
    else:
        # What predicts the patches: the last position of the text or that of the cache, then each whole patch.
        contexts = [] if current is None else [current[:, None]]
        if hidden is not None:
            contexts.append(hidden[:, max(0, text.shape[1] - 1) :])
        context = torch.cat(contexts, 1)
        # The image ids that are predicted here, counted from the first one of `image`.
        end = image.shape[1] + 1
        begin = end - (T - text.shape[1] + (text.shape[1] > 0))
        places = slice(begin // patch_length, whole + 1)
        given = _patches(image, places, patch_length)
        if places.stop - places.start == 1:  # of a single patch nothing after the last id is needed
            given = given[:, :, : image.shape[1] - whole * patch_length]
        single = end - begin == 1
        predicted = depth(context[:, places].flatten(0, 1), given.flatten(0, 1), cache if single else None)
        predicted = predicted.unflatten(0, (B, -1)).flatten(1, 2)
        last = predicted.shape[1] if single else end - places.start * patch_length
        result = predicted[:, last - (end - begin) : last]
        if text.shape[1] > 1:
            assert hidden is not None
            result = torch.cat([hidden[:, : text.shape[1] - 1], result], 1)
        pending, current = image[:, whole * patch_length :], context[:, -1]
    if cache is not None:
        cache.length += T
        cache.pending, cache.hidden = pending, current
        if T > 1:
            cache.depth = None  # it knows nothing of these ids
    return result


def _patches(image_ids: Tensor, places: slice, patch_length: int) -> Tensor:
    """All ids but the last of some patches (B, P, n - 1); zeros stand for ids that are not there yet."""
    missing = places.stop * patch_length - image_ids.shape[1]
    padded = torch.cat([image_ids, image_ids.new_zeros(len(image_ids), missing)], 1)
    return padded.unflatten(1, (-1, patch_length))[:, places, :-1]


class DepthTransformer(nn.Module):
    """Predicts the ids of a patch one after another, from the backbone's hidden state.

    Args:
        n_embd: C.
        patch_length: ids of a patch, n.
        blocks: blocks of width C without positions of their own.
        norm: the last norm.
    """

    def __init__(self, n_embd: int, patch_length: int, blocks: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Linear(n_embd, n_embd, bias=False)
        """Makes the first position of the backbone's hidden state."""
        self.positions = nn.Embedding(patch_length, n_embd)
        self.blocks = blocks
        self.norm = norm

    def embed(self, entered: Tensor, id_embed: Tensor, first: int = 0) -> Tensor:
        """What enters the blocks at the positions from `first` on.

        Args:
            entered: (N, C) from `enter`; used at position 0 only.
            id_embed: (N, k, C) embeddings of ids, which stand one position after their own.
            first: position of the first row of the result.

        Returns:
            (N, k + 1, C) with `first` 0, else (N, k, C).
        """
        x = id_embed.to(entered.dtype)
        if first == 0:
            x = torch.cat([entered[:, None], x], 1)
        return x + self.positions.weight[first : first + x.shape[1]].to(x.dtype)

    def forward(self, hidden: Tensor, id_embed: Tensor) -> Tensor:
        """Hidden states (N, k + 1, C), normalised, that predict the first ids of patches.

        Args:
            hidden: (N, C) of the backbone.
            id_embed: (N, k, C) embeddings of the first k ids.
        """
        x = self.embed(self.enter(hidden), id_embed)
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)


class PatchTransformer(Transformer):
    """A transformer over patches of image ids. Meets the protocol `decoder.Decoder`.

    Args:
        layout: how ids fill the backbone's positions.
        depth_layers: blocks of the depth transformer, which is as wide as the backbone.
        make_block: as for `Transformer`.
        make_norm: as for `Transformer`.
        **options: all others of `Transformer`; `coordinates` has a row per text id and per patch.
    """

    def __init__(
        self,
        *,
        layout: PatchLayout,
        depth_layers: int,
        make_block: Callable[[int, int, int, AttentionMask | None], nn.Module] = Block,
        make_norm: Callable[[int], nn.Module] = RMSNorm,
        **options: Any,
    ) -> None:
        super().__init__(make_block=make_block, make_norm=make_norm, **options)
        C = self.n_embd
        self.layout = layout
        self.merge = nn.Linear(layout.patch_length * C, C, bias=False)
        blocks = nn.ModuleList(make_block(C, self.n_head, self.head_dim, None) for _ in range(depth_layers))
        self.depth = DepthTransformer(C, layout.patch_length, blocks, make_norm(C))
        self._initialise()

    @torch.no_grad()
    def start_as_single_ids(self) -> None:
        """See a patch as the mean of its ids, and predict its first id as a transformer without patches would.

        For weights of such a transformer, which are to be trained on.
        """
        identity = torch.eye(self.n_embd)
        self.merge.weight.copy_(identity.repeat(1, self.layout.patch_length) / self.layout.patch_length)
        self.depth.enter.weight.copy_(identity)

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        image_embed: Tensor | None = None,
        added: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """As `Transformer.forward`, over single ids; `added` and `places` are for the positions of the backbone."""
        assert cache is None or isinstance(cache, PatchCache)
        return run_patches(
            ids,
            cache,
            self.layout,
            embed=self.embed,
            merge=lambda patches: self.merge(patches.flatten(-2)),
            backbone=lambda x, first: self._run_backbone(x, first, cache, image_embed, added, places),
            depth=lambda hidden, patch_ids, _: self.depth(hidden, self.embed(patch_ids)),
        )

    def new_cache(self, batch: int, capacity: int | None = None) -> PatchCache:  # type: ignore[override]
        """An empty cache for `batch` rows of up to `capacity` ids, by default the whole stream."""
        positions = self.max_length if capacity is None else self.layout.positions(capacity)
        return PatchCache(super().new_cache(batch, positions), self.layout)

    def _run_backbone(
        self,
        x: Tensor,
        first: int,
        cache: PatchCache | None,
        image_embed: Tensor | None,
        added: Tensor | None,
        places: Tensor | None,
    ) -> Tensor:
        end = first + x.shape[1]
        span = slice(first, end) if places is None else places
        x = add_positions(x, self.coordinates[span], self.positions)
        if image_embed is not None:
            x = add_image_embed(x, image_embed, self.image_prefix)
        if added is not None:
            x = x + added
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        keys = cache.backbone if cache is not None else None
        x = self.run_blocks(x, span, keys)
        if keys is not None:
            keys.length = end
        return self.norm(x)
