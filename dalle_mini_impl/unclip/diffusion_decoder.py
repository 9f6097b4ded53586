"""The diffusion decoder with all that it needs: image embeddings and captions in, pictures out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import check_trained_with, load_module, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.diffusion import (
    KINDS,
    PREDICTIONS,
    SPACES,
    DiffusionDecoderConfig,
    DiffusionSamplingConfig,
)
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.diffusion import PictureDenoiser
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import unit_embeddings
from dalle_mini_impl.sampling.next_ids import guide
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.unclip.prior import check_embeddings
from dalle_mini_impl.unclip.schedule import check_steps, make_scheduler, noise_generator
from dalle_mini_impl.unclip.solve import solve
from dalle_mini_impl.unclip.upsampler import Upsampler
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels
from dalle_mini_impl.util.read_files import is_file

PART = "diffusion_decoder"
"""Name of the part of a checkpoint."""
NOISE, UPSAMPLER_NOISE = 2**31, 2**31 + 1
"""Places of the noise of a picture, and of its enlargement, among what is drawn with a seed."""
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Wanted:
    """What to draw."""

    embeds: Sequence[Sequence[float]]
    """An image embedding (D,) of any length for each picture; an empty one is "no embedding"."""
    caption: str = ""
    """Of all pictures; "" is "no caption"."""
    negative: str = ""
    """Caption that guidance moves away from, without embedding; "" is "no caption"."""


@dataclass(frozen=True, eq=False)
class DrawnPictures:
    """Pictures of a diffusion decoder."""

    pixels: Tensor
    """(n, 3, H, W) in [-1, 1]."""
    image_ids: Tensor
    """(n, h, w) int64 on the CPU, of the image tokenizer; (n, 0, 0) where pixels are diffused."""


@dataclass(frozen=True, eq=False)
class DiffusionDecoder:
    """Draws pictures of image embeddings.

    Raises:
        UserError: the sampling settings are out of range.
    """

    network: PictureDenoiser
    prediction: str
    """What the network predicts, one of `PREDICTIONS`."""
    scorer: Scorer
    """Whose embeddings are drawn."""
    text_tokenizer: TextTokenizer | None
    """Of captions; None for a decoder without."""
    image_tokenizer: ImageTokenizer | None
    """Whose codebook vectors are diffused; None where pixels are."""
    sampling: DiffusionSamplingConfig
    """Recommended."""
    upsampler: Upsampler | None = None
    """Enlarges pixels; None leaves them as they are."""

    def __post_init__(self) -> None:
        check_ranges(self.sampling, "sampling")
        check_steps(self.sampling.sampler, self.sampling.steps, "sampling.")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, scorer: Scorer, image_tokenizer: ImageTokenizer | None = None, device: str = "cpu"
    ) -> "DiffusionDecoder":
        """Load the diffusion decoder of a checkpoint, with its upsampler where there is one.

        Args:
            name: shipped name, checkpoint folder or `hf:USER/REPO`.
            scorer: the one that it was trained with.
            image_tokenizer: that of the checkpoint, for a decoder of latents; loaded if it is left out.
            device: where to compute.

        Raises:
            UserError: there is no such part, it was trained with another scorer, image or text tokenizer, or
                `diffusers` is not installed.
        """
        folder = find_checkpoint(name)
        part = read_part(folder, PART)
        check_embeddings(part, scorer)
        config = from_dict(DiffusionDecoderConfig, part.config.get("decoder"), f"{part.path}: decoder")
        check_ranges(config, "decoder")
        check_decoder(config)
        sampling = from_dict(DiffusionSamplingConfig, part.config.get("sampling"), f"{part.path}: sampling")
        tokenizer = None
        if config.text_length:
            tokenizer = TextTokenizer(folder / TEXT_TOKENIZER_FILE)
            check_trained_with(part, "text_tokenizer", tokenizer.identity)
        if config.space == "latents":
            check_trained_with(part, "image_tokenizer", read_part(folder, "image_tokenizer", weights=False).image_ids)
            image_tokenizer = image_tokenizer or ImageTokenizer.from_pretrained(folder, device)
        else:
            image_tokenizer = None
        make_scheduler()  # says first that diffusers is not installed
        shape = network_shape(config, image_tokenizer, scorer, tokenizer)
        network = load_module(lambda: PictureDenoiser(config, **shape), part, device)
        upsampler = Upsampler.find(folder, network.side, device) if image_tokenizer is None else None
        return cls(network, config.prediction, scorer, tokenizer, image_tokenizer, sampling, upsampler)

    @classmethod
    def find(
        cls, folder: Path, scorer: Scorer | None, image_tokenizer: ImageTokenizer | None, device: str = "cpu"
    ) -> "DiffusionDecoder | None":
        """The diffusion decoder in a checkpoint folder with a scorer, if there is one.

        Raises:
            UserError: as `from_pretrained`.
        """
        if scorer is None or not is_file(folder / f"{PART}.safetensors"):
            return None
        return cls.from_pretrained(folder, scorer, image_tokenizer, device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.mean.device

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        if self.image_tokenizer is not None:
            return self.network.side * self.image_tokenizer.config.factor
        return self.upsampler.network.side if self.upsampler else self.network.side

    def check_takes_embeddings(self) -> None:
        """Every diffusion decoder takes image embeddings, as some streams do."""

    def embeddings(self, rows: Sequence[Sequence[float]]) -> Tensor | None:
        """Image embeddings as the network takes them, (B, D); None if there is none in any row.

        Raises:
            UserError: one has another width, is zero or is not finite.
        """
        return unit_embeddings(rows, self.network.embed_dim) if any(map(len, rows)) else None

    def draw(
        self,
        wanted: Wanted,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        progress: Callable[[int], object] = lambda _: None,
    ) -> DrawnPictures:
        """Draw a picture from the noise of each seed.

        Args:
            wanted: n embeddings, and captions.
            seeds: n.
            sampling: `sampler`, `steps`, `eta` and `guidance`.
            progress: called with the number of pictures after each step.

        Raises:
            UserError: a setting is out of range, there are not as many seeds as embeddings, or the network has no
                captions and `negative` is one.
        """
        if len(seeds) != len(wanted.embeds) or not len(seeds):
            raise UserError(
                f"expected one seed for each of some embeddings, got {len(wanted.embeds)} embeddings and {len(seeds)} "
                f"seeds"
            )
        self.check_settings(sampling, wanted.negative)
        generators = [noise_generator(seed, NOISE) for seed in seeds]
        shape = (self.network.channels, self.network.side, self.network.side)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return self.finish(self.denoise(wanted, noise, sampling, generators, progress), seeds)

    @torch.inference_mode()
    def denoise(
        self,
        wanted: Wanted,
        noise: Tensor,
        sampling: SamplingConfig,
        generators: list[torch.Generator],
        progress: Callable[[int], object] = lambda _: None,
    ) -> Tensor:
        """Noise (n, C, h, w) -> scaled pictures (n, C, h, w); see `draw`.

        Args:
            wanted: n embeddings, and captions.
            noise: from which `ddim` with `eta` 0 and `dpmsolver++` follow exactly.
            sampling: see `draw`.
            generators: n, of the noise that is added on the way.
            progress: see `draw`.
        """
        scheduler = make_scheduler(sampling.sampler, self.prediction, sampling.steps)
        predict = self._predict(wanted, sampling.guidance)
        options = {"eta": sampling.eta} if sampling.sampler == "ddim" else {}
        x = noise.to(self.device)
        for time in scheduler.timesteps:
            x = scheduler.step(predict(x, time), time, x, generator=generators, **options).prev_sample
            progress(len(x))
        return x

    def finish(self, scaled: Tensor, seeds: Sequence[int]) -> DrawnPictures:
        """Scaled pictures (n, C, h, w) as pixels, quantised or enlarged.

        Args:
            scaled: from `denoise`.
            seeds: of the noise with which they are enlarged.
        """
        pictures = self.network.unscale(scaled)
        if self.image_tokenizer is None:
            pixels = pictures.clamp(-1, 1)
            if self.upsampler:
                pixels = self.upsampler.enlarge(pixels, [noise_generator(seed, UPSAMPLER_NOISE) for seed in seeds])
            return DrawnPictures(pixels, torch.empty(len(pixels), 0, 0, dtype=torch.int64))
        cells = rearrange(pictures, "B D h w -> (B h w) D").to(self.image_tokenizer.device)
        distances = torch.cdist(cells, self.image_tokenizer.table().to(cells))
        image_ids = distances.argmin(1).view(len(pictures), *pictures.shape[-2:])
        return DrawnPictures(self.image_tokenizer.decode(image_ids), image_ids.cpu())

    def encode(self, picture: Image.Image) -> Tensor:
        """A picture of any size and mode -> what is drawn of it, scaled: (1, C, h, w) on the CPU.

        Its middle is taken, and transparent parts are white.
        """
        if self.image_tokenizer is None:
            return self.network.scale(to_pixels([picture], self.network.side).to(self.device)).cpu()
        pixels = to_pixels([picture], self.size)
        return self.from_ids(self.image_tokenizer.encode(pixels))

    def from_ids(self, image_ids: Tensor) -> Tensor:
        """Image ids (B, h, w) -> their codebook vectors, scaled: (B, C, h, w) on the CPU."""
        assert self.image_tokenizer is not None
        vectors = F.embedding(image_ids.to(self.image_tokenizer.device), self.image_tokenizer.table())
        return self.network.scale(rearrange(vectors, "B h w D -> B D h w").to(self.device)).cpu()

    @torch.inference_mode()
    def invert(
        self,
        scaled: Tensor,
        wanted: Wanted,
        sampling: SamplingConfig,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Tensor:
        """Find the noise from which DDIM draws a picture.

        Each step is inverted by solving for its start, since the network is evaluated there; the usual inversion
        evaluates it at the end of the step, and is as inexact as steps are long.

        Args:
            scaled: (1, C, h, w), from `encode`.
            wanted: one embedding, and captions.
            sampling: `steps` and `guidance`; DDIM is taken.
            progress: called with 1 each time that the network predicts.

        Returns:
            (1, C, h, w), for `denoise` with `ddim` and `eta` 0.

        Raises:
            UserError: as `draw`.
        """
        scheduler = make_scheduler("ddim", self.prediction, sampling.steps)
        predict = self._predict(wanted, sampling.guidance)
        x = scaled.to(self.device)
        one, zero = torch.ones(()), torch.zeros(())
        for time in reversed(scheduler.timesteps):
            factor = float(scheduler.step(zero, time, one).prev_sample)

            def step(start: Tensor, time: Tensor = time) -> Tensor:
                progress(1)
                return scheduler.step(predict(start, time), time, start).prev_sample

            x = solve(step, x, factor)
        return x.cpu()

    def check_settings(self, sampling: SamplingConfig, negative: str = "") -> None:
        """Refuse settings of `draw`.

        Raises:
            UserError: as `draw`.
        """
        check_steps(sampling.sampler, sampling.steps)
        if sampling.eta and (sampling.sampler != "ddim" or not 0 < sampling.eta <= 1):
            raise UserError(
                f"expected eta from 0 to 1, and 0 with samplers other than ddim, got {sampling.eta} with "
                f"{sampling.sampler}; change it"
            )
        if not 0 <= sampling.guidance < float("inf"):
            raise UserError(f"expected a guidance of 0 or more, got {sampling.guidance}; 1 switches it off")
        if negative and self.text_tokenizer is None:
            raise UserError("expected a diffusion decoder with captions for negative, got one without; leave it out")

    def _predict(self, wanted: Wanted, guidance: float) -> Predict:
        """The network's guided prediction, from noised pictures and a time."""
        given = self._inputs(wanted.embeds, wanted.caption)
        none = self._inputs([()] * len(wanted.embeds), wanted.negative)

        def predict(noised: Tensor, time: Tensor) -> Tensor:
            times = time.to(noised.device).expand(len(noised))
            found = self.network(noised, times, *given)
            return found if guidance == 1 else guide(found, self.network(noised, times, *none), guidance)

        return predict

    def _inputs(self, embeds: Sequence[Sequence[float]], caption: str) -> tuple[Tensor, ...]:
        """Embeddings and a caption as the network takes them, on its device."""
        embed = unit_embeddings(embeds, self.network.embed_dim)
        inputs = [embed, torch.tensor([len(row) > 0 for row in embeds])]
        if self.text_tokenizer is not None:
            caption = clean_caption(caption)
            text_ids = torch.full((1, self.network.text_length), self.network.pad_id)
            text_embed = torch.zeros(1, self.network.embed_dim)
            if caption:
                text_ids = self.text_tokenizer.encode_batch([caption], self.network.text_length, add_eos=True)
                text_embed = self.scorer.embed_texts([caption])
            inputs += [text_ids.expand(len(embeds), -1), text_embed.expand(len(embeds), -1)]
        return tuple(one.to(self.device) for one in inputs)


def check_decoder(config: DiffusionDecoderConfig, kind: str = KINDS[0]) -> None:
    """Refuse a config with unknown words.

    Args:
        config: the shape.
        kind: what it has to be of.

    Raises:
        UserError: naming the key.
    """
    for name, value, known in (
        ("kind", config.kind, (kind,)),
        ("space", config.space, SPACES),
        ("prediction", config.prediction, PREDICTIONS),
    ):
        if value not in known:
            raise UserError(f"expected model.{name} {' or '.join(known)}, got {value!r}; change it")


def network_shape(
    config: DiffusionDecoderConfig,
    image_tokenizer: ImageTokenizer | None,
    scorer: Scorer,
    text_tokenizer: TextTokenizer | None,
) -> dict[str, Any]:
    """What a `PictureDenoiser` needs besides its config.

    Raises:
        UserError: there is no size for pixels, or the pictures of the image tokenizer are not square.
    """
    channels, side = 3, config.image_size
    if image_tokenizer is not None:
        height, side = image_tokenizer.config.grid
        if height != side:
            raise UserError(
                f"expected an image tokenizer of square pictures for latents, got {height}×{side} cells; use pixels"
            )
        channels = image_tokenizer.table().shape[1]
    if not side:
        raise UserError("expected model.image_size with space pixels, got 0; set it")
    text = {"text_vocab": 1, "pad_id": 0}
    if text_tokenizer is not None:
        text = {"text_vocab": text_tokenizer.vocab_size, "pad_id": text_tokenizer.pad_id}
    return {"channels": channels, "side": side, "embed_dim": scorer.model.embed_dim, **text}
