"""What all tabs have in common: the model, one line of work, messages, and pictures that go from tab to tab."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from dalle_mini_impl.app import html
from dalle_mini_impl.app.limits import MAX_BODY_BYTES, MAX_RETURNED_PIXELS
from dalle_mini_impl.app.work import Running, Stopped, Work
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.command_line import is_out_of_memory
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import decode_image, pixel_count
from dalle_mini_impl.util.save_picture import parse_metadata

Update: TypeAlias = dict[Any, Any]
"""Components of the page, each with its new value."""
LINE = "line"
"""Gradio's name of the queue in which all work waits: one after the other, in the order of asking."""
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of events that change the page without computing."""
PNG_START = "data:image/png;base64,"


@dataclass(eq=False)
class Shared:
    """What a tab is built with."""

    dalle: DalleMini
    styles: tuple[str, ...]
    """Words that choose a look, if the model knows any."""
    pictures: Path | None
    """Folder of this machine whose pictures every visitor may search."""
    folder: Path
    """For files of visitors; removed when the page ends."""
    work: Work = field(default_factory=Work)
    tabs: Any = None
    """The `gr.Tabs` of the page."""
    sent: Any = None
    """A `gr.State` with a picture (PNG as an address) and its prompt that one tab sends `to` another."""

    def run(self, session: str, status: Any, steps: Callable[[Running], Iterator[Update]]) -> Iterator[Update]:
        """Do work, and tell in `status` if it was stopped or why it cannot be done.

        Args:
            session: of the visitor who waits for it.
            status: the component for messages.
            steps: the work; yields what changes on the page.
        """
        try:
            with self.work.begin(session) as running:
                yield from steps(running)
        except Stopped:
            yield {status: html.status("Stopped.")}
        except UserError as error:
            yield {status: html.problem(str(error))}
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            yield {status: html.problem("The memory is full; ask for fewer candidates, or try later")}

    def on_click(
        self,
        triggers: Sequence[Any],
        stop: Any,
        work: Callable[..., Iterator[Update]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        problems: Callable[..., list[str]] | None = None,
    ) -> Any:
        """Do work when a button is pressed, until it is done or stopped.

        Args:
            triggers: events that start it, such as `button.click`.
            stop: the button that stops it, or takes it out of the line.
            work: called with a `Running` and the inputs' values; yields what changes on the page.
            inputs: components.
            outputs: components that change, the one for messages first.
            problems: what is wrong with each input, in words for the place below it; work starts only if all are empty.

        Returns:
            The event.
        """
        import gradio as gr

        def validate(*values: Any) -> list[Any]:
            return [gr.validate(not text, text) for text in problems(*values)] if problems else []

        def handle(request: gr.Request, *values: Any) -> Iterator[Update]:
            def steps(running: Running) -> Iterator[Update]:
                if problems:  # again, because a request need not come from the page
                    refuse(problems(*values))
                yield from work(running, *values)

            yield from self.run(str(request.session_hash), outputs[0], steps)

        def end(request: gr.Request) -> str:
            self.work.stop(str(request.session_hash))
            return html.status("Stopped.")

        event = gr.on(
            list(triggers),
            handle,
            list(inputs),
            list(outputs),
            concurrency_id=LINE,
            concurrency_limit=1,
            show_progress="full",
            show_progress_on=outputs[0],
            validator=validate if problems else None,
            api_visibility="private",
        )
        stop.click(end, None, outputs[0], cancels=[event], queue=False, **HIDDEN)
        return event

    def cut_off(self, prompt: str) -> str:
        """A sentence about the end of a prompt that is too long for the model; empty if it fits."""
        tokenizer, most = self.dalle.text_tokenizer, self.dalle.stream.config.text_length
        ids = tokenizer.encode(prompt)
        if len(ids) <= most:
            return ""
        return f" The description is too long for the model; “{tokenizer.decode(ids[most:])}” was left out."


def refuse(problems: Sequence[str]) -> None:
    """Refuse values.

    Raises:
        UserError: one of the texts is not empty; the first such one.
    """
    for text in problems:
        if text:
            raise UserError(text)


def read_png(address: Any) -> tuple[Image.Image, dict[str, Any]]:
    """The picture and the metadata of a PNG that the page sends back.

    Raises:
        UserError: it is none of this page.
    """
    try:
        if not isinstance(address, str) or not address.startswith(PNG_START) or len(address) > MAX_BODY_BYTES:
            raise ValueError("it is no PNG")
        content = base64.b64decode(address.removeprefix(PNG_START), validate=True)
        if pixel_count(io.BytesIO(content)) > MAX_RETURNED_PIXELS:
            raise ValueError("it has too many pixels")
        return decode_image(io.BytesIO(content)), parse_metadata(content, "the picture")
    except Exception as error:  # whatever decoders raise on damaged data
        raise UserError(f"expected a picture of this page, got another one ({error}); draw one first") from error
