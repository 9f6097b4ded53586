"""DalleMini: prompt -> ranked pictures. The one file that knows every stage."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.checkpoint import settings
from dalle_mini_impl.checkpoint.find import find_checkpoint, load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import fingerprint
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.pipeline.canvas import Box, Canvas, Region, encode, make_canvas, vary
from dalle_mini_impl.pipeline.captions import CaptionModel, RankedCaption
from dalle_mini_impl.pipeline.previews import draw_previews
from dalle_mini_impl.pipeline.ranking import best
from dalle_mini_impl.pipeline.request import GenerationRequest, make_request
from dalle_mini_impl.pipeline.results import Preview, Result
from dalle_mini_impl.sampling.generate import CHUNK, GeneratedIds, Progress, generate, ignore
from dalle_mini_impl.sampling.likelihood import log_likelihood, text_log_likelihood
from dalle_mini_impl.sampling.packing import choose_precision, pack
from dalle_mini_impl.sampling.tiling import close_seams
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.caption_tokenizer import CaptionTokenizer
from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images


class DalleMini:
    """A loaded model: tokenizers, transformer and, where the checkpoint has one, a scorer.

    Args:
        text_tokenizer: str <-> text ids.
        image_tokenizer: pixels <-> image ids.
        transformer: the model over the stream.
        stream: its layout.
        scorer: ranks candidates; None leaves that to the transformer.
        sampling: default sampling settings.
        source: what results record about where they come from.
    """

    def __init__(
        self,
        text_tokenizer: CaptionTokenizer,
        image_tokenizer: ImageTokenizer,
        transformer: Transformer,
        stream: Stream,
        scorer: Scorer | None,
        sampling: SamplingConfig,
        source: dict[str, str],
    ) -> None:
        self.text_tokenizer, self.image_tokenizer = text_tokenizer, image_tokenizer
        self.transformer, self.stream, self._scorer = transformer, stream, scorer
        self.sampling, self.source = sampling, source
        self.caption_model = CaptionModel(text_tokenizer, transformer, stream)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto", precision: str = "auto") -> "DalleMini":
        """Load a shipped model, a checkpoint folder, or one on a hub.

        Args:
            name: `emoji`, a folder, or `hf:USER/REPO`, with `@REVISION` for another than the latest (extra `hub`).
            device: `auto`, `cpu`, `cuda`, `mps` …
            precision: of the transformer: `fp32`, `bf16`, `int8` (weights alone, CPU), or `auto`: bf16 on CUDA
                and on a CPU with a C compiler, fp32 elsewhere.

        Raises:
            UserError: the checkpoint is missing, incomplete or mixed, or there is no such device or precision.
        """
        folder, device = find_checkpoint(name), choose_device(device)
        transformer, stream = load_transformer(folder, device)
        precision = choose_precision(precision, transformer)
        pack(transformer, precision, Stream(stream).image_range)
        image_tokenizer = ImageTokenizer.from_pretrained(folder, device)
        return cls(
            load_text_tokenizer(folder),
            image_tokenizer,
            transformer,
            Stream(stream),
            Scorer.from_pretrained(folder, device) if (folder / "scorer.safetensors").is_file() else None,
            settings.load_settings(folder).sampling,
            {"model": str(name), "checkpoint": fingerprint(folder), "precision": precision},
        )

    @property
    def scorer(self) -> Scorer:
        """The CLIP scorer.

        Raises:
            UserError: the checkpoint has none.
        """
        if self._scorer is None:
            raise UserError(
                f"model {self.source.get('model')} has no scorer; train one with dalle_mini_impl.train.scorer"
            )
        return self._scorer

    def generate(
        self,
        prompt: str,
        candidates: int = 32,
        keep: int = 8,
        seed: int = 0,
        *,
        negative: str = "",
        seeds: Sequence[int] | None = None,
        chunk: int = CHUNK,
        progress: Progress = ignore,
        canvas: Canvas | None = None,
        **sampling: Any,
    ) -> Result:
        """Sample candidates, decode them, and keep the best.

        `rank` says which these are: `likelihood` those that the transformer itself finds likeliest given the prompt,
        `clip` those whose cosine with the prompt is highest, `both` the sum of the two, each in nats, and `none` keeps
        the order of the seeds. A model without scorer ranks by likelihood.
        With `prune` only a quarter of the candidates of each chunk, but at least `keep`, is drawn to the end: the
        less likely half is given up after 3/16 of what is to be drawn, and again after 7/16.
        With `tile` pictures can be laid side by side: the decoder's convolutions wrap around, and the edges are drawn
        again with what lies across in sight, where the model finds the rolled picture likelier so.

        Args:
            prompt: the caption, in any language the model knows.
            candidates: how many to sample.
            keep: how many to return; at most `candidates`.
            seed: of the run; each candidate's own seed follows from it.
            negative: what guidance steers away from instead of "no caption".
            seeds: the candidates' own seeds, instead of `seed` and `candidates`.
            chunk: candidates decoded at a time, which bounds memory.
            progress: told how many image ids each step has drawn.
            canvas: a picture some of which stays; see `complete` and `variations`, which make it.
            **sampling: `temperature`, `top_k`, `top_p`, `guidance`, `rank`, `prune`, `tile`; the model's recommendation
                where not given.

        Returns:
            The kept candidates, best first.

        Raises:
            UserError: a number is out of range, or a sampling setting is unknown.
        """
        request = self._request(
            prompt,
            candidates=candidates,
            keep=keep,
            seed=seed,
            negative=negative,
            seeds=seeds,
            chunk=chunk,
            progress=progress,
            canvas=canvas,
            **sampling,
        )
        return self._result(request, generate(self.transformer, self.stream, **request.drawing))

    def complete(
        self,
        picture: Image.Image,
        prompt: str = "",
        *,
        rows: int | None = None,
        box: Box | None = None,
        mask: Image.Image | None = None,
        panel: bool = False,
        paste: bool = True,
        **options: Any,
    ) -> Result:
        """Redraw some of a picture, given by one of `rows`, `box`, `mask` and `panel`, and keep the rest.

        Ids are drawn in raster order, and each sees only those above it and on its left. With `rows` that is all
        there is to see, and candidates are drawn from exactly what the model would draw next. What is kept further
        down is not seen while others are drawn: only ranking by likelihood, which is that of the whole picture,
        prefers candidates that go well with it. So sample many.

        Args:
            picture: of any size; cropped to the model's proportions, and white where transparent.
            prompt: what the whole picture shows.
            rows: keep this many rows of the token grid from the top.
            box: redraw this rectangle, in pixels of `picture`: left, top, right, bottom.
            mask: redraw where this picture, as large as `picture`, is white or transparent.
            panel: put the whole picture, squeezed, into the upper half and draw the lower one. Only a model trained
                on such pairs, one above the other, can be expected to follow.
            paste: put the original pixels back in all places of the grid that stay; otherwise they look as the image
                tokenizer has them.
            **options: all else that `generate` takes.

        Returns:
            The kept candidates, best first; `Result.source` is the picture as the model got it.

        Raises:
            UserError: as `generate`, or not one region was given, it does not fit the picture or is empty.
        """
        region = Region(rows, box, mask, panel)
        canvas = make_canvas(self.image_tokenizer, self.stream.config.grid, picture, region, paste)
        return self.generate(prompt, canvas=canvas, **options)

    def variations(self, picture: Image.Image, prompt: str = "", *, strength: float = 0.5, **options: Any) -> Result:
        """Pictures like a given one: each candidate draws some ids anew, chosen by its seed, and keeps the others.

        What is drawn before a kept id does not see it, so parts may fit badly; the likelihood looks at the whole.

        Args:
            picture: as `complete` has it.
            prompt: what it shows.
            strength: chance of each id to be drawn anew, in (0, 1]; at 1 nothing of the picture is left.
            **options: all else that `generate` takes.

        Raises:
            UserError: as `generate`, or the strength is out of range.
        """
        canvas = vary(self.image_tokenizer, self.stream.config.grid, picture, strength)
        return self.generate(prompt, canvas=canvas, **options)

    def stream_previews(self, prompt: str, *, show: int = 1, share: float = 0.05, **options: Any) -> Iterator[Preview]:
        """As `generate`, giving some of the pictures on the way, as often as little time allows.

        Args:
            prompt: the caption.
            show: how many of the candidates to show.
            share: of the time so far, 0 to 1, that previews may take; the first is made at once whatever it takes.
            **options: all else that `generate` takes.

        Yields:
            After some rows of the token grid what is there; at last the kept pictures, with their result.

        Raises:
            UserError: as `generate`, or `show` or `share` is out of range.
        """
        request = self._request(prompt, **options)
        drawn = yield from draw_previews(self.transformer, self.stream, request, self.decode, show=show, share=share)
        result = self._result(request, drawn)
        yield Preview(1.0, [candidate.image for candidate in result], result)

    def _request(self, prompt: str, **options: Any) -> GenerationRequest:
        """Check what `generate` was given."""
        recommended = self.sampling
        if self._scorer is None and recommended.rank != "none":
            recommended = dataclasses.replace(recommended, rank="likelihood")
        request = make_request(prompt, self.encode, recommended, **options)
        return request._replace(scorer=self.scorer) if request.settings.rank in ("clip", "both") else request

    def _result(self, request: GenerationRequest, drawn: GeneratedIds) -> Result:
        """The best of what was drawn, as pictures."""
        if request.settings.tile:
            free = (
                request.canvas.known.redraw if request.canvas else torch.ones(self.stream.config.grid, dtype=torch.bool)
            )
            drawn = close_seams(
                self.transformer,
                self.stream,
                request.ids,
                request.seeds,
                request.settings,
                drawn=drawn,
                free=free,
                chunk=request.chunk,
                progress=request.progress,
            )
        known = best(request, drawn, partial(self.decode, tile=request.settings.tile))
        picture = request.canvas.picture if request.canvas else None
        return Result(request.prompt, request.negative, known, {**self.source, **request.facts}, picture)

    def decode(self, image_ids: Tensor, tile: bool = False) -> list[Image.Image]:
        """Image ids (B, h, w) -> RGB pictures; with `tile` ones that can be laid side by side."""
        return to_images(self.image_tokenizer.decode(image_ids.to(self.transformer.device), tile))

    def log_likelihood(self, text: str, image_ids: Tensor) -> Tensor:
        """Log-probability of pictures (B, h, w) given a caption, "" for none: (B, h * w) nats, one per image id."""
        return log_likelihood(self.transformer, self.stream, self.encode(text), image_ids).cpu()

    def complete_text(self, beginning: str = "", **options: Any) -> list[tuple[str, float]]:
        """Captions that begin with a text, sampled, each with its nats, likeliest first; see `Writer.complete`."""
        return self.caption_model.complete(beginning, **options)

    def caption(
        self, picture: Image.Image, captions: Sequence[str] | None = None, **options: Any
    ) -> list[RankedCaption]:
        """Captions, given or sampled, by how much likelier they make a picture, best first; see `Writer.rank`."""
        _, image_ids = encode(self.image_tokenizer, self.stream.config.grid, picture)
        return self.caption_model.rank(image_ids, captions, **options)

    def text_log_likelihood(self, text: str) -> Tensor:
        """Log-probability of a caption: (text_length,) nats, one per text id or padding, all of them log p(text)."""
        return text_log_likelihood(self.transformer, self.stream, [self.encode(text)])[0].cpu()

    def encode(self, text: str) -> list[int]:
        """Text ids of a caption, cut with a warning where it is longer than the stream has room for."""
        return self.caption_model.encode(text)
