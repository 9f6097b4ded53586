"""A prior with all that it needs: captions in, image embeddings out."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import Part, check_trained_with, load_module, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.sampling import PriorSamplingConfig, SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.prior import AnyPrior, ARPrior, DiffusionPrior
from dalle_mini_impl.sampling.next_ids import RowSettings, guide, next_ids
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.unclip.schedule import check_steps, make_scheduler, noise_generator, remove_noise
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file

SPACE = "embeddings"
"""Name in `trained_with` of a prior for the identity of the scorer as `scorer_identity` has it: that of any scorer."""
CHUNK = 128
"""Embeddings drawn at a time, which bounds memory."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Draws image embeddings for captions.

    Raises:
        UserError: the sampling settings are out of range.
    """

    network: AnyPrior
    scorer: Scorer
    """Whose embeddings are drawn."""
    text_tokenizer: TextTokenizer
    sampling: PriorSamplingConfig
    identity: str = ""
    """Of the part; empty for one that is being trained."""

    def __post_init__(self) -> None:
        check_steps(self.sampling.sampler, self.sampling.steps, "sampling.")

    @classmethod
    def from_pretrained(cls, name: str | Path, scorer: Scorer, device: str = "cpu") -> "Prior":
        """Load the prior of a checkpoint.

        Args:
            name: shipped name, checkpoint folder or `hf:USER/REPO`.
            scorer: the one that it was trained with.
            device: where to compute.

        Raises:
            UserError: there is no prior, or it was trained with another scorer or text tokenizer.
        """
        folder = find_checkpoint(name)
        part = read_part(folder, "prior")
        tokenizer = TextTokenizer(folder / TEXT_TOKENIZER_FILE)
        check_trained_with(part, "text_tokenizer", tokenizer.identity)
        check_embeddings(part, scorer)
        config = from_dict(PriorConfig, part.config.get("prior"), f"{part.path}: prior")
        sampling = from_dict(PriorSamplingConfig, part.config.get("sampling"), f"{part.path}: sampling")
        check_ranges(sampling, "sampling")
        shape = {"embed_dim": scorer.model.embed_dim, "text_vocab": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
        network = load_module(lambda: build_prior(config, **shape), part, device)
        return cls(network, scorer, tokenizer, sampling, part.identity)

    @classmethod
    def find(cls, folder: Path, scorer: Scorer | None, device: str = "cpu") -> "Prior | None":
        """The prior in a checkpoint folder, if there is one over the embeddings of the scorer beside it.

        Warns of one over those of another scorer, which no transformer beside it can draw.

        Raises:
            UserError: as `from_pretrained`.
        """
        if scorer is None or not is_file(folder / "prior.safetensors"):
            return None
        part = read_part(folder, "prior", weights=False)
        if "scorer" in part.trained_with:
            return cls.from_pretrained(folder, scorer, device)
        warnings.warn(
            f"{part.path} is not used: it draws embeddings of scorer {part.trained_with.get(SPACE)}, not of the "
            f"checkpoint's own, {scorer_identity(scorer)}",
            stacklevel=2,
        )
        return None

    @property
    def kind(self) -> str:
        """`diffusion` or `ar`."""
        return "diffusion" if isinstance(self.network, DiffusionPrior) else "ar"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.trunk.positions.device

    def draw(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Draw one image embedding for each caption.

        As often as `sampling.draws` says, and the one with the highest cosine with the text embedding is kept. Each
        depends on its own caption and seed.

        Args:
            texts: n captions.
            seeds: one of each.

        Returns:
            (n, D) fp32 on the CPU, L2-normalised.

        Raises:
            UserError: there are not as many seeds as captions, or the sampler is one of `diffusers`, which is not
                installed.
        """
        if len(texts) != len(seeds) or not texts:
            raise UserError(f"expected one seed for each of some texts, got {len(texts)} texts and {len(seeds)} seeds")
        size = max(1, CHUNK // self.sampling.draws)
        parts = [slice(start, start + size) for start in range(0, len(texts), size)]
        return torch.cat([self._draw(texts[part], seeds[part]) for part in parts])

    @torch.inference_mode()
    def _draw(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        texts = [clean_caption(text) for text in texts]
        length, draws = self.network.text_length, self.sampling.draws
        with warnings.catch_warnings():  # the transformer, which reads the same captions, says what is cut
            warnings.simplefilter("ignore")
            text_embed = self.scorer.embed_texts(texts)
            text_ids = self.text_tokenizer.encode_batch(texts, length, add_eos=True)
        generators = [noise_generator(seed, number) for seed in seeds for number in range(draws)]
        rows = torch.arange(len(texts)).repeat_interleave(draws)
        arguments = (text_ids[rows].to(self.device), text_embed[rows].to(self.device), self.sampling, generators)
        if isinstance(self.network, ARPrior):
            embed = draw_components(self.network, *arguments)
        else:
            embed = denoise(self.network, *arguments)
        embed = embed.float().cpu().view(len(texts), draws, -1)
        nearest = (embed @ text_embed[:, :, None])[..., 0].argmax(1)
        return embed[torch.arange(len(texts)), nearest].clone()


def check_embeddings(part: Part, scorer: Scorer) -> None:
    """Refuse a scorer other than the one whose embeddings a part was trained with.

    Raises:
        UserError: naming the identities of both.
    """
    expected, got = part.trained_with.get(SPACE), scorer_identity(scorer)
    if expected != got:
        raise UserError(
            f"{part.path} was trained with embeddings of scorer {expected}, but those of {got} were given; use the "
            f"scorer it was trained with, or train it again"
        )


def denoise(
    network: DiffusionPrior,
    text_ids: Tensor,
    text_embed: Tensor,
    sampling: PriorSamplingConfig,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw embeddings (n, D) from a diffusion prior.

    Args:
        network: in evaluation mode.
        text_ids: (n, L) of the captions.
        text_embed: (n, D) of the same captions.
        sampling: sampler, steps and guidance.
        generators: of the noise of each.
    """
    noise = [torch.randn(network.embed_dim, generator=generator) for generator in generators]
    x = torch.stack(noise).to(text_embed)
    predict = _guided(network, sampling.guidance, text_ids, text_embed)
    if sampling.sampler == "ddim":
        return network.unscale(remove_noise(predict, x, sampling.steps))
    scheduler = make_scheduler(sampling.sampler, steps=sampling.steps)
    for time in scheduler.timesteps:
        times = time.to(x.device).expand(len(x))
        x = scheduler.step(predict(x, times), time, x, generator=list(generators)).prev_sample
    return network.unscale(x)


def draw_components(
    network: ARPrior,
    text_ids: Tensor,
    text_embed: Tensor,
    sampling: PriorSamplingConfig,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw embeddings (n, D) from an autoregressive prior; arguments as for `denoise`.

    The dot product with the text embedding is drawn from the upper half of those in training, as in the paper.
    """
    uniforms = torch.stack([torch.rand(1 + network.components, generator=each) for each in generators])
    uniforms = uniforms.to(text_embed.device)
    half = network.buckets // 2
    dot_ids = half + (uniforms[:, 0] * (network.buckets - half)).long()
    settings = RowSettings.of([SamplingConfig(temperature=sampling.temperature)] * len(uniforms), text_embed.device)
    ids = torch.empty(len(uniforms), 0, dtype=torch.int64, device=text_embed.device)
    none = torch.full_like(dot_ids, network.buckets)
    past, past_of_none = network.new_past(), network.new_past()
    for number in range(network.components):
        logits = network(ids, dot_ids, text_ids, text_embed, past)[:, -1]
        if sampling.guidance != 1:
            unconditional = network(ids, none, *no_caption(network, text_ids, text_embed), past_of_none)[:, -1]
            logits = guide(logits, unconditional, sampling.guidance)
        ids = torch.cat([ids, next_ids(logits, uniforms[:, 1 + number], settings)[:, None]], 1)
    return network.embed(ids)


def no_caption(network: AnyPrior, text_ids: Tensor, text_embed: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for "no caption" in place of text ids and text embeddings."""
    return torch.full_like(text_ids, network.pad_id), torch.zeros_like(text_embed)


def _guided(
    network: DiffusionPrior, scale: float, text_ids: Tensor, text_embed: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network's prediction given captions, from noised embeddings and times."""
    none = no_caption(network, text_ids, text_embed)
    past, past_of_none = network.new_past(), network.new_past()

    def predict(noised: Tensor, times: Tensor) -> Tensor:
        given = network(noised, times, text_ids, text_embed, past)
        return given if scale == 1 else guide(given, network(noised, times, *none, past_of_none), scale)

    return predict
