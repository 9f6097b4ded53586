"""Draw pictures for a description, and go on from one of them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from PIL import Image

from dalle_mini_impl.app import html
from dalle_mini_impl.app.fields import ResultView, SamplingFields, check_total
from dalle_mini_impl.app.limits import MAX_PROMPT, prompt_problem
from dalle_mini_impl.app.shared import HIDDEN, Shared, Update, read_png
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.pipeline.canvas import Region, completion_canvas
from dalle_mini_impl.pipeline.recorded import Recorded, parse_recorded
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

TITLE = "Draw"
PLACE = 1
EXAMPLES = ("a red heart", "a smiling face", "een groene appel", "ein gelber Stern")
"""Descriptions that are offered."""
ANY_STYLE = "any"
"""Choice that adds no word for a look."""


def build(shared: Shared) -> None:
    """Lay out the tab."""
    DrawTab(shared)


class DrawTab:
    """The tab's components, and what they do."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        self.shared = shared
        self.looks = [ANY_STYLE, *shared.styles]
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                prompt = gr.Textbox(
                    label="Description", placeholder=EXAMPLES[0], lines=2, max_length=MAX_PROMPT, autofocus=True
                )
                style = gr.Radio(self.looks, value=ANY_STYLE, label="Style", visible=bool(shared.styles))
                gr.Examples([[text] for text in EXAMPLES], prompt, label="Such as", api_visibility="private")
                self.fields = SamplingFields(shared)
                with gr.Row():
                    draw_button = gr.Button("Draw", variant="primary")
                    stop = gr.Button("Stop")
                again = gr.UploadButton("Draw a saved picture again", file_types=["image"], size="sm")
            with gr.Column(scale=3, min_width=300):
                self.view = ResultView(shared, choosable=True)
                chosen = gr.State()
                with gr.Row(visible=False, elem_classes="chosen") as self.panel:
                    details = gr.HTML("")
                    with gr.Column(min_width=200):
                        vary_button = gr.Button("Variations: keep the upper half", size="sm")
                        complete_button = gr.Button("Complete …", size="sm")
                        mix_button = gr.Button("Mix …", size="sm")

        def choose(event: gr.EventData) -> list[Any]:
            picture, metadata = read_png(event.png)
            return [event.png, gr.Row(visible=True), describe(picture, metadata)]

        def send(png: Any, to: str) -> list[Any]:
            return [{"to": to, "png": png, "prompt": prompt_of(read_png(png)[1])}, gr.Tabs(selected=to)]

        outputs = [*self.view.components, self.panel]
        sampling = self.fields.components
        shared.on_click(
            [draw_button.click, prompt.submit], stop, self.draw, [prompt, style, *sampling], outputs, self.problems
        )
        shared.on_click([vary_button.click], stop, self.vary, [chosen, *sampling], outputs, self.vary_problems)
        shared.on_click([again.upload], stop, self.remake, [again], outputs)
        self.view.pictures.select(choose, None, [chosen, self.panel, details], queue=False, **HIDDEN)
        # In the queue, because gradio tells only then that a state has changed.
        for button, tab in ((complete_button, "complete"), (mix_button, "mix")):
            button.click(partial(send, to=tab), chosen, [shared.sent, shared.tabs], concurrency_limit=None, **HIDDEN)

    def problems(self, text: Any, look: Any, *values: Any) -> list[str]:
        """What is wrong with each value, in words."""
        known = "" if look in self.looks else f"Expected {', '.join(self.looks)}, got {look}; choose one"
        return [prompt_problem(text), known, *self.fields.problems(*values)]

    def vary_problems(self, png: Any, *values: Any) -> list[str]:
        """As `problems`, of variations."""
        return ["", *self.fields.problems(*values)]

    def draw(self, running: Running, text: str, look: str, *values: Any) -> Iterator[Update]:
        """Draw pictures for a description."""
        import gradio as gr

        described = text if look == ANY_STYLE else f"{text}, {look}"
        for update in self.view.draw(running, {"prompt": described, **self.fields.arguments(*values)}):
            yield {**update, self.panel: gr.Row(visible=False)}

    def vary(self, running: Running, png: Any, *values: Any) -> Iterator[Update]:
        """Draw the lower half of the chosen picture anew."""
        picture, metadata = read_png(png)
        grid = self.shared.dalle.stream.config.grid
        canvas = completion_canvas(self.shared.dalle.image_tokenizer, grid, picture, Region(rows=grid[0] // 2), True)
        yield from self.view.draw(running, {"prompt": prompt_of(metadata), **self.fields.arguments(*values)}, canvas)

    def remake(self, running: Running, path: str) -> Iterator[Update]:
        """Draw the pictures of a file again."""
        recorded = read_recorded(self.shared, path)
        yield {self.view.status: html.status("Drawing the pictures of the file again.", 0.0), self.view.pictures: ""}
        results = [*self.shared.dalle.generate_many(recorded.requests(), progress=running.check)]
        yield self.view.finished(results, "Drawn again: the pictures of the file.")


def prompt_of(metadata: dict[str, Any]) -> str:
    """The description that a picture of this page records."""
    pictures = metadata.get("pictures")
    first = pictures[0] if isinstance(pictures, list) and pictures else {}
    prompt = first.get("prompt") if isinstance(first, dict) else ""
    return prompt if isinstance(prompt, str) else ""


def describe(picture: Image.Image, metadata: dict[str, Any]) -> str:
    """The chosen picture, large, with its description."""
    prompt = prompt_of(metadata) or "no description"
    return html.picture(picture, f"The chosen picture: {prompt}") + html.status(f"Chosen: {prompt}")


def read_recorded(shared: Shared, path: str) -> Recorded:
    """What a saved picture records, if this page's model draws the same picture from it.

    Raises:
        UserError: it is none of `dalle sample`, or of another model, precision or scorer than the page's.
    """
    name = "the file"
    dalle = shared.dalle
    recorded = parse_recorded(read_metadata(path), name)
    check_total(len(recorded.pictures))
    recorded.check_source(dalle.source, name)
    if recorded.precision != dalle.source["precision"]:
        raise UserError(
            f"expected a picture drawn in {dalle.source['precision']}, as this page draws, got {recorded.precision}; "
            f"start it with: dalle app --precision {recorded.precision}"
        )
    own = dalle.scorer_source["identity"] if dalle.scorer_source else None
    if (recorded.scorer.identity if recorded.scorer else None) != own:
        raise UserError(
            "expected a picture ranked by the scorer of this page, got one ranked by another; draw it with: dalle "
            "sample --from"
        )
    return recorded
