"""CLIP: an image tower and a text tower with a common embedding space (Radford et al. 2021).

Both towers are pre-norm transformers. The image tower is a ViT whose outputs are averaged. The text tower is
bidirectional and pooled at the end-of-text id, which is given explicitly: the original pools at the highest id, but in
the vocabularies of this package end-of-text is not the highest.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.attention import attend
from dalle_mini_impl.util.errors import UserError

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""As in CLIP: the initial temperature is 0.07."""
MAX_LOGIT_SCALE = math.log(100)
"""As in CLIP, for stability."""
SIGMOID_LOGIT_SCALE = math.log(10)
SIGMOID_LOGIT_BIAS = -10.0
"""Initial values of SigLIP: nearly all pairs of a batch do not match, and the bias predicts that from the start."""


class PastKeys:
    """Keys and values of the positions that one attention layer has computed."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        """(B, n_head, n, head_dim), None before the first position."""
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the next positions, and return all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


class ClipAttention(nn.Module):
    """Multi-head self-attention, (B, n, C) -> same.

    `allowed` is True where a position may be attended to: (B, n) by all of a row, or (B, n, n) by each of them. With
    `past`, x are the next positions after those in it.
    """

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor, allowed: Tensor | None, past: PastKeys | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three head c) -> three b head n c", three=3, head=self.n_head)
        if past is not None:
            k, v = past.extend(k, v)
        mask = None if allowed is None else allowed[:, None] if allowed.ndim == 3 else allowed[:, None, None, :]
        return self.out(rearrange(attend(q, k, v, mask), "b head n c -> b n (head c)"))


class ClipBlock(nn.Module):
    """Pre-norm transformer block with a GELU MLP four times as wide. (B, n, C) -> same."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(n_embd)
        self.attention = ClipAttention(n_embd, n_head)
        self.norm2 = nn.LayerNorm(n_embd)
        self.widen = nn.Linear(n_embd, 4 * n_embd)
        self.narrow = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor, allowed: Tensor | None = None, past: PastKeys | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), allowed, past)
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class ImageTower(nn.Module):
    """Vision transformer: pixels (B, 3, S, S) -> (B, D)."""

    def __init__(
        self, *, image_size: int, patch_size: int, n_embd: int, n_head: int, layers: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, n_embd, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.randn((image_size // patch_size) ** 2, n_embd) * n_embd**-0.5)
        self.blocks = nn.ModuleList(ClipBlock(n_embd, n_head) for _ in range(layers))
        self.norm = nn.LayerNorm(n_embd)
        self.project = nn.Linear(n_embd, embed_dim, bias=False)
        initialise(self, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        x = rearrange(self.patches(pixels), "b c h w -> b (h w) c") + self.positions
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x.mean(dim=1)))


class TextTower(nn.Module):
    """Bidirectional transformer: text ids (B, L) with one end-of-text per row -> (B, D)."""

    def __init__(
        self,
        *,
        text_vocab: int,
        text_length: int,
        pad_id: int,
        eos_id: int,
        n_embd: int,
        n_head: int,
        layers: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.pad_id, self.eos_id, self.text_length = pad_id, eos_id, text_length
        self.tokens = nn.Embedding(text_vocab, n_embd)
        self.positions = nn.Parameter(torch.randn(text_length, n_embd) * 0.01)
        self.blocks = nn.ModuleList(ClipBlock(n_embd, n_head) for _ in range(layers))
        self.norm = nn.LayerNorm(n_embd)
        self.project = nn.Linear(n_embd, embed_dim, bias=False)
        initialise(self, layers)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, text_ids: Tensor) -> Tensor:
        is_end = text_ids == self.eos_id
        end = is_end.int().argmax(dim=1)  # the first
        if text_ids.device.type == "cpu":  # a look at values of another device would wait for it
            if not bool(is_end.any(dim=1).all()):
                raise UserError(
                    f"expected end-of-text id {self.eos_id} in every caption, got one without; encode with add_eos=True"
                )
            # Columns after the longest caption change nothing; most captions fill a third of the length.
            text_ids = text_ids[:, : int(end.max()) + 1]
        length = text_ids.shape[1]
        if length > self.text_length:
            raise UserError(f"expected captions of up to {self.text_length} ids, got {length}; truncate the caption")
        allowed = (torch.arange(length, device=end.device) <= end[:, None]) & (text_ids != self.pad_id)
        x = self.tokens(text_ids) + self.positions[:length]
        for block in self.blocks:
            x = block(x, allowed)
        return self.project(self.norm(x[torch.arange(len(x), device=end.device), end]))


class CLIP(nn.Module):
    """Both towers and the learned logit scale.

    Args:
        image_size: side S of the square pictures, in pixels; a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        n_embd: width of both towers; a multiple of `n_head`.
        n_head: attention heads in both towers.
        image_layers: blocks of the image tower.
        text_layers: blocks of the text tower.
        text_vocab: number of text ids.
        text_length: most text ids per caption, end-of-text included.
        pad_id: text id of padding, which is not attended to.
        eos_id: text id that ends a caption. The text is pooled there; later ids are not attended to.
        embed_dim: D, width of the common embedding space.
        sigmoid: learn a logit bias as well, for the sigmoid loss.

    Raises:
        UserError: `image_size` is not a multiple of `patch_size`, or `n_embd` not one of `n_head`.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        n_embd: int,
        n_head: int,
        image_layers: int,
        text_layers: int,
        text_vocab: int,
        text_length: int,
        pad_id: int,
        eos_id: int,
        embed_dim: int,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UserError(
                f"expected image_size to be a multiple of patch_size {patch_size}, got {image_size}; change one"
            )
        if n_embd % n_head:
            raise UserError(f"expected n_embd to be a multiple of n_head {n_head}, got {n_embd}; change one")
        self.image_size, self.text_length, self.embed_dim = image_size, text_length, embed_dim
        width = {"n_embd": n_embd, "n_head": n_head, "embed_dim": embed_dim}
        pixels = {"image_size": image_size, "patch_size": patch_size}
        text = {"text_vocab": text_vocab, "text_length": text_length, "pad_id": pad_id, "eos_id": eos_id}
        self.image_tower = ImageTower(layers=image_layers, **pixels, **width)
        self.text_tower = TextTower(layers=text_layers, **text, **width)
        self.logit_scale = nn.Parameter(torch.tensor(SIGMOID_LOGIT_SCALE if sigmoid else INITIAL_LOGIT_SCALE))
        """Logarithm of the factor of the cosines."""
        self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_LOGIT_BIAS)) if sigmoid else None
        """Added to the scaled cosines; None without `sigmoid`."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.logit_scale.device

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            pixels: (B, 3, S, S) in [-1, 1].

        Returns:
            (B, D), not normalised, in the precision of the surrounding autocast.

        Raises:
            UserError: the pixels have another shape.
        """
        if pixels.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"expected pixels of shape (B, 3, {self.image_size}, {self.image_size}), got {tuple(pixels.shape)}; "
                f"resize them"
            )
        return self.image_tower(pixels)

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """Embed captions.

        Args:
            text_ids: (B, L) int64; each row has `eos_id` among its first `text_length` ids.

        Returns:
            (B, D), not normalised, in the precision of the surrounding autocast.

        Raises:
            UserError: a row has no `eos_id`, or has it too late.
        """
        return self.text_tower(text_ids)

    def forward(self, pixels: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Embed pairs: image and text embeddings, `logit_scale` and `logit_bias`, as `contrastive_loss` takes them."""
        return self.encode_image(pixels), self.encode_text(text_ids), self.logit_scale, self.logit_bias

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp `logit_scale` to [0, ln 100]; to be called after every optimizer step."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def initialise(tower: nn.Module, layers: int) -> None:
    """Weights N(0, 1/fan_in); the layers of blocks that add to the residual stream are scaled down by the depth."""
    for module in tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in tower.modules():
        if isinstance(module, ClipBlock):
            for layer in (module.attention.out, module.narrow):
                nn.init.normal_(layer.weight, std=(layer.in_features * 2 * layers) ** -0.5)
