"""Batches and losses of the diffusion decoder and its upsampler."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.diffusion import DiffusionDecoderRun
from dalle_mini_impl.config.sampling import DIFFUSION_STEPS
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.model.diffusion import PictureDenoiser, PictureUpsampler
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.encoded_set import embed_set, encode_set
from dalle_mini_impl.train.shared.order import batch_indices
from dalle_mini_impl.unclip.diffusion_decoder import network_shape
from dalle_mini_impl.unclip.prior import SPACE
from dalle_mini_impl.unclip.schedule import make_scheduler

CAPTION = 1
"""Last number of the seed of a row's caption, which keeps it apart from that of its noise."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """Parts of the checkpoint that stay as they are while the decoder is trained; None where it does not need them."""

    scorer: Scorer | None = None
    text_tokenizer: TextTokenizer | None = None
    image_tokenizer: ImageTokenizer | None = None

    @classmethod
    def of(cls, config: DiffusionDecoderRun, device: str) -> tuple["Fixed", dict[str, str]]:
        """The parts in `run.model_dir` that a run needs, and their identities.

        Raises:
            UserError: one is missing or damaged.
        """
        folder, model = Path(config.run.model_dir), config.model
        if model.kind == "upsampler":
            return cls(), {}
        scorer = Scorer.from_pretrained(folder, device)
        identities = {"scorer": read_part(folder, "scorer", weights=False).identity, SPACE: scorer_identity(scorer)}
        text_tokenizer = image_tokenizer = None
        if model.text_length:
            text_tokenizer = TextTokenizer(folder / TEXT_TOKENIZER_FILE)
            identities["text_tokenizer"] = text_tokenizer.identity
        if model.space == "latents":
            image_tokenizer, _ = load_image_tokenizer(folder, device)
            identities["image_tokenizer"] = read_part(folder, "image_tokenizer", weights=False).image_ids
        return cls(scorer, text_tokenizer, image_tokenizer), identities

    def build(self, config: DiffusionDecoderRun) -> PictureDenoiser | PictureUpsampler:
        """The network to be trained.

        Raises:
            UserError: the config's values do not fit together, or diffusers is not installed.
        """
        if self.scorer is None:
            return PictureUpsampler(config.model)
        shape = network_shape(config.model, self.image_tokenizer, self.scorer, self.text_tokenizer)
        return PictureDenoiser(config.model, **shape)

    def read(self, store: PictureStore, folder: Path, identities: dict[str, str]) -> "Encoded":
        """What the parts make of the pictures of a split."""
        nothing = torch.empty(len(store), 0)
        embed = nothing if self.scorer is None else embed_set(self.scorer, store, folder)
        ids = nothing
        if self.image_tokenizer is not None:
            ids = encode_set(self.image_tokenizer, identities["image_tokenizer"], store, folder)
        return Encoded(embed, ids)


class Encoded(NamedTuple):
    """Pictures of a split as the fixed parts encode them."""

    embed: Tensor
    """(n, D) of the scorer; (n, 0) for an upsampler."""
    image_ids: Tensor
    """(n, h, w), to be diffused as codebook vectors; (n, 0) where pixels are diffused."""


class DiffusionBatch(NamedTuple):
    """Some rows of a step's global batch."""

    indices: Tensor
    """(B,) int64, pictures of the split."""
    pixels: Tensor
    """(B, 3, H, W) in [-1, 1]; (0,) where latents are diffused."""
    is_given: Tensor
    """(B,) bool: trained with the image embedding."""
    text_ids: Tensor
    """(B, L), with BPE dropout; all padding where the caption is dropped. (B, 0) without captions."""
    scorer_ids: Tensor
    """The captions as the scorer's text ids; (B, 0) without captions."""
    has_caption: Tensor
    """(B,) bool: trained with the caption."""
    times: Tensor
    """(B,) int64 in [0, `DIFFUSION_STEPS`)."""
    noise: Tensor
    """(B, C, h, w)."""
    levels: Tensor
    """(B,) `upsampler`: standard deviation of the noise in the pictures that it enlarges; zeros otherwise."""
    low_noise: Tensor
    """(B, 3, l, l) of that noise with a deviation of 1; (B, 0) otherwise."""


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes the batches of a run."""

    store: PictureStore
    fixed: Fixed
    config: DiffusionDecoderRun
    channels: int
    """C, of what is diffused."""
    side: int
    """Its side in pixels or cells."""

    def make(self, step: int, rows: slice) -> DiffusionBatch:
        """Some rows of a step's global batch.

        Args:
            step: optimizer step, from 0.
            rows: B rows of the batch.
        """
        run = self.config.run
        places = range(*rows.indices(run.batch_size))
        indices = batch_indices(step, run.batch_size, len(self.store), run)[rows]
        generators = [loop.generator_for(run.seed, step, row) for row in places]
        times = torch.stack([torch.randint(DIFFUSION_STEPS, (), generator=generator) for generator in generators])
        return self.of(indices, times, generators, self._captions(indices, step, places))

    def held_out(self, count: int) -> DiffusionBatch:
        """The first pictures of the split with times that are spread evenly, with embedding and without caption."""
        generators = [loop.generator_for(self.config.run.seed, number) for number in range(count)]
        times = ((torch.arange(count) + 0.5) * DIFFUSION_STEPS / count).long()
        batch = self.of(np.arange(count), times, generators, None)
        return batch._replace(is_given=torch.ones(count, dtype=torch.bool))

    def of(
        self,
        indices: np.ndarray,
        times: Tensor,
        generators: list[torch.Generator],
        captions: tuple[Tensor, Tensor, Tensor] | None,
    ) -> DiffusionBatch:
        """A batch of these pictures; what is random about each follows from its generator."""
        config, model = self.config, self.config.model
        is_given = torch.stack([torch.rand((), generator=one) >= config.embed_dropout for one in generators])
        shape = (self.channels, self.side, self.side)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        count, empty = len(indices), torch.empty(len(indices), 0)
        levels, low_noise = torch.zeros(count), empty
        if model.kind == "upsampler":
            levels = torch.stack([model.low_noise * torch.rand((), generator=one) for one in generators])
            low = (3, model.low_size, model.low_size)
            low_noise = torch.stack([torch.randn(low, generator=generator) for generator in generators])
        has_pixels = self.fixed.image_tokenizer is None
        pixels = pixels_on_white(self.store.take(indices), self.side) if has_pixels else torch.empty(0)
        if captions is None:
            length = model.text_length
            pad = self.fixed.text_tokenizer.pad_id if self.fixed.text_tokenizer else 0
            captions = (torch.full((count, length), pad), empty.long(), torch.zeros(count, dtype=torch.bool))
        text_ids, scorer_ids, has_caption = captions
        return DiffusionBatch(
            torch.from_numpy(indices), pixels, is_given, text_ids, scorer_ids, has_caption, times, noise, levels,
            low_noise,
        )  # fmt: skip

    def _captions(self, indices: np.ndarray, step: int, places: range) -> tuple[Tensor, Tensor, Tensor] | None:
        """Text ids, the scorer's text ids, and which captions are kept; None without captions."""
        tokenizer, scorer, config = self.fixed.text_tokenizer, self.fixed.scorer, self.config
        if tokenizer is None or scorer is None:
            return None
        sampler = CaptionSampler(self.store.entries, config.language_weights)
        texts, text_ids, has_caption = [], [], []
        for index, row in zip(indices, places, strict=True):
            random = np.random.default_rng([config.run.seed, step, row, CAPTION])
            has_caption.append(random.random() >= config.caption_dropout)
            texts.append(sampler.sample(int(index), random).text)
            length = config.model.text_length
            ids = tokenizer.encode_with_dropout(texts[-1], config.bpe_dropout, random, length)
            text_ids.append(tokenizer.cut_or_pad(ids if has_caption[-1] else [], length, add_eos=bool(has_caption[-1])))
        with warnings.catch_warnings():  # of captions that are cut, which is said at the beginning
            warnings.simplefilter("ignore")
            scorer_ids = scorer.text_tokenizer.encode_batch(texts, scorer.text_length, add_eos=True)
        return torch.tensor(text_ids), scorer_ids, torch.tensor(has_caption)


class DiffusionLoss(nn.Module):
    """Mean squared error of the predicted v or noise.

    Args:
        network: the decoder's U-Net, or the upsampler's.
        prediction: what it predicts, one of `config.diffusion.PREDICTIONS`.

    Raises:
        UserError: diffusers is not installed.
    """

    def __init__(self, network: PictureDenoiser | PictureUpsampler, prediction: str) -> None:
        super().__init__()
        self.network, self.prediction = network, prediction
        self._scheduler: Any = make_scheduler("ddpm", prediction)

    def forward(self, pictures: Tensor, embed: Tensor, text_embed: Tensor | None, batch: DiffusionBatch) -> Tensor:
        """The mean loss of a batch.

        Args:
            pictures: (B, C, H, W), pixels or codebook vectors.
            embed: (B, D) of the pictures.
            text_embed: (B, D) of their captions; None without captions.
            batch: of which these are.
        """
        network = self.network
        scaled = network.scale(pictures) if isinstance(network, PictureDenoiser) else pictures
        noised = self._scheduler.add_noise(scaled, batch.noise, batch.times)
        if isinstance(network, PictureDenoiser):
            text = (batch.text_ids, text_embed) if text_embed is not None else ()
            found = network(noised, batch.times, embed, batch.is_given, *text)
        else:
            low = F.interpolate(pictures, batch.low_noise.shape[-2:], mode="bilinear", antialias=True)
            low = low + batch.levels[:, None, None, None] * batch.low_noise
            found = network(noised, batch.times, low, batch.levels)
        target = batch.noise
        if self.prediction == "v_prediction":
            target = self._scheduler.get_velocity(scaled, batch.noise, batch.times)
        return F.mse_loss(found.float(), target)


@torch.no_grad()
def loss_inputs(fixed: Fixed, encoded: Encoded, batch: DiffusionBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pictures (B, C, H, W), image embeddings (B, D) and text embeddings (B, D) of a batch, on its device.

    Args:
        fixed: scorer and image tokenizer.
        encoded: the pictures of the split.
        batch: like `encoded` on the device of the parts.
    """
    embed = encoded.embed[batch.indices]
    pictures = batch.pixels
    if fixed.image_tokenizer is not None:
        vectors = F.embedding(encoded.image_ids[batch.indices], fixed.image_tokenizer.table())
        pictures = rearrange(vectors, "B h w D -> B D h w").contiguous()
    if fixed.text_tokenizer is None or fixed.scorer is None:
        return pictures, embed, None
    if not batch.scorer_ids.shape[1]:  # held out, without captions
        return pictures, embed, torch.zeros_like(embed)
    text_embed = F.normalize(fixed.scorer.model.encode_text(batch.scorer_ids).float(), dim=-1)
    return pictures, embed, text_embed.masked_fill(~batch.has_caption[:, None], 0)


def measure_channels(network: PictureDenoiser, fixed: Fixed, encoded: Encoded, count: int) -> None:
    """Set what latents are scaled by: mean and standard deviation of each channel over the first `count` pictures."""
    if fixed.image_tokenizer is None:
        return
    vectors = F.embedding(encoded.image_ids[:count].to(fixed.image_tokenizer.device), fixed.image_tokenizer.table())
    values = vectors.flatten(0, -2).cpu().double()
    network.mean.copy_(values.mean(0))
    network.std.copy_(values.std(0).clamp(min=1e-6))


def to_device(batch: DiffusionBatch, accelerator: Accelerator) -> DiffusionBatch:
    """A batch on the device of a run."""
    return DiffusionBatch(*(part.to(accelerator.device, non_blocking=True) for part in batch))
