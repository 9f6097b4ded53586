"""VQGAN+CLIP, live: a picture that is optimised until the scorer finds that it fits."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle_mini_impl.app import html
from dalle_mini_impl.app.limits import MAX_PAINT_STEPS, MAX_PROMPT, MAX_SEED, number_problem, prompt_problem
from dalle_mini_impl.app.shared import Shared, Update
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.painting.painter import Painter, PaintSettings
from dalle_mini_impl.painting.targets import Target, parse_targets
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import open_picture

TITLE = "Paint"
PLACE = 3
SHOWN_EVERY = 0.25
"""Seconds between the pictures that are shown."""


def build(shared: Shared) -> None:
    """Lay out the tab."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(
                label="What the picture should resemble",
                info="Several texts with weights are allowed, such as: a fox:1.0 | snow:0.4 | text:-0.3",
                lines=2,
                max_length=MAX_PROMPT,
            )
            start = gr.Image(
                label="Picture to start from (if any)",
                type="filepath",
                image_mode=None,  # not decoded by gradio, which reads more formats and drops transparency
                format="png",
                sources=["upload", "clipboard"],
                height=160,
                buttons=[],
                alt_text="The picture to start from",
            )
            with gr.Row():
                count = gr.Slider(1, MAX_PAINT_STEPS, 200, step=1, label="Steps")
                seed = gr.Number(0, precision=0, label="Seed")
            stay = gr.Slider(0, 5, 0, step=0.1, label="How strongly to stay near the picture to start from")
            with gr.Row():
                button = gr.Button("Paint", variant="primary")
                stop_button = gr.Button("Stop")
        with gr.Column(scale=3, min_width=300):
            status = gr.HTML("", elem_classes="messages")
            painted = gr.HTML("")

    def problems(text: Any, path: Any, steps: Any, number: Any, weight: Any) -> list[str]:
        if not shared.dalle.has_scorer:
            return ["This model has no scorer to paint by; start the page with one: dalle app --scorer NAME", *[""] * 4]
        alone = isinstance(weight, int | float) and weight > 0 and not path
        return [
            prompt_problem(text),
            "",
            number_problem(steps, 1, MAX_PAINT_STEPS, whole=True),
            number_problem(number, 0, MAX_SEED, whole=True),
            "Expected a picture to start from, got none; upload one, or set this to 0"
            if alone
            else number_problem(weight, 0, 100),
        ]

    def paint(running: Running, text: str, path: Any, steps: Any, number: Any, weight: Any) -> Iterator[Update]:
        settings = PaintSettings(steps=int(steps), seed=int(number), init_weight=float(weight))
        for words, done, painter in paint_steps(shared, running, text, path, settings):
            name = f"step {painter.done}"
            record = painter.result().settings
            tile = html.Tile(painter.image, f"{text}, painted, {name}", name, f"painting-{painter.done}.png", record)
            yield {status: html.status(words, done), painted: html.gallery([tile])}

    inputs, outputs = [prompt, start, count, seed, stay], [status, painted]
    shared.on_click([button.click, prompt.submit], stop_button, paint, inputs, outputs, problems)


def paint_steps(
    shared: Shared, running: Running, text: str, path: str | None, settings: PaintSettings
) -> Iterator[tuple[str, float | None, Painter]]:
    """Paint, at first and at the end and as often as `SHOWN_EVERY` says telling how far that is.

    Yields:
        What to say, the fraction done if there is more to do, and the painter.
    """
    dalle = shared.dalle
    first = open_picture(path) if path else None
    name = dalle.scorer_source["name"] if dalle.scorer_source else dalle.source["model"]
    source = {"model": dalle.source["model"], "checkpoint": dalle.source["checkpoint"], "scorers": [name]}
    painter = Painter(dalle.image_tokenizer, {name: dalle.scorer}, text_targets(text), settings, first, source)
    yield "Painting", 0.0, painter
    shown, loss = time.monotonic(), 0.0
    for step in painter:
        running.check()
        loss = step.loss
        if time.monotonic() - shown >= SHOWN_EVERY:
            shown = time.monotonic()
            yield (
                f"Painting, step {step.number} of {settings.steps}, loss {loss:.3f}",
                step.number / settings.steps,
                painter,
            )
    yield f"{settings.steps} steps, loss {loss:.3f}.", None, painter


def text_targets(text: str) -> list[Target]:
    """Texts and weights as `dalle paint` takes them, but no files: a visitor names none of this machine.

    Raises:
        UserError: a text is empty, or ends as the name of a picture file does.
    """
    targets = parse_targets(text)
    for target in targets:
        if isinstance(target.content, Path):
            raise UserError(
                f"expected texts, got the name of a picture file, {target.content}; upload it to start from"
            )
    return targets
