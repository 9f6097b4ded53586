"""DalleMini: prompt -> ranked pictures. The one file that knows every stage."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl import checkpoint
from dalle_mini_impl.canvas import Box, Canvas, Region, make_canvas, vary
from dalle_mini_impl.config import SamplingConfig
from dalle_mini_impl.config_io import from_dict, to_dict
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.generate import (
    CHUNK,
    Drawn,
    Progress,
    Prompt,
    Pruning,
    draw_rows,
    generate,
    ignore,
)
from dalle_mini_impl.image_tokenizer import ImageTokenizer
from dalle_mini_impl.images import to_images
from dalle_mini_impl.likelihood import log_likelihood
from dalle_mini_impl.packing import choose_precision, pack
from dalle_mini_impl.ranking import candidate_seed, likelihood_score, score_so_far
from dalle_mini_impl.results import Candidate, Preview, Result
from dalle_mini_impl.scorer import Scorer
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.text_tokenizer import TextTokenizer
from dalle_mini_impl.tile import close_seams
from dalle_mini_impl.transformer import Transformer


class Job(NamedTuple):
    """What to draw, checked."""

    prompt: str
    negative: str
    ids: Prompt
    seeds: Sequence[int]
    settings: SamplingConfig
    keep: int
    chunk: int
    progress: Progress
    canvas: Canvas | None

    @property
    def to_draw(self) -> tuple[Prompt, Sequence[int], SamplingConfig]:
        """What `generate` of the ids wants to know."""
        return self.ids, self.seeds, self.settings

    @property
    def pruning(self) -> Pruning | None:
        """How candidates are given up early, if at all."""
        return Pruning(score_so_far, self.keep) if self.settings.prune and self.settings.rank != "none" else None

    @property
    def how(self) -> dict[str, Any]:
        """The rest of what it wants to know."""
        return {"chunk": self.chunk, "pruning": self.pruning, "kept": self.canvas.kept if self.canvas else None}


class DalleMini:
    """A loaded model: tokenizers, transformer and, where the checkpoint has one, a scorer.

    Args:
        text_tokenizer: str <-> text ids.
        image_tokenizer: pixels <-> image ids.
        transformer: the model over the stream.
        stream: its layout.
        scorer: ranks candidates; None leaves them unranked.
        sampling: default sampling settings.
        source: what results record about where they come from.
    """

    def __init__(
        self, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer, transformer: Transformer,
        stream: Stream, scorer: Scorer | None, sampling: SamplingConfig, source: dict[str, str],
    ) -> None:  # fmt: skip
        self.text_tokenizer, self.image_tokenizer, self.transformer = (
            text_tokenizer,
            image_tokenizer,
            transformer,
        )
        self.stream, self.sampling, self.source = stream, sampling, source
        self._scorer = scorer

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto", precision: str = "auto") -> "DalleMini":
        """Load a shipped model or a checkpoint folder.

        Args:
            name: `emoji`, or a folder.
            device: `auto`, `cpu`, `cuda`, `mps` …
            precision: of the transformer: `fp32`, `bf16`, `int8` (weights alone, CPU), or `auto`: bf16 on CUDA
                and on a CPU with a C compiler, fp32 elsewhere.

        Raises:
            UserError: the checkpoint is missing, incomplete or mixed, or there is no such device or precision.
        """
        folder, device = checkpoint.find(name), choose_device(device)
        transformer, stream = checkpoint.load_transformer(folder, device)
        precision = choose_precision(precision, transformer)
        pack(transformer, precision, Stream(stream).image_range)
        image_tokenizer, _ = checkpoint.load_image_tokenizer(folder, device)
        has_scorer = (folder / "scorer.safetensors").is_file()
        return cls(
            checkpoint.load_text_tokenizer(folder), image_tokenizer, transformer, Stream(stream),
            checkpoint.load_scorer(folder, device) if has_scorer else None, checkpoint.load_settings(folder),
            {"model": str(name), "checkpoint": checkpoint.fingerprint(folder), "precision": precision},
        )  # fmt: skip

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

        `rank` says which these are: `likelihood` (the default) those that the transformer itself finds likely given
        the prompt and less so without it, `clip` those whose cosine with the prompt is highest, `both` the sum of
        the two, each in nats, and `none` keeps the order of the seeds. A model without scorer ranks by likelihood.
        With `prune` only a quarter of the candidates of each chunk, but at least `keep`, is drawn to the end: the
        weaker half by likelihood so far is given up after a quarter of the picture, and again after half of it.
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
        job = self._job(prompt, candidates, keep, seed, negative, seeds, chunk, progress, canvas, **sampling)
        drawn = generate(self.transformer, self.stream, *job.to_draw, progress=progress, **job.how)
        return self._ranked(job, drawn)

    def complete(
        self, picture: Image.Image, prompt: str = "", *, rows: int | None = None, box: Box | None = None,
        mask: Image.Image | None = None, panel: bool = False, paste: bool = True, **options: Any,
    ) -> Result:  # fmt: skip
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

        A kept id is not seen by what is drawn before it, so parts may fit badly; ranking by likelihood looks at the
        whole.

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
        if show < 1 or not 0 <= share <= 1:
            raise UserError(f"show {show} and share {share} were given; expected at least 1, and 0 to 1")
        job, ids_drawn = self._job(prompt, **options), 0

        def progress(ids: int) -> None:
            nonlocal ids_drawn
            ids_drawn += ids
            job.progress(ids)

        rows = draw_rows(self.transformer, self.stream, *job.to_draw, progress=progress, **job.how)
        start, spent, longest = time.perf_counter(), 0.0, 0.0
        while True:
            try:
                ids = next(rows)[:show]
            except StopIteration as end:
                result = self._ranked(job, end.value)
                yield Preview(1.0, [candidate.image for candidate in result], result)
                return
            before = time.perf_counter()
            if spent + longest < share * (before - start) and ids_drawn < len(job.seeds) * self.stream.image_length:
                images = self._unfinished(ids)
                took = time.perf_counter() - before
                spent, longest = spent + took, max(longest, took)
                yield Preview(ids_drawn / (len(job.seeds) * self.stream.image_length), images)

    def _unfinished(self, ids: Tensor) -> list[Image.Image]:
        """Pictures of the first rows of their ids (n, r, w), the rest white."""
        missing = self.stream.config.grid[0] - ids.shape[1]
        # Ids to come also shape the pixels beside them: more of the same is the likeliest.
        images = self.decode(torch.cat([ids, ids[:, -1:].expand(-1, missing, -1)], 1))
        for image in images:
            top = image.height * ids.shape[1] // self.stream.config.grid[0]
            image.paste("white", (0, top, image.width, image.height))
        return images

    def _job(
        self, prompt: str, candidates: int = 32, keep: int = 8, seed: int = 0, negative: str = "",
        seeds: Sequence[int] | None = None, chunk: int = CHUNK, progress: Progress = ignore,
        canvas: Canvas | None = None, **sampling: Any,
    ) -> Job:  # fmt: skip
        """Check what `generate` was given."""
        if candidates < 1 or keep < 1:
            raise UserError(f"candidates {candidates} and keep {keep} were given; both must be at least 1")
        if seed < 0:
            raise UserError(f"seed {seed} was given, expected 0 or more")
        if seeds is None:
            seeds = [candidate_seed(seed, number) for number in range(candidates)]
        if not seeds or not all(0 <= number < 2**63 for number in seeds):
            raise UserError(f"seeds {list(seeds)} were given; expected one or more, each from 0 to 2**63 - 1")
        settings = self._sampling(sampling)
        if settings.rank in ("clip", "both"):
            _ = self.scorer  # refused before anything is drawn
        ids = Prompt(self.encode(prompt), self.encode(negative))
        return Job(prompt, negative, ids, seeds, settings, keep, chunk, progress, canvas)

    def _ranked(self, job: Job, drawn: Drawn) -> Result:
        """The best of what was drawn, as pictures."""
        rank = job.settings.rank
        if job.settings.tile:
            drawn = self._closed(job, drawn)
        pictures = self._pictures(drawn.image_ids, job) if rank in ("clip", "both") else []
        order, scores = list(range(len(drawn.numbers))), [None] * len(drawn.numbers)
        if rank != "none":
            values = self._scores(rank, job.prompt, pictures, drawn, job.chunk)
            order, scores = values.argsort(descending=True, stable=True).tolist(), values.tolist()
        order = order[: job.keep]
        # Decoding all takes about as long as sampling them: what nobody asks to see is left out.
        images = [pictures[i] for i in order] if pictures else self._pictures(drawn.image_ids[order], job)
        ids, seeds = drawn.image_ids.cpu(), [job.seeds[number] for number in drawn.numbers.tolist()]
        kept = (Candidate(image, scores[i], seeds[i], ids[i]) for i, image in zip(order, images, strict=True))
        settings = {**self.source, "sampling": to_dict(job.settings)}
        if job.canvas is None:
            return Result(job.prompt, job.negative, tuple(kept), settings)
        settings["canvas"] = job.canvas.settings
        return Result(job.prompt, job.negative, tuple(kept), settings, job.canvas.picture)

    def _closed(self, job: Job, drawn: Drawn) -> Drawn:
        free = job.canvas.kept.redraw if job.canvas else torch.ones(self.stream.config.grid, dtype=torch.bool)
        return close_seams(
            self.transformer, self.stream, *job.to_draw, drawn=drawn, free=free, chunk=job.chunk, progress=job.progress
        )

    def _pictures(self, image_ids: Tensor, job: Job) -> list[Image.Image]:
        images = [image for part in image_ids.split(job.chunk) for image in self.decode(part, job.settings.tile)]
        return [job.canvas.finish(image) for image in images] if job.canvas else images

    def _scores(self, rank: str, prompt: str, images: list[Image.Image], drawn: Drawn, chunk: int) -> Tensor:
        """What candidates are ordered by, (N,); see `generate`. `images` are needed where the scorer is."""
        cosines = self.scorer.cosines(images, prompt) if images else torch.zeros(len(drawn.image_ids))
        if rank == "clip":
            return cosines
        given, null = drawn.likelihood[:, 0], drawn.likelihood[:, -1]
        if drawn.likelihood.shape[1] == 1:  # without guidance, nothing has run without the caption yet
            null = torch.cat([self.log_likelihood("", part).sum(1) for part in drawn.image_ids.split(chunk)])
        likelihood = likelihood_score(given.cpu(), null.cpu())
        return likelihood + self.scorer.scale * cosines if rank == "both" else likelihood

    def decode(self, image_ids: Tensor, tile: bool = False) -> list[Image.Image]:
        """Image ids (B, h, w) -> RGB pictures; with `tile` ones that can be laid side by side."""
        device = self.transformer.embed.weight.device
        return to_images(self.image_tokenizer.decode(image_ids.to(device), tile))

    def log_likelihood(self, text: str, image_ids: Tensor) -> Tensor:
        """How likely the model finds pictures given a caption.

        Args:
            text: the caption; "" for none.
            image_ids: (B, h, w).

        Returns:
            (B, h * w) nats per image id, at most 0.
        """
        return log_likelihood(self.transformer, self.stream, self.encode(text), image_ids).cpu()

    def encode(self, text: str) -> list[int]:
        """Text ids of a caption, cut with a warning where it is longer than the stream has room for."""
        return self.text_tokenizer.cut(self.text_tokenizer.encode(text), self.stream.config.text_length, text)

    def _sampling(self, changes: dict[str, Any]) -> SamplingConfig:
        unknown = set(changes) - {field.name for field in dataclasses.fields(SamplingConfig)}
        if unknown:
            raise UserError(f"unknown sampling setting {sorted(unknown)[0]!r}; "
                            f"known are {', '.join(f.name for f in dataclasses.fields(SamplingConfig))}")  # fmt: skip
        given = {name: value for name, value in changes.items() if value is not None}
        if self._scorer is None and "rank" not in given and self.sampling.rank != "none":
            given["rank"] = "likelihood"
        return from_dict(SamplingConfig, {**to_dict(self.sampling), **given}, "sampling")


def choose_device(name: str) -> str:
    """Resolve `auto` to the best device there is, and check any other.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return name
