"""The parts of a checkpoint that a `DalleMini` is made of, and how they are loaded."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from dalle_mini_impl.checkpoint import settings
from dalle_mini_impl.checkpoint.find import find_checkpoint, load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import PARTS, fingerprint
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.captions import CaptionModel
from dalle_mini_impl.pipeline.ranking import describe_scorer
from dalle_mini_impl.sampling.packing import choose_precision, pack
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.caption_tokenizer import CaptionTokenizer
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file

Part = TypeVar("Part")


class Needed(Generic[Part]):
    """An attribute of `Parts` that may be None, which is told when it is read.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute = attribute

    def __set__(self, parts: "Parts", part: Part | None) -> None:
        vars(parts)[self.attribute] = part

    def __get__(self, parts: "Parts | None", owner: type) -> Part:
        if parts is None:
            return self  # type: ignore[return-value]
        part: Part | None = vars(parts)[self.attribute]
        if part is None:
            raise UserError(
                f"expected a checkpoint with {self.name}, got {parts.source['model']}, whose diffusion decoder draws "
                f"alone; name another one for this"
            )
        return part


class Parts:
    """What a checkpoint holds. A part that it lacks is told when it is first needed.

    Args:
        text_tokenizer: str <-> text ids.
        image_tokenizer: pixels <-> image ids; None for none, where a diffusion decoder draws pixels.
        transformer: the model over the stream; None for none, where a diffusion decoder draws.
        stream: its layout; None with the transformer.
        scorer: the checkpoint's own CLIP scorer; None leaves ranking to the transformer's likelihood.
        sampling: recommended sampling settings.
        source: what results record about the model: `model`, `checkpoint` (a hash) and `precision`.
        prior: draws image embeddings of that scorer for prompts (DALL-E 2); None for none.
        load_diffusion_decoder: loads, when it is first needed, what draws pictures of these in place of the
            transformer; None for none.
    """

    image_tokenizer = Needed[ImageTokenizer]("an image tokenizer")
    transformer = Needed[Decoder]("a transformer")
    stream = Needed[Stream]("a transformer")

    def __init__(
        self,
        text_tokenizer: CaptionTokenizer,
        image_tokenizer: ImageTokenizer | None,
        transformer: Decoder | None,
        stream: Stream | None,
        scorer: Scorer | None,
        sampling: SamplingConfig,
        source: dict[str, str],
        prior: Prior | None = None,
        load_diffusion_decoder: Callable[[], DiffusionDecoder | None] = lambda: None,
    ) -> None:
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer, self.transformer, self.stream = image_tokenizer, transformer, stream
        self.sampling = sampling
        self.source, self.prior, self._load_diffusion_decoder = source, prior, load_diffusion_decoder
        self._scorer = self.own_scorer = scorer
        self.scorer_source: dict[str, str] | None = None
        """What results record of a scorer that was set: name and identity; None for the checkpoint's own."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parts = (*(vars(self)[name] for name in ("transformer", "image_tokenizer")), self.own_scorer)
        return torch.device(next(part.device for part in parts if part is not None))

    @property
    def caption_model(self) -> CaptionModel:
        """Samples and ranks captions by the transformer."""
        return CaptionModel(self.text_tokenizer, self.transformer, self.stream)

    @cached_property
    def diffusion_decoder(self) -> DiffusionDecoder | None:
        """Draws pictures of image embeddings in place of the transformer (extra `unclip`); None where there is none.

        Raises:
            UserError: `diffusers` is not installed, or the checkpoint's decoder is damaged or does not belong to it.
        """
        return self._load_diffusion_decoder()

    @property
    def scorer(self) -> Scorer:
        """The CLIP scorer that ranks; the checkpoint's own until another one is set.

        Setting one changes no picture, only which are kept and in which order: candidates are ranked by likelihood and
        scorer (`rank="both"`) unless `rank`, or the checkpoint's recommendation of `clip`, says otherwise. It may be on
        another device than the model. None leaves ranking to the likelihood.

        Raises:
            UserError: there is none, or what is set is no `Scorer`.
        """
        if self._scorer is None:
            raise UserError(
                f"expected a checkpoint with a scorer, got {self.source.get('model')}, which has none; train one with "
                f"dalle train scorer, or rank by another: --scorer NAME, or in Python DalleMini.scorer = ..."
            )
        return self._scorer

    @scorer.setter
    def scorer(self, scorer: Scorer | None) -> None:
        self.scorer_source = None if scorer is self.own_scorer else describe_scorer(scorer)
        self._scorer = scorer

    @property
    def has_scorer(self) -> bool:
        """Whether candidates can be ranked by a CLIP scorer."""
        return self._scorer is not None


def load_parts(name: str | Path, device: str, precision: str) -> dict[str, Any]:
    """The arguments of `DalleMini`; see `DalleMini.from_pretrained`.

    A checkpoint with a diffusion decoder needs no transformer; then that decoder is recommended.
    """
    folder = find_checkpoint(name)
    device = choose_device(device)
    has = {part: is_file(folder / f"{part}.safetensors") for part in PARTS}
    scorer = image_tokenizer = transformer = stream = None
    diffuses_alone = has["diffusion_decoder"] and not has["transformer"]
    if has["scorer"] or diffuses_alone:  # which needs one, and says so if there is none
        scorer = Scorer.from_pretrained(folder, device)
    if not diffuses_alone:
        whole, config = load_transformer(folder, device)
        stream = Stream(config)
        precision = choose_precision(precision, whole)
        transformer = pack(whole, precision, stream.image_range)
        del whole  # frees the weights that the packed one does not share
    elif precision not in ("auto", "fp32"):
        raise UserError(f"expected precision auto or fp32 without a transformer, got {precision!r}; leave it out")
    else:
        precision = "fp32"
    if has["image_tokenizer"] or not diffuses_alone:
        image_tokenizer = ImageTokenizer.from_pretrained(folder, device)
    sampling = settings.load_settings(folder).sampling
    if diffuses_alone:
        sampling = dataclasses.replace(sampling, decoder="diffusion")
    return {
        "text_tokenizer": load_text_tokenizer(folder),
        "image_tokenizer": image_tokenizer,
        "transformer": transformer,
        "stream": stream,
        "scorer": scorer,
        "sampling": sampling,
        "source": {"model": str(name), "checkpoint": fingerprint(folder), "precision": precision},
        "prior": Prior.find(folder, scorer, device),
        "load_diffusion_decoder": partial(DiffusionDecoder.find, folder, scorer, image_tokenizer, device),
    }
