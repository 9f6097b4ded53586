"""DalleMini: prompt -> ranked pictures. The one file that knows every stage; `pipeline/__init__` lists them."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dalle_mini_impl.pipeline.call import call
from dalle_mini_impl.pipeline.canvas import Box, Canvas, Region, completion_canvas, encode_picture, variation_canvas
from dalle_mini_impl.pipeline.captions import RankedCaption
from dalle_mini_impl.pipeline.drawing import draw, finish_ids, prepare
from dalle_mini_impl.pipeline.parts import Parts, load_parts
from dalle_mini_impl.pipeline.picture_embed import Embedding
from dalle_mini_impl.pipeline.previews import generate_previews
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Preview, Result
from dalle_mini_impl.sampling.generate import Progress, no_progress
from dalle_mini_impl.sampling.likelihood import log_likelihood, text_log_likelihood
from dalle_mini_impl.util.images import to_images


class DalleMini(Parts):
    """A loaded model: tokenizers, transformer and, where the checkpoint has them, a scorer and parts of DALL-E 2.

    `Parts` says what it is made of.
    """

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
        return cls(**load_parts(name, device, precision))

    __call__ = call

    def generate(
        self,
        prompt: str,
        candidates: int = 32,
        keep: int = 8,
        seed: int = 0,
        *,
        negative: str = "",
        image_embed: Embedding | Image.Image | None = None,
        seeds: Sequence[int] | None = None,
        chunk: int | None = None,
        progress: Progress = no_progress,
        canvas: Canvas | None = None,
        **sampling: Any,
    ) -> Result:
        """Sample candidates, decode them, and keep the best.

        `rank` says which are best: with `likelihood` those to which the transformer itself gives the highest
        log-probability given the prompt, with `clip` those whose CLIP embedding has the highest cosine with the
        prompt's, with `both` those with the highest sum of log-probability and scaled cosine, which counts
        `clip_weight` times; `none` keeps the order of the seeds. `auto` is `both` where the model has a scorer. A model
        without scorer ranks by likelihood.
        With `diversity` the first picture is the best, each further one good and unlike those before: a cosine to the
        nearest of them counts against it as much as `diversity` times that cosine to the prompt counts for it.
        With `prune` only a quarter of the candidates of each chunk, but at least `keep`, is finished: the less likely
        half is dropped after 3/16 of the ids to sample, and again after 7/16.
        With `tile` pictures can be laid side by side: the decoder's convolutions wrap around, and the ids at the edges
        are sampled again with the opposite edge in their context, where that makes the rolled picture likelier.
        With `prior` each candidate gets an image embedding of its own, drawn for the prompt (DALL-E 2), and with
        `decoder="diffusion"` a U-Net draws the pictures of these, which only `clip` ranks.

        Args:
            prompt: the caption, in any language the model was trained on; cut with a warning where it is too long.
            candidates: how many to sample.
            keep: how many to return at most.
            seed: of the run; each candidate's own seed follows from it.
            negative: what guidance moves away from; "" means "no caption".
            image_embed: (D,) what the picture is to show, as the checkpoint's scorer embeds it, or a picture that it
                embeds; only for models that were trained with such embeddings. With the prompt "" it is also what
                candidates are ranked by.
            seeds: the candidates' own seeds, instead of `seed` and `candidates`.
            chunk: candidates decoded at a time, which bounds memory and changes nothing else, but that each chunk is
                pruned by itself; None is 64, or on CUDA what fits.
            progress: called with the number of image ids that each step has sampled; all calls add up to every id of
                every candidate, four times that with `tile`. With `decoder="diffusion"` pictures count, in each step.
            canvas: a picture some of whose ids are known; `complete` and `variations` make one.
            **sampling: settings of `SamplingConfig`; the model's recommendation where left out or None.

        Returns:
            The kept candidates, best first.

        Raises:
            UserError: a number is out of range, a sampling setting is unknown, the model was trained without image
                embeddings or with others, or `rank`, `diversity` or `prior` needs a scorer and there is none.
        """
        request = {"prompt": prompt, "candidates": candidates, "keep": keep, "seed": seed, "negative": negative}
        request |= {"image_embed": image_embed, "seeds": seeds, "canvas": canvas, **sampling}
        return next(self.generate_many([request], chunk=chunk, progress=progress))

    def generate_many(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        chunk: int | None = None,
        progress: Progress = no_progress,
        **options: Any,
    ) -> Iterator[Result]:
        """As `generate` for many prompts, which are decoded together where their candidates fit into a chunk.

        Each result is the one that `generate` returns for its prompt alone. Prompts are read as they are needed and
        results are not kept, so there may be any number of them.

        Args:
            prompts: captions, or arguments of `generate` by name: `prompt`, and those that differ from the options.
            chunk: candidates decoded at a time, of all prompts together; see `generate`.
            progress: see `generate`.
            **options: all other arguments of `generate`, for all prompts.

        Yields:
            The result of each prompt, in their order.

        Raises:
            UserError: as `generate`.
        """

        def requests() -> Iterator[GenerationRequest]:
            for item in prompts:
                given = {"prompt": item} if isinstance(item, str) else item
                yield self.request(**{**options, **given}, chunk=chunk, progress=progress)

        return draw(self, requests(), chunk, progress)

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
        """Redraw a part of a picture, given by one of `rows`, `box`, `mask` and `panel`, and keep the rest.

        Ids are sampled in raster order, each conditioned on those above it and on its left; in a model over patches of
        ids, patch by patch. With `rows`, a multiple of the patches' height, these are all the known ids, so candidates
        follow exactly the model's distribution given them. Known ids further down are not in the context of the sampled
        ones: only ranking by likelihood, which is that of the whole picture, prefers candidates that fit them. So
        sample many.

        Args:
            picture: of any size; cropped to the model's proportions, and white where transparent.
            prompt: what the whole picture shows.
            rows: keep this many rows of the token grid from the top.
            box: redraw this rectangle, in pixels of `picture`: left, top, right, bottom.
            mask: redraw where this picture, as large as `picture`, is white or transparent.
            panel: put the whole picture, squeezed, into the upper half and generate the lower one. This needs a model
                that was trained on such pairs, one above the other.
            paste: put the original pixels back in all cells of the token grid that are kept; otherwise they show the
                image tokenizer's reconstruction.
            **options: all other arguments of `generate`.

        Returns:
            The kept candidates, best first; `Result.source` is the picture at the model's size.

        Raises:
            UserError: as `generate`, or there is not exactly one region, it does not fit the picture or is empty.
        """
        region = Region(rows, box, mask, panel)
        canvas = completion_canvas(self.image_tokenizer, self.stream.config.grid, picture, region, paste)
        return self.generate(prompt, canvas=canvas, **options)

    def variations(self, picture: Image.Image, prompt: str = "", *, strength: float = 0.5, **options: Any) -> Result:
        """Generate pictures like a given one: each candidate redraws cells chosen by its seed and keeps the others.

        An id is not conditioned on kept ids after it, so parts may fit badly; the likelihood is of the whole picture.

        Args:
            picture: see `complete`.
            prompt: what it shows.
            strength: probability, in (0, 1], that an id is sampled anew; 1 keeps nothing of the picture.
            **options: all other arguments of `generate`.

        Returns:
            The kept candidates, best first; `Result.source` is the picture at the model's size.

        Raises:
            UserError: as `generate`, or the strength is out of range.
        """
        canvas = variation_canvas(self.image_tokenizer, self.stream.config.grid, picture, strength)
        return self.generate(prompt, canvas=canvas, **options)

    def stream_previews(self, prompt: str, *, show: int = 1, share: float = 0.05, **options: Any) -> Iterator[Preview]:
        """As `generate`, but yields unfinished pictures on the way, as often as a given fraction of the time allows.

        Args:
            prompt: the caption.
            show: how many of the candidates to show.
            share: fraction of the time so far, 0 to 1, that previews may take; the first one is made at once.
            **options: all other arguments of `generate`.

        Yields:
            The pictures so far, after some rows of the token grid, or of cells where a row takes longer than a second;
            at the end those that are kept, with the result that `generate` returns.

        Raises:
            UserError: as `generate`, or `show` or `share` is out of range.
        """
        request = self.request(prompt, **options)
        if request.sampling.decoder == "diffusion":
            (result,) = draw(self, [request], None, request.progress)
            yield Preview(1.0, [candidate.image for candidate in result], result)
            return
        model = self.transformer, self.stream
        generated = yield from generate_previews(*model, request, self.decode, show=show, share=share)
        result = finish_ids(self, request, generated)
        yield Preview(1.0, [candidate.image for candidate in result], result)

    def request(self, prompt: str, **options: Any) -> GenerationRequest:
        """Check arguments of `generate`; those that are left out have the defaults of its signature."""
        bound = inspect.signature(self.generate).bind(prompt, **options)
        bound.apply_defaults()
        return prepare(self, bound.arguments)

    def decode(self, image_ids: Tensor, tile: bool = False) -> list[Image.Image]:
        """Image ids -> RGB pictures.

        Args:
            image_ids: (B, h, w) in [0, K).
            tile: wrap the decoder's convolutions around, so that the pictures can be laid side by side.
        """
        return to_images(self.image_tokenizer.decode(image_ids.to(self.device), tile))

    def log_likelihood(self, text: str, image_ids: Tensor) -> Tensor:
        """Log-probability of each image id given a caption and the ids before it.

        Args:
            text: the caption; "" means "no caption".
            image_ids: (B, h, w) in [0, K).

        Returns:
            (B, h * w) nats, at most 0; the sum of a row is log p(picture | text).
        """
        return log_likelihood(self.transformer, self.stream, self.encode(text), image_ids).cpu()

    def complete_text(self, beginning: str = "", **options: Any) -> list[tuple[str, float]]:
        """Sample captions that begin with a text.

        Args:
            beginning: of all captions; "" leaves all of the caption to the model.
            **options: `candidates`, `keep`, `seed`, `temperature`, `top_k`, `top_p`, `chunk`; see
                `CaptionModel.complete`.

        Returns:
            Captions with their log-probabilities in nats, likeliest first.
        """
        return self.caption_model.complete(beginning, **options)

    def caption(
        self, picture: Image.Image, captions: Sequence[str] | None = None, **options: Any
    ) -> list[RankedCaption]:
        """Rank captions by how much likelier they make a picture.

        Args:
            picture: of any size; cropped to the model's proportions, and white where transparent.
            captions: to choose from; None samples some.
            **options: `keep`, `blind`, `prior`, and for sampling `beginning`, `candidates`, `seed`, `temperature`,
                `top_k`, `top_p`, `chunk`; see `CaptionModel.rank`.

        Returns:
            Captions, best first.
        """
        _, image_ids = encode_picture(self.image_tokenizer, self.stream.config.grid, picture)
        return self.caption_model.rank(image_ids, captions, **options)

    def text_log_likelihood(self, text: str) -> Tensor:
        """Log-probability of each id of a caption, padding included, given the ids before it.

        Returns:
            (text_length,) nats, at most 0; their sum is log p(text).
        """
        return text_log_likelihood(self.transformer, self.stream, [self.encode(text)])[0].cpu()

    def encode(self, text: str) -> list[int]:
        """Text ids of a caption, cut with a warning where it is longer than the stream's text positions."""
        return self.caption_model.encode(text)
