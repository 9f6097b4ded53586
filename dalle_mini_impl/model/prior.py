"""Priors: a caption -> an image embedding of a scorer (Ramesh et al. 2022, DALL-E 2, section 2.2).

The diffusion prior has the shape of the PriorTransformer of `diffusers`, so that weights can be exchanged with it.
Neither prior needs that library; only samplers other than DDIM do.
"""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.clip import ClipBlock, PastKeys, initialise
from dalle_mini_impl.util.errors import UserError

COMPONENT_SIZE = 17.2 / 32
"""Root mean square of a scaled embedding's components. The paper scales embeddings of norm 1 and 1,024 components by
17.2, so that they vary as much as pixels in [-1, 1], for which the noise schedule was made."""
ADDED = 4
"""Positions after the caption in a diffusion prior: text embedding, time, noised embedding, query."""


class Past:
    """Keys and values of the positions that `CausalBlocks` has computed, so that the next ones need no others.

    Args:
        n_layer: number of blocks.
    """

    def __init__(self, n_layer: int) -> None:
        self.length = 0
        """Positions computed, those of the caption included."""
        self.blocks = [PastKeys() for _ in range(n_layer)]

    def copy(self) -> "Past":
        """One that can be extended without this one."""
        other = Past(0)
        other.length, other.blocks = self.length, [copy.copy(block) for block in self.blocks]
        return other


class CausalBlocks(nn.Module):
    """Causal transformer over a caption, whose padding is not attended to, and further positions.

    Args:
        text_length: L, positions of the caption.
        added: further positions at most.
        n_layer: number of blocks.
        n_head: attention heads per block.
        n_embd: C, width.

    Raises:
        UserError: `n_embd` is odd, or not a multiple of `n_head`.
    """

    def __init__(self, *, text_length: int, added: int, n_layer: int, n_head: int, n_embd: int) -> None:
        super().__init__()
        if n_embd % n_head or n_embd % 2:
            raise UserError(f"expected an even n_embd that is a multiple of n_head {n_head}, got {n_embd}; change one")
        self.text_length = text_length
        self.positions = nn.Parameter(torch.randn(text_length + added, n_embd) * 0.01)
        self.blocks = nn.ModuleList(ClipBlock(n_embd, n_head) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        initialise(self, n_layer)

    def forward(self, text: Tensor, is_text: Tensor, others: Tensor, past: Past | None = None) -> Tensor:
        """Run all positions, or with `past` those that are not in it, which are added to it.

        Args:
            text: (B, n, C) of the caption, n up to L.
            is_text: (B, n) bool, False at padding.
            others: (B, m, C) of the further positions.
            past: of the same caption, and of the first of these positions.

        Returns:
            (B, m, C), normalised outputs at the further positions; with `past` at those that are run.
        """
        count, added = text.shape[1], others.shape[1]
        places = torch.cat([self.positions[:count], self.positions[self.text_length : self.text_length + added]])
        x = torch.cat([text, others], 1) + places
        itself = torch.eye(count + added, dtype=torch.bool, device=x.device)
        causal = torch.ones_like(itself).tril()
        # Each position attends to itself, also at padding: a row without any would be no number.
        allowed = causal & F.pad(is_text, (0, added), value=True)[:, None] | itself
        done = past.length if past else 0
        x, allowed = x[:, done:], allowed[:, done:]
        for number, block in enumerate(self.blocks):
            x = block(x, allowed, past.blocks[number] if past else None)
        if past:
            past.length = count + added
        return self.norm(x[:, max(count - done, 0) :])


class DiffusionPrior(nn.Module):
    """Predicts a scaled image embedding from a noised one, the time, the caption and the text embedding.

    Args:
        embed_dim: D, width of the scorer's embeddings.
        text_vocab: number of text ids.
        text_length: L, text ids per caption.
        pad_id: text id of padding.
        n_layer: number of blocks.
        n_head: attention heads per block.
        n_embd: C, width.

    Raises:
        UserError: as `CausalBlocks`.
    """

    mean: Tensor
    """(D,), subtracted from embeddings."""
    std: Tensor
    """(D,), divides them afterwards."""

    def __init__(
        self,
        *,
        embed_dim: int,
        text_vocab: int,
        text_length: int,
        pad_id: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.text_length, self.pad_id = embed_dim, text_length, pad_id
        self.tokens = nn.Embedding(text_vocab, embed_dim)
        self.project_tokens = nn.Linear(embed_dim, n_embd)
        self.project_text = nn.Linear(embed_dim, n_embd)
        self.project_noised = nn.Linear(embed_dim, n_embd)
        self.time = nn.Sequential(nn.Linear(n_embd, n_embd), nn.SiLU(), nn.Linear(n_embd, n_embd))
        self.query = nn.Parameter(torch.randn(n_embd) * 0.01)
        self.trunk = CausalBlocks(text_length=text_length, added=ADDED, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        self.predict = nn.Linear(n_embd, embed_dim)
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("std", torch.full((embed_dim,), embed_dim**-0.5 / COMPONENT_SIZE))

    def scale(self, embed: Tensor) -> Tensor:
        """Normalised embeddings (B, D) -> what is noised and predicted."""
        return (embed - self.mean) / self.std

    def unscale(self, scaled: Tensor) -> Tensor:
        """What is predicted (B, D) -> normalised embeddings."""
        return F.normalize(scaled * self.std + self.mean, dim=-1)

    def new_past(self) -> Past:
        """What `forward` keeps from call to call, before the first."""
        return Past(len(self.trunk.blocks))

    def forward(
        self, noised: Tensor, times: Tensor, text_ids: Tensor, text_embed: Tensor, past: Past | None = None
    ) -> Tensor:
        """Predict scaled embeddings.

        Args:
            noised: (B, D), scaled embeddings with noise.
            times: (B,) int64 in [0, `DIFFUSION_STEPS`).
            text_ids: (B, L) int64; all padding for no caption.
            text_embed: (B, D), normalised; zeros for no caption.
            past: from calls with the same captions and text embeddings, whose positions depend on nothing else and are
                computed in the first of these calls alone.

        Returns:
            (B, D).
        """
        text_ids = without_padding(text_ids, self.pad_id)
        return self.denoise(noised, times, self.tokens(text_ids), text_ids != self.pad_id, text_embed, past)

    def denoise(
        self,
        noised: Tensor,
        times: Tensor,
        tokens: Tensor,
        is_text: Tensor,
        text_embed: Tensor,
        past: Past | None = None,
    ) -> Tensor:
        """As `forward`, given a caption as vectors (B, n, D), of which those where `is_text` (B, n) count."""
        text = self.project_tokens(tokens)
        others = [
            self.project_text(text_embed),
            self.time(time_features(times, len(self.query))),
            self.project_noised(noised),
            self.query.expand(len(noised), -1),
        ]
        if past is not None:
            if not past.length:
                self.trunk(text, is_text, others[0][:, None], past)
            past = past.copy()
        return self.predict(self.trunk(text, is_text, torch.stack(others, 1), past)[:, -1])


class ARPrior(nn.Module):
    """Predicts the quantised principal components of an image embedding one after another.

    Before the first comes the quantised dot product of text and image embedding, which is given.

    Args:
        components: K, how many are predicted.
        buckets: intervals of each.
        embed_dim: D, width of the scorer's embeddings, at least K.
        text_vocab: number of text ids.
        text_length: L, text ids per caption.
        pad_id: text id of padding.
        n_layer: number of blocks.
        n_head: attention heads per block.
        n_embd: C, width.

    Raises:
        UserError: as `CausalBlocks`, or there are more components than D.
    """

    mean: Tensor
    """(D,) of the embeddings in training."""
    basis: Tensor
    """(K, D), their principal components."""
    edges: Tensor
    """(K, buckets - 1), limits of the intervals."""
    centres: Tensor
    """(K, buckets), the number that stands for each interval."""
    dot_edges: Tensor
    """(buckets - 1,), limits of the intervals of dot products."""

    def __init__(
        self,
        *,
        components: int,
        buckets: int,
        embed_dim: int,
        text_vocab: int,
        text_length: int,
        pad_id: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
    ) -> None:
        super().__init__()
        if components > embed_dim:
            raise UserError(
                f"expected at most {embed_dim} components, the width of the scorer's embeddings, got {components}; "
                f"lower model.components"
            )
        self.embed_dim, self.text_length, self.pad_id = embed_dim, text_length, pad_id
        self.components, self.buckets = components, buckets
        self.tokens = nn.Embedding(text_vocab, n_embd)
        self.project_text = nn.Linear(embed_dim, n_embd)
        self.dots = nn.Embedding(buckets + 1, n_embd)
        """The last one stands for no caption."""
        self.values = nn.Embedding(buckets, n_embd)
        self.trunk = CausalBlocks(
            text_length=text_length, added=1 + components, n_layer=n_layer, n_head=n_head, n_embd=n_embd
        )
        self.head = nn.Linear(n_embd, buckets)
        for embedding in (self.tokens, self.dots, self.values):
            nn.init.normal_(embedding.weight, std=n_embd**-0.5)
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("basis", torch.eye(embed_dim)[:components].contiguous())
        self.register_buffer("edges", torch.zeros(components, buckets - 1))
        self.register_buffer("centres", torch.zeros(components, buckets))
        self.register_buffer("dot_edges", torch.zeros(buckets - 1))

    def fit(self, embed: Tensor, text_embed: Tensor) -> None:
        """Find the principal components of image embeddings (n, D), and the intervals of these and of dot products.

        Args:
            embed: (n, D), normalised.
            text_embed: (n, D), of a caption of each picture.
        """
        mean, basis = principal_components(embed)
        self.mean.copy_(mean)
        self.basis.copy_(basis[: self.components])
        for number, values in enumerate(((embed - mean) @ self.basis.T).T):
            edges, centres = quantile_buckets(values.contiguous(), self.buckets)
            self.edges[number], self.centres[number] = edges, centres
        self.dot_edges.copy_(quantile_buckets((embed * text_embed).sum(1), self.buckets)[0])

    def quantise(self, embed: Tensor) -> Tensor:
        """Normalised embeddings (B, D) -> the bucket of each component, (B, K) int64."""
        with torch.autocast(embed.device.type, enabled=False):  # half precision would miss the bucket
            values = (embed - self.mean) @ self.basis.T
            return torch.searchsorted(self.edges, values.T.contiguous()).T

    def embed(self, ids: Tensor) -> Tensor:
        """The bucket of each component (B, K) -> normalised embeddings (B, D)."""
        values = self.centres.gather(1, ids.T).T
        return F.normalize(values @ self.basis + self.mean, dim=-1)

    def new_past(self) -> Past:
        """What `forward` keeps from call to call, before the first."""
        return Past(len(self.trunk.blocks))

    def dot_ids(self, embed: Tensor, text_embed: Tensor) -> Tensor:
        """The bucket of the dot products of image and text embeddings, both (B, D) -> (B,) int64."""
        return torch.searchsorted(self.dot_edges, (embed * text_embed).sum(1))

    def forward(
        self, ids: Tensor, dot_ids: Tensor, text_ids: Tensor, text_embed: Tensor, past: Past | None = None
    ) -> Tensor:
        """Logits of the buckets of the first components and of the next one.

        Args:
            ids: (B, k) int64, buckets of the first k components, k below K.
            dot_ids: (B,) int64; `buckets` for no caption.
            text_ids: (B, L) int64; all padding for no caption.
            text_embed: (B, D), normalised; zeros for no caption.
            past: from calls with the same captions and the first of these ids; it is extended.

        Returns:
            (B, k + 1, buckets); with `past` those that no call before has returned.
        """
        text_ids = without_padding(text_ids, self.pad_id)
        others = [self.project_text(text_embed)[:, None], self.dots(dot_ids)[:, None], self.values(ids)]
        x = self.trunk(self.tokens(text_ids), text_ids != self.pad_id, torch.cat(others, 1), past)
        return self.head(x[:, -1 - ids.shape[1] :])


AnyPrior = DiffusionPrior | ARPrior


def without_padding(text_ids: Tensor, pad_id: int) -> Tensor:
    """Text ids (B, L) without the columns that are padding in all rows; as they are where the values are far away."""
    if text_ids.device.type != "cpu":  # a look at values of another device would wait for it
        return text_ids
    lengths = (text_ids != pad_id).sum(1)
    return text_ids[:, : int(lengths.max()) if len(lengths) else 0]


def time_features(times: Tensor, width: int) -> Tensor:
    """Sinusoidal features of times (B,), (B, width): cosines, then sines, of frequencies from 1 down to 1/10,000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(10_000) / half))
    angles = times[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def principal_components(embed: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) of embeddings (n, D) and all their principal components (D, D), in the order of their variance.

    The largest number of each component is positive, so that equal embeddings have equal components everywhere.
    """
    mean = embed.double().mean(0)
    centred = embed.double() - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(embed))
    basis = vectors.T.flip(0)
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return mean.float(), (basis * largest.sign()).float()


def quantile_buckets(values: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """Equally frequent intervals of some values.

    Args:
        values: (n,).
        buckets: number of intervals.

    Returns:
        The inner limits (buckets - 1,), ascending; and the mean of the values in each interval (buckets,), its middle
        where there are none.
    """
    limits = torch.from_numpy(np.quantile(values.double().numpy(), np.linspace(0, 1, buckets + 1)))
    edges = limits[1:-1].float()
    ids = torch.searchsorted(edges, values)
    counts = torch.bincount(ids, minlength=buckets)
    sums = torch.zeros(buckets, dtype=torch.float64).index_add_(0, ids, values.double())
    middles = (limits[1:] + limits[:-1]) / 2
    return edges, torch.where(counts > 0, sums / counts.clamp(min=1), middles).float()
