"""Redraw a part of a picture: the cells that are marked, or everything below some rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini_impl.app.assets import read_asset
from dalle_mini_impl.app.fields import ResultView, SamplingFields
from dalle_mini_impl.app.html import data_uri
from dalle_mini_impl.app.limits import MAX_PROMPT, number_problem, prompt_problem
from dalle_mini_impl.app.shared import HIDDEN, Shared, Update, read_png
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.pipeline.canvas import Region, completion_canvas, encode_picture
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import open_picture

TITLE = "Complete"
PLACE = 2
MARKED, ROWS = "redraw the cells that I mark", "keep the top rows"
WAYS = (MARKED, ROWS)
"""Ways to say what is redrawn."""


def build(shared: Shared) -> None:
    """Lay out the tab."""
    CompleteTab(shared)


class CompleteTab:
    """The tab's components, and what they do."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        self.shared = shared
        self.grid = height, _ = shared.dalle.stream.config.grid
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                source = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,  # not decoded by gradio, which reads more formats and drops transparency
                    format="png",
                    sources=["upload", "clipboard"],
                    height=220,
                    buttons=[],
                    alt_text="The uploaded picture",
                )
                way = gr.Radio(WAYS, value=MARKED, label="What to redraw")
                mask = gr.HTML(
                    {}, html_template=read_asset("mask.html"), js_on_load=read_asset("mask.js"), visible=False
                )
                rows = gr.Slider(1, max(1, height - 1), height // 2 or 1, step=1, label="Rows to keep", visible=False)
                prompt = gr.Textbox(label="Description of the whole picture", lines=2, max_length=MAX_PROMPT)
                self.fields = SamplingFields(shared)
                with gr.Row():
                    button = gr.Button("Complete", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=300):
                self.view = ResultView(shared, choosable=False)

        def receive(sent: Any) -> list[Any]:
            return [read_png(sent["png"])[0], sent["prompt"]] if sent and sent["to"] == "complete" else [gr.skip()] * 2

        def switch(path: Any, how: Any) -> list[Any]:
            return [gr.HTML(visible=bool(path) and how == MARKED), gr.Slider(visible=how == ROWS)]

        def show(path: Any, how: Any) -> list[Any]:
            return [gr.HTML(self.cells(path), visible=bool(path) and how == MARKED), gr.Slider(visible=how == ROWS)]

        source.change(show, [source, way], [mask, rows], concurrency_limit=1, **HIDDEN)
        way.change(switch, [source, way], [mask, rows], queue=False, **HIDDEN)
        shared.sent.change(receive, shared.sent, [source, prompt], queue=False, **HIDDEN)
        inputs = [source, way, mask, rows, prompt, *self.fields.components]
        shared.on_click([button.click], stop, self.complete, inputs, self.view.components, self.problems)

    def problems(self, path: Any, how: Any, marks: Any, keep: Any, text: Any, *values: Any) -> list[str]:
        """What is wrong with each value, in words."""
        unmarked = path and how == MARKED and not any_marked(marks)
        return [
            "" if path else "Expected a picture, got none; upload one, or send one from the tab Draw",
            "" if how in WAYS else f"Expected {' or '.join(WAYS)}, got {how}; choose one",
            "Expected cells to redraw, got none; drag over the picture" if unmarked else "",
            number_problem(keep, 1, max(1, self.grid[0] - 1), whole=True),
            prompt_problem(text, required=False),
            *self.fields.problems(*values),
        ]

    def complete(
        self, running: Running, path: str, how: str, marks: Any, keep: float, text: str, *values: Any
    ) -> Iterator[Update]:
        """Redraw a part of the picture."""
        tokenizer = self.shared.dalle.image_tokenizer
        picture, _ = encode_picture(tokenizer, self.grid, open_picture(path))
        region = Region(rows=int(keep)) if how == ROWS else Region(mask=mask_picture(marks, self.grid, picture.size))
        canvas = completion_canvas(tokenizer, self.grid, picture, region, True)
        yield from self.view.draw(running, {"prompt": text, **self.fields.arguments(*values)}, canvas)

    def cells(self, path: str | None) -> dict[str, Any]:
        """What the page holds of the mask of a picture: none of its cells is marked."""
        if not path:
            return {}
        height, width = self.grid
        picture, _ = encode_picture(self.shared.dalle.image_tokenizer, self.grid, open_picture(path))
        return {"picture": data_uri(picture), "columns": width, "cells": "." * (height * width)}


def any_marked(marks: Any) -> bool:
    """Whether any cell is marked."""
    return isinstance(marks, dict) and "#" in str(marks.get("cells", ""))


def mask_picture(marks: Any, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A mask for `Region`: white where cells are marked.

    Args:
        marks: what the page holds of the mask: `cells`, one character for each, `#` where it is marked.
        grid: (h, w).
        size: width and height in pixels of the picture.

    Raises:
        UserError: there are not as many marks as cells.
    """
    cells = str(marks.get("cells", "")) if isinstance(marks, dict) else ""
    if len(cells) != grid[0] * grid[1]:
        raise UserError(f"expected marks for {grid[0] * grid[1]} cells, got {len(cells)}; upload the picture again")
    marked = np.array([mark == "#" for mark in cells]).reshape(grid)
    return Image.fromarray(marked.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
