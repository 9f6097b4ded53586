"""U-Nets of the diffusion decoder (Ramesh et al. 2022, DALL-E 2, section 2.1), those of the library `diffusers`.

They have the shapes that its UnCLIPPipeline has, so that weights can be exchanged with it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig
from dalle_mini_impl.util.errors import UserError, need_extra

GROUPS = 32
"""Groups of channels that a norm treats separately, or fewer where a width is no multiple."""


class EmbeddingContext(nn.Module):
    """An image embedding and a caption -> what is added to the time, and the positions that attention reads.

    Its parameters are those of diffusers' UnCLIPTextProjModel; without captions it lacks those of captions.

    Args:
        embed_dim: D, width of the scorer's embeddings.
        time_dim: width of the time.
        context_dim: C, width of the positions.
        positions: n, positions that an image embedding fills.
        has_captions: whether there are captions.
    """

    def __init__(self, embed_dim: int, time_dim: int, context_dim: int, positions: int, has_captions: bool) -> None:
        super().__init__()
        self.positions = positions
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(embed_dim))
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(embed_dim, time_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(embed_dim, positions * context_dim)
        if has_captions:
            self.embedding_proj = nn.Linear(embed_dim, time_dim)
            self.encoder_hidden_states_proj = nn.Linear(embed_dim, context_dim)
            self.text_encoder_hidden_states_norm = nn.LayerNorm(context_dim)

    def forward(self, embed: Tensor, text_embed: Tensor | None, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project embeddings.

        Args:
            embed: (B, D) of pictures, as the network takes them.
            text_embed: (B, D) of captions; None without captions.
            hidden: (B, L, D) of the positions of captions; None without captions.

        Returns:
            (B, time_dim), and (B, n + L, C).
        """
        time = self.clip_image_embeddings_project_to_time_embeddings(embed)
        context = self.clip_extra_context_tokens_proj(embed).view(len(embed), -1, self.positions).transpose(1, 2)
        if text_embed is None or hidden is None:
            return time, context
        text = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(hidden))
        return time + self.embedding_proj(text_embed), torch.cat([context, text], 1)


class PictureDenoiser(nn.Module):
    """Predicts v or the noise of a noised picture from an image embedding and, if it has captions, a caption.

    Args:
        config: the shape.
        channels: of a picture: 3 of pixels, D of an image tokenizer's codebook vectors.
        side: of a picture, in pixels or cells.
        embed_dim: width of the scorer's embeddings.
        text_vocab: number of text ids.
        pad_id: text id of padding.
        has_variance: whether the U-Net predicts a variance as well, which is left out, as that of UnCLIPPipeline does.

    Raises:
        UserError: diffusers is not installed, or the config's values do not fit together.
    """

    mean: Tensor
    """(C,), subtracted from the channels of pictures."""
    std: Tensor
    """(C,), divides them afterwards."""

    def __init__(
        self,
        config: DiffusionDecoderConfig,
        *,
        channels: int,
        side: int,
        embed_dim: int,
        text_vocab: int,
        pad_id: int,
        has_variance: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.side, self.embed_dim = channels, side, embed_dim
        self.text_length, self.pad_id = config.text_length, pad_id
        self.unet = _embedding_unet(config, channels, side, channels * (1 + has_variance))
        self._cells = {(side >> stage) ** 2 for stage in range(len(config.channels))}
        shape = (embed_dim, 4 * config.channels[0], config.context_dim, config.positions)
        self.context = EmbeddingContext(*shape, has_captions=config.text_length > 0)
        if config.text_length:
            self.tokens = nn.Embedding(text_vocab, embed_dim)
            self.places = nn.Parameter(torch.randn(config.text_length, embed_dim) * 0.01)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def scale(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> what is noised."""
        return (pictures - self.mean[:, None, None]) / self.std[:, None, None]

    def unscale(self, scaled: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return scaled * self.std[:, None, None] + self.mean[:, None, None]

    def forward(
        self,
        noised: Tensor,
        times: Tensor,
        embed: Tensor,
        is_given: Tensor,
        text_ids: Tensor | None = None,
        text_embed: Tensor | None = None,
    ) -> Tensor:
        """Predict v or the noise.

        Args:
            noised: (B, C, H, W), scaled pictures with noise.
            times: (B,) int64 in [0, `DIFFUSION_STEPS`).
            embed: (B, D), normalised.
            is_given: (B,) bool, False where there is no image embedding; that in `embed` does not count then.
            text_ids: (B, L) int64; all padding for no caption. None in a network without captions.
            text_embed: (B, D) of the same captions, normalised; zeros for no caption.

        Returns:
            (B, C, H, W).
        """
        embed = torch.where(is_given[:, None], embed, self.context.learned_classifier_free_guidance_embeddings)
        if not self.text_length or text_ids is None:
            return self.denoise(noised, times, embed)
        hidden = self.tokens(text_ids) + self.places
        return self.denoise(noised, times, embed, text_embed, hidden, text_ids != self.pad_id)

    def denoise(
        self,
        noised: Tensor,
        times: Tensor,
        embed: Tensor,
        text_embed: Tensor | None = None,
        hidden: Tensor | None = None,
        is_text: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, given captions as vectors (B, L, D), of which those where `is_text` (B, L) count."""
        time, context = self.context(embed, text_embed, hidden)
        mask = None
        if is_text is not None:
            mask = F.pad(is_text, (self.context.positions, 0), value=True)
            if context.shape[1] in self._cells:  # diffusers takes a mask of as many positions for one of cells
                context, mask = F.pad(context, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        found = self.unet(noised, times, context, class_labels=time, attention_mask=mask).sample
        return found[:, : self.channels]


class PictureUpsampler(nn.Module):
    """Predicts v or the noise of a noised picture from the same picture in low resolution.

    Args:
        config: the shape.

    Raises:
        UserError: as `PictureDenoiser`.
    """

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        if config.image_size % config.low_size or config.image_size == config.low_size:
            raise UserError(
                f"expected model.image_size that is a multiple of model.low_size {config.low_size}, got "
                f"{config.image_size}; change one"
            )
        self.side, self.low_side, self.low_noise = config.image_size, config.low_size, config.low_noise
        stages = len(config.channels)
        _check_stages(config, config.image_size)
        self.unet = _unets().UNet2DModel(
            sample_size=config.image_size,
            in_channels=6,
            out_channels=3,
            down_block_types=("ResnetDownsampleBlock2D",) * stages,
            up_block_types=("ResnetUpsampleBlock2D",) * stages,
            add_attention=False,
            class_embed_type="timestep",
            **_unet_options(config),
        )

    def forward(self, noised: Tensor, times: Tensor, low: Tensor, levels: Tensor) -> Tensor:
        """Predict v or the noise.

        Args:
            noised: (B, 3, H, W), pixels with noise.
            times: (B,) int64 in [0, `DIFFUSION_STEPS`).
            low: (B, 3, h, w), noised pixels of low resolution.
            levels: (B,), standard deviation of the noise in these.

        Returns:
            (B, 3, H, W).
        """
        large = F.interpolate(low, noised.shape[-2:], mode="bicubic", antialias=True)
        return self.unet(torch.cat([noised, large], 1), times, class_labels=levels * 1000).sample


def _embedding_unet(config: DiffusionDecoderConfig, channels: int, side: int, out_channels: int) -> Any:
    stages, attending = len(config.channels), config.attention_stages
    _check_stages(config, side)
    if not 0 <= attending <= stages:
        raise UserError(f"expected attention_stages of at most {stages}, got {attending}; lower it, or add channels")
    with_attention = config.channels[stages - attending :] or config.channels[-1:]
    if unfit := [width for width in with_attention if width % config.head_dim]:
        raise UserError(
            f"expected channels that are multiples of head_dim {config.head_dim} in stages with attention, got "
            f"{unfit[0]}; change one"
        )
    plain = stages - attending
    down = ("ResnetDownsampleBlock2D",) * plain + ("SimpleCrossAttnDownBlock2D",) * attending
    up = ("SimpleCrossAttnUpBlock2D",) * attending + ("ResnetUpsampleBlock2D",) * plain
    return _unets().UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=out_channels,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
        class_embed_type="identity",
        **_unet_options(config),
    )


def _unet_options(config: DiffusionDecoderConfig) -> dict[str, Any]:
    return {
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks,
        "norm_num_groups": math.gcd(GROUPS, *config.channels),
        "resnet_time_scale_shift": "scale_shift",
    }


def _check_stages(config: DiffusionDecoderConfig, side: int) -> None:
    smallest = 2 ** (len(config.channels) - 1)
    if side % smallest:
        raise UserError(
            f"expected a side that is a multiple of {smallest} for {len(config.channels)} channels, got {side}; change "
            f"the size, or leave out channels"
        )


def _unets() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise need_extra("diffusers", "unclip") from error
    return diffusers
