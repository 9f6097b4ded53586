"""Fields that several tabs have: how pictures are sampled and ranked."""

import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

from dalle_mini_impl.app import html
from dalle_mini_impl.app.limits import KEPT, MAX_CANDIDATES, MAX_SEED, number_problem
from dalle_mini_impl.app.shared import Shared, Update
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.config.sampling import RANKS
from dalle_mini_impl.pipeline.canvas import Canvas, model_size
from dalle_mini_impl.pipeline.previews import first_preview
from dalle_mini_impl.pipeline.results import Candidate, Result, picture_text
from dalle_mini_impl.util.errors import UserError

PREVIEW_SHARE = 0.2
"""Fraction of the time that unfinished pictures may take."""
CANDIDATES = 32
"""Candidates of a request by default, as of `dalle sample`."""


class SamplingFields:
    """The fields for candidates, seed, guidance, temperature, rank and diversity."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        recommended = shared.dalle.sampling
        self.ranks = RANKS if shared.dalle.has_scorer else ("auto", "likelihood", "none")
        with gr.Accordion("Settings", open=False):
            self.candidates = gr.Slider(
                1, MAX_CANDIDATES, CANDIDATES, step=1, label="Candidates", info=f"The {KEPT} best are shown."
            )
            self.seed = gr.Number(0, precision=0, label="Seed", info="The same seed draws the same pictures.")
            self.guidance = gr.Slider(
                0, 10, recommended.guidance, step=0.1, label="Guidance", info="How closely to follow the words."
            )
            self.temperature = gr.Slider(
                0, 2, recommended.temperature, step=0.05, label="Temperature", info="0 takes the likeliest id."
            )
            self.rank = gr.Dropdown(
                list(self.ranks), value="auto", label="Rank by", info="auto: what the model recommends."
            )
            self.diversity = gr.Slider(
                0, 2, 0, step=0.1, label="Diversity", info="How much the pictures shown should differ."
            )

    @property
    def components(self) -> list[Any]:
        """All fields, in the order of the values that `problems` and `arguments` take."""
        return [self.candidates, self.seed, self.guidance, self.temperature, self.rank, self.diversity]

    def problems(
        self, candidates: Any, seed: Any, guidance: Any, temperature: Any, rank: Any, diversity: Any
    ) -> list[str]:
        """What is wrong with each value, in words; empty texts if nothing is."""
        unscored = rank in ("likelihood", "none") or len(self.ranks) < len(RANKS)
        return [
            number_problem(candidates, 1, MAX_CANDIDATES, whole=True),
            number_problem(seed, 0, MAX_SEED, whole=True),
            number_problem(guidance, 0, 100),
            number_problem(temperature, 0, 100),
            "" if rank in self.ranks else f"Expected {', '.join(self.ranks)}, got {rank}; choose one",
            "Diversity needs a scorer to compare pictures; rank by auto, clip or both, or set it to 0"
            if unscored and isinstance(diversity, int | float) and diversity > 0
            else number_problem(diversity, 0, 100),
        ]

    @staticmethod
    def arguments(
        candidates: Any, seed: Any, guidance: Any, temperature: Any, rank: Any, diversity: Any
    ) -> dict[str, Any]:
        """Arguments of `DalleMini.generate`; all candidates are kept, because the page shows all their scores."""
        return {
            "candidates": int(candidates),
            "keep": int(candidates),
            "seed": int(seed),
            "guidance": guidance,
            "temperature": temperature,
            "rank": rank,
            "diversity": diversity,
        }


class ResultView:
    """Where pictures appear while they are drawn, and ranked with their scores when they are finished.

    Args:
        shared: what tabs have in common.
        choosable: whether a picture can be chosen.
    """

    def __init__(self, shared: Shared, *, choosable: bool) -> None:
        import gradio as gr

        from dalle_mini_impl.app.assets import read_asset

        self._shared = shared
        self._choosable = choosable
        self.status = gr.HTML("", elem_classes="messages")
        self.pictures = gr.HTML("", js_on_load=read_asset("gallery.js"), elem_classes="results")
        self.chart = gr.HTML("")

    @property
    def components(self) -> list[Any]:
        """All parts, the one for messages first."""
        return [self.status, self.pictures, self.chart]

    def draw(self, running: Running, arguments: dict[str, Any], canvas: Canvas | None = None) -> Iterator[Update]:
        """Draw pictures, and show them.

        Args:
            running: the work that this is.
            arguments: of `DalleMini.generate`.
            canvas: a picture some of which is redrawn.
        """
        dalle = self._shared.dalle
        start = time.monotonic()
        prompt, count = arguments["prompt"], arguments["candidates"]
        size = model_size(dalle.image_tokenizer, dalle.stream.config.grid)
        yield self._unfinished([first_preview(size, canvas)] * min(KEPT, count), prompt, 0.0)
        for preview in dalle.stream_previews(
            **arguments, show=KEPT, share=PREVIEW_SHARE, canvas=canvas, progress=running.check
        ):
            running.check()
            if preview.result is None:
                yield self._unfinished(preview.images, prompt, preview.done)
            else:
                seconds = time.monotonic() - start
                text = f"{count} candidates in {seconds:.1f} s.{self._shared.cut_off(prompt)}"
                yield self.finished([preview.result], text)

    def finished(self, results: list[Result], text: str) -> Update:
        """What the page shows of results: the best pictures of each, and how all scores are distributed."""
        tiles = []
        for result in results:
            for name, candidate in zip(result.file_names(), result.candidates[:KEPT], strict=False):
                tiles.append(
                    html.Tile(
                        candidate.image,
                        f"{result.prompt or 'no description'}, {describe_score(candidate)}, seed {candidate.seed}",
                        f"{describe_score(candidate)} · seed {candidate.seed}",
                        name,
                        result.metadata([candidate]),
                        picture_text([result], candidate),
                    )
                )
        scores = [candidate.score for result in results for candidate in result if candidate.score is not None]
        chart = html.histogram(scores, KEPT, "Scores") if len(results) == 1 and len(scores) > 1 else ""
        return {
            self.status: html.status(text),
            self.pictures: html.gallery(tiles, choosable=self._choosable),
            self.chart: chart,
        }

    def _unfinished(self, images: list[Image.Image], prompt: str, done: float) -> Update:
        alt = f"{prompt or 'no description'}, unfinished"
        return {
            self.status: html.status(f"Drawing, {done:.0%}", done),
            self.pictures: html.gallery([html.Tile(image, alt, " ") for image in images]),
            self.chart: "",
        }


def describe_score(candidate: Candidate) -> str:
    """A candidate's score in words."""
    return "not ranked" if candidate.score is None else f"score {candidate.score:.2f}"


def check_total(count: int) -> None:
    """Refuse to draw too many pictures at once.

    Raises:
        UserError: there would be more than `MAX_CANDIDATES`.
    """
    if count > MAX_CANDIDATES:
        raise UserError(f"expected at most {MAX_CANDIDATES} pictures at once, got {count}; use dalle sample")
