"""Variations of a picture, pictures between two pictures or texts, and a picture changed by words (DALL-E 2)."""

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from dalle_mini_impl.app import html
from dalle_mini_impl.app.fields import ResultView, SamplingFields
from dalle_mini_impl.app.limits import MAX_PROMPT, MAX_SEED, MAX_STRIP, number_problem, prompt_problem
from dalle_mini_impl.app.shared import HIDDEN, Shared, Update, read_png
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.pipeline.canvas import variation_canvas
from dalle_mini_impl.pipeline.manipulations import edit, mix
from dalle_mini_impl.pipeline.results import picture_text
from dalle_mini_impl.util.images import open_picture

TITLE = "Mix"
PLACE = 4
VARY, BETWEEN, WORDS = "vary it", "go to another picture or text", "change it by words"
WAYS = (VARY, BETWEEN, WORDS)
"""What can be done with a picture."""
STEPS = 6
"""Pictures of a strip by default."""
NO_EMBEDDINGS = (
    "This model has no positions for image embeddings: it varies a picture by keeping some of its cells, but going "
    "from picture to picture, or changing one by words, needs a model that was trained with image_embed.positions."
)
LABELS = {
    VARY: ("What it shows (may be empty)", ""),
    BETWEEN: ("Or a description, in place of the picture", "Or a description, in place of the other picture"),
    WORDS: ("What it shows (may be empty)", "What it should show"),
}
"""Labels of the two texts for each way."""


def build(shared: Shared) -> None:
    """Lay out the tab."""
    MixTab(shared)


class MixTab:
    """The tab's components, and what they do."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        self.shared = shared
        self.takes_embeddings = (
            bool(shared.dalle.stream.config.embed_positions) or shared.dalle.sampling.decoder != "tokens"
        )
        self.ways = WAYS if self.takes_embeddings else (VARY,)
        if not self.takes_embeddings:
            gr.HTML(html.status(NO_EMBEDDINGS), elem_classes="messages")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                way = gr.Radio(self.ways, value=VARY, label="What to do", visible=self.takes_embeddings)
                picture = _upload("Picture")
                text = gr.Textbox(label=LABELS[VARY][0], max_length=MAX_PROMPT)
                other = _upload("Other picture", visible=False)
                other_text = gr.Textbox(label=LABELS[WORDS][1], max_length=MAX_PROMPT, visible=False)
                with gr.Column(visible=True) as varied:
                    strength = gr.Slider(
                        0.05, 1, 0.5, step=0.05, label="Share drawn anew", visible=not self.takes_embeddings
                    )
                    self.fields = SamplingFields(shared)
                with gr.Column(visible=False) as strip:
                    theta = gr.Slider(0, 1, 0.5, step=0.05, label="How far to go", info="1 forgets the picture.")
                    steps = gr.Slider(2, MAX_STRIP, STEPS, step=1, label="Pictures")
                    seed = gr.Number(0, precision=0, label="Seed")
                    guidance = gr.Slider(0, 10, shared.dalle.sampling.guidance, step=0.1, label="Guidance")
                with gr.Row():
                    button = gr.Button("Mix", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=300):
                self.view = ResultView(shared, choosable=False)

        def switch(how: Any) -> list[Any]:
            first, second = LABELS.get(how, LABELS[VARY])
            return [
                gr.Textbox(label=first),
                gr.Image(visible=how == BETWEEN),
                gr.Textbox(label=second, visible=how != VARY),
                gr.Column(visible=how == VARY),
                gr.Column(visible=how != VARY),
                gr.Slider(visible=how == WORDS),
                gr.Number(visible=how == BETWEEN),
            ]

        def receive(sent: Any) -> list[Any]:
            return [read_png(sent["png"])[0], sent["prompt"]] if sent and sent["to"] == "mix" else [gr.skip()] * 2

        way.change(switch, way, [text, other, other_text, varied, strip, theta, seed], queue=False, **HIDDEN)
        shared.sent.change(receive, shared.sent, [picture, text], queue=False, **HIDDEN)
        inputs = [way, picture, text, other, other_text, strength, theta, steps, seed, guidance]
        inputs += self.fields.components
        shared.on_click([button.click], stop, self.mix, inputs, self.view.components, self.problems)

    def problems(self, how: Any, path: Any, text: Any, other: Any, other_text: Any, *values: Any) -> list[str]:
        """What is wrong with each value, in words."""
        strength, theta, steps, seed, guidance, *sampling = values
        of_strip = [
            number_problem(theta, 0, 1),
            number_problem(steps, 2, MAX_STRIP, whole=True),
            number_problem(seed, 0, MAX_SEED, whole=True),
            number_problem(guidance, 0, 100),
        ]
        if how not in self.ways:
            known = f"Expected {' or '.join(self.ways)}, got {how}; choose one"
            return [known, *[""] * (9 + len(sampling))]
        if how == BETWEEN:
            ends = [*_end_problems(path, text, "a picture"), *_end_problems(other, other_text, "another picture")]
            return ["", *ends, "", *of_strip, *[""] * len(sampling)]
        missing = "" if path else "Expected a picture, got none; upload one, or send one from the tab Draw"
        first = [missing, prompt_problem(text, required=False)]
        if how == WORDS:
            return ["", *first, "", prompt_problem(other_text), "", *of_strip, *[""] * len(sampling)]
        share = number_problem(strength, 0.01, 1)
        return ["", *first, "", "", share, *[""] * 4, *self.fields.problems(*sampling)]

    def mix(
        self, running: Running, how: str, path: Any, text: str, other: Any, other_text: str, *values: Any
    ) -> Iterator[Update]:
        """Do what was chosen."""
        strength, theta, steps, seed, guidance, *sampling = values
        if how == VARY:
            yield from self.vary(running, path, text, strength, sampling)
            return
        yield self.shown("Drawing", 0.0)
        common: dict[str, Any] = {"steps": int(steps), "guidance": float(guidance), "progress": running.check}
        if how == BETWEEN:
            yield self.between(_end(path, text), _end(other, other_text), int(seed), common)
        else:
            yield self.by_words(open_picture(path), text, other_text, float(theta), common)

    def vary(
        self, running: Running, path: str, text: str, strength: float, sampling: Sequence[Any]
    ) -> Iterator[Update]:
        """Draw variations of a picture."""
        dalle, picture = self.shared.dalle, open_picture(path)
        arguments = {"prompt": text, **self.fields.arguments(*sampling)}
        if self.takes_embeddings:
            yield from self.view.draw(running, {**arguments, "image_embed": picture})
        else:
            canvas = variation_canvas(dalle.image_tokenizer, dalle.stream.config.grid, picture, float(strength))
            yield from self.view.draw(running, arguments, canvas)

    def between(self, first: Image.Image | str, second: Image.Image | str, seed: int, common: dict[str, Any]) -> Update:
        """Pictures from one end to the other."""
        results = mix(self.shared.dalle, first, second, seed=seed, **common)
        way = f"from {_name(first, 'the picture')} to {_name(second, 'the other picture')}"
        tiles = [
            html.Tile(
                result[0].image,
                f"Picture {number} of {len(results)} {way}",
                f"{number} of {len(results)}",
                f"mix-{number:02d}.png",
                result.metadata(),
                picture_text([result], result[0]),
            )
            for number, result in enumerate(results, 1)
        ]
        return self.shown(f"{len(results)} pictures {way}.", None, tiles)

    def by_words(self, picture: Image.Image, source: str, target: str, theta: float, common: dict[str, Any]) -> Update:
        """A picture on its way from what it shows to what it should show."""
        edited = edit(self.shared.dalle, picture, source, target, theta=theta, **common)
        count = len(edited.images)
        tiles = [
            html.Tile(
                image,
                f"Picture {number} of {count}, from {source or 'what the picture shows'} towards {target}",
                "the picture as ids" if number == 1 else f"{theta * (number - 1) / (count - 1):.2f} of the way",
                f"edit-{number:02d}.png",
                edited.metadata,
            )
            for number, image in enumerate(edited.images, 1)
        ]
        return self.shown(f"The picture, and {count - 1} on the way to {target}.", None, tiles)

    def shown(self, text: str, done: float | None, tiles: Sequence[html.Tile] = ()) -> Update:
        """What the page shows of a strip."""
        return {
            self.view.status: html.status(text, done),
            self.view.pictures: html.gallery(tiles) if tiles else "",
            self.view.chart: "",
        }


def _upload(label: str, *, visible: bool = True) -> Any:
    """A field for a picture."""
    import gradio as gr

    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,  # not decoded by gradio, which reads more formats and drops transparency
        format="png",
        sources=["upload", "clipboard"],
        height=160,
        buttons=[],
        alt_text=f"The {label.lower()} that was uploaded",
        visible=visible,
    )


def _end(path: Any, text: str) -> Image.Image | str:
    """One end of a strip: the picture, or the text where there is none."""
    return open_picture(path) if path else text


def _name(end: Image.Image | str, name: str) -> str:
    return end if isinstance(end, str) else name


def _end_problems(path: Any, text: Any, what: str) -> list[str]:
    """What is wrong with one end of a strip, below the picture and below the text."""
    if path and isinstance(text, str) and text.strip():
        return ["", f"Expected {what} or a description, got both; leave one out"]
    if not path and isinstance(text, str) and not text.strip():
        return [f"Expected {what} or a description, got neither; give one", ""]
    return ["", "" if path else prompt_problem(text)]
