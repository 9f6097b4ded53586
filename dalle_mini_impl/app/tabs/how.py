"""How it works: a caption's ids, image ids that are sampled one after the other, and the choice among candidates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.app import html
from dalle_mini_impl.app.limits import MAX_PROMPT, MAX_SEED, number_problem, prompt_problem
from dalle_mini_impl.app.shared import HIDDEN, Shared, Update
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.previews import decode_unfinished
from dalle_mini_impl.pipeline.results import Candidate
from dalle_mini_impl.pipeline.walkthrough import Walkthrough, walk_through

TITLE = "How it works"
PLACE = 6
CANDIDATES, KEPT = 16, 4
"""Pictures that are drawn, and those that the ranking keeps."""
LIKELIEST = 8
"""Image ids whose probabilities are shown."""
INTRODUCTION = """
A **text tokenizer** splits the description into pieces, each with a number. A **transformer** goes on with the numbers
of an **image tokenizer**, one cell after the other: each time it gives every image id a probability, and one is
sampled. The image tokenizer turns the finished grid into pixels. Several candidates are drawn, and the best are kept.
"""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the page shows of one request."""

    steps: Walkthrough
    """Of the best candidate."""
    image_ids: Tensor
    """(h, w), of that."""
    tiles: dict[int, Image.Image]
    """What each image id that is shown looks like alone."""


def build(shared: Shared) -> None:
    """Lay out the tab."""
    LessonTab(shared)


class LessonTab:
    """The tab's components, and what they do."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        self.shared = shared
        sampling, self.count = shared.dalle.sampling, shared.dalle.stream.image_length
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            prompt = gr.Textbox("a red heart", label="Description", max_length=MAX_PROMPT, scale=3, min_width=240)
            seed = gr.Number(0, precision=0, label="Seed", scale=1, min_width=110)
            guidance = gr.Slider(0, 10, sampling.guidance, step=0.1, label="Guidance", scale=2, min_width=160)
            temperature = gr.Slider(0, 2, sampling.temperature, step=0.05, label="Temperature", scale=2, min_width=160)
        with gr.Row():
            button = gr.Button("Show", variant="primary")
            stop = gr.Button("Stop")
        self.status = gr.HTML("", elem_classes="messages")
        with gr.Column(visible=False) as self.parts:
            gr.Markdown("### 1. The description becomes text ids")
            self.pieces = gr.HTML("")
            gr.Markdown("### 2. Image ids are sampled, one after the other")
            self.step = gr.Slider(1, self.count, 1, step=1, label="Step: image ids sampled so far")
            with gr.Row():
                with gr.Column(min_width=260):
                    grid = gr.HTML("")
                with gr.Column(min_width=260):
                    picture = gr.HTML("")
                with gr.Column(min_width=300):
                    chances = gr.HTML("")
            gr.Markdown(f"### 3. Of {CANDIDATES} candidates, the ranking keeps the {KEPT} best")
            self.candidates = gr.HTML("")
        self.lesson = gr.State()
        self.views = [grid, picture, chances]
        event = shared.on_click(
            [button.click, prompt.submit],
            stop,
            self.draw,
            [prompt, seed, guidance, temperature],
            [self.status, self.lesson, self.pieces, self.candidates, self.parts],
            self.problems,
        )
        playing = event.success(self.play, self.lesson, [self.step, *self.views], concurrency_limit=4, **HIDDEN)
        stop.click(None, cancels=[playing], queue=False, **HIDDEN)
        inputs = [self.step, self.lesson]
        self.step.release(self.show, inputs, self.views, cancels=[playing], concurrency_limit=4, **HIDDEN)
        self.step.input(self.show, inputs, self.views, trigger_mode="always_last", concurrency_limit=4, **HIDDEN)

    def problems(self, text: Any, seed: Any, guidance: Any, temperature: Any) -> list[str]:
        """What is wrong with each value, in words."""
        whole = number_problem(seed, 0, MAX_SEED, whole=True)
        return [prompt_problem(text), whole, number_problem(guidance, 0, 100), number_problem(temperature, 0, 100)]

    def draw(self, running: Running, text: str, seed: float, guidance: float, temperature: float) -> Iterator[Update]:
        """Draw candidates, and find out how the best of them was sampled."""
        import gradio as gr

        dalle = self.shared.dalle
        yield {self.lesson: None, self.status: html.status("Drawing", 0.0)}
        sampling: dict[str, Any] = {"decoder": "tokens", "guidance": guidance, "temperature": temperature}
        result = dalle.generate(
            text, candidates=CANDIDATES, keep=CANDIDATES, seed=int(seed), progress=running.check, **sampling
        )
        lesson = make_lesson(dalle, text, result[0], sampling)
        said = f"The best of {CANDIDATES} candidates is shown step by step.{self.shared.cut_off(text)}"
        yield {
            self.status: html.status(said),
            self.lesson: lesson,
            self.pieces: html.pieces(lesson.steps.pieces),
            self.candidates: html.gallery([candidate_tile(rank, one) for rank, one in enumerate(result, 1)]),
            self.parts: gr.Column(visible=True),
        }

    def play(self, lesson: Lesson | None) -> Iterator[Update]:
        """Show all steps, one after the other."""
        for number in range(1, self.count + 1) if lesson else ():
            yield {self.step: number, **dict(zip(self.views, self.show(number, lesson), strict=True))}

    def show(self, number: float, lesson: Lesson | None) -> Sequence[Any]:
        """Show one step."""
        import gradio as gr

        if lesson is None:
            return [gr.skip()] * len(self.views)
        return step_views(self.shared.dalle, lesson, min(max(int(number), 1), self.count))


def make_lesson(dalle: DalleMini, text: str, candidate: Candidate, arguments: dict[str, Any]) -> Lesson:
    """Find out how a picture was sampled, and what the image ids that were likely look like alone."""
    request, image_ids = dalle.request(text, seeds=[candidate.seed], **arguments), candidate.image_ids
    steps = walk_through(dalle.caption_model, dalle.transformer, dalle.stream, request, image_ids, LIKELIEST)
    shown = sorted({*steps.likeliest.flatten().tolist(), *steps.image_ids.tolist()})
    # A cell's pixels depend on its neighbours, so it is the middle of a picture of nine equal cells.
    grids = torch.tensor(shown)[:, None, None].expand(-1, 3, 3)
    side = dalle.image_tokenizer.config.factor
    middle = (side, side, 2 * side, 2 * side)
    tiles = [image.crop(middle) for part in grids.split(64) for image in dalle.decode(part)]
    return Lesson(steps, image_ids, dict(zip(shown, tiles, strict=True)))


def step_views(dalle: DalleMini, lesson: Lesson, number: int) -> tuple[str, str, str]:
    """The token grid, the picture and the probabilities after a number of steps, at least one."""
    steps = lesson.steps
    h, w = dalle.stream.config.grid
    rows: list[list[int | None]] = [[None] * w for _ in range(h)]
    for (row, column), image_id in zip(steps.cells[:number], steps.image_ids[:number].tolist(), strict=True):
        rows[row][column] = image_id
    current = steps.cells[number - 1]
    (image,) = decode_unfinished(steps.image_ids[None, :number], dalle.stream, None, dalle.decode)
    sampled = int(steps.image_ids[number - 1])
    likeliest = dict(zip(steps.likeliest[number - 1].tolist(), steps.probabilities[number - 1].tolist(), strict=True))
    likeliest.setdefault(sampled, float(steps.probability[number - 1]))
    title = f"Probabilities of the image id in row {current[0] + 1}, column {current[1] + 1}"
    chart = html.bars(
        [html.Bar(f"id {one}", share, lesson.tiles[one], one == sampled) for one, share in likeliest.items()], title
    )
    shown = html.picture(image, f"The picture after {number} of {h * w} image ids; the rest is white")
    return html.id_grid(rows, current), shown, chart


def candidate_tile(rank: int, candidate: Any) -> html.Tile:
    """A candidate with its rank, and whether it is kept."""
    score = "" if candidate.score is None else f", score {candidate.score:.1f}"
    verdict = "kept" if rank <= KEPT else "dropped"
    return html.Tile(candidate.image, f"Candidate {rank}, {verdict}{score}", f"{verdict}{score}", dimmed=rank > KEPT)
