"""Search pictures by a description, and classify them among labels, by the scorer."""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.app import html
from dalle_mini_impl.app.limits import MAX_FILES, MAX_PROMPT, labels_problem, prompt_problem, read_labels
from dalle_mini_impl.app.shared import HIDDEN, Shared, Update
from dalle_mini_impl.app.work import Running
from dalle_mini_impl.data.remote import SourcePath
from dalle_mini_impl.data.tar_reader import TarMember
from dalle_mini_impl.scorer.picture_files import embed_picture_files
from dalle_mini_impl.search.index import ImageIndex, small_copy
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ranking import best_first
from dalle_mini_impl.util.text import printable

TITLE = "Search and classify"
PLACE = 5
SHOWN = 40
"""Most pictures that are shown."""
THUMBNAIL = 192
"""Largest side of a picture that is shown, in pixels."""
MAX_KNOWN = 20_000
"""Uploaded pictures whose embeddings are remembered."""
OWN = "my pictures"
"""Choice of the visitor's own pictures, as against a folder of the machine that serves the page."""


@dataclass(eq=False)
class Library:
    """Pictures with their embeddings."""

    paths: list[SourcePath | TarMember] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Why others could not be used."""


class Embedder:
    """Embeds uploaded pictures, and remembers the latest ones by their path, which follows from their content.

    Args:
        shared: has the scorer.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, running: Running, paths: Sequence[str]) -> Generator[float, None, Library]:
        """Embed picture files; yields the fraction done."""
        library = Library()
        new = [path for path in paths if path not in self._known]
        done = 0
        # One scorer pass per batch, so that the work can be stopped between them.
        for first in range(0, len(new), 32):
            running.check()
            for batch in embed_picture_files(self._shared.dalle.scorer, new[first : first + 32], Path):
                for picture in batch:
                    if picture.embedding is None:
                        library.skipped.append(printable(f"{Path(picture.item).name}: {picture.reason}"))
                    else:
                        self._known[picture.item] = picture.embedding
            done = min(len(new), first + 32)
            yield done / len(new)
        for path in paths:
            if path in self._known:
                self._known.move_to_end(path)
                library.paths.append(Path(path))
                library.embeddings.append(self._known[path])
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return library


def build(shared: Shared) -> None:
    """Lay out the tab."""
    SearchTab(shared)


class SearchTab:
    """The tab's components, and what they do."""

    def __init__(self, shared: Shared) -> None:
        import gradio as gr

        self.shared = shared
        self.embedder = Embedder(shared)
        self.places = [OWN, *([f"the folder {shared.pictures.name}"] if shared.pictures else [])]
        own_first = len(self.places) == 1
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                place = gr.Radio(self.places, value=self.places[-1], label="Where to look", visible=not own_first)
                files = gr.File(
                    label=f"My pictures, at most {MAX_FILES}",
                    file_count="multiple",
                    file_types=["image"],
                    height=170,
                    visible=own_first,
                )
                folder = gr.UploadButton("Choose a whole folder", file_count="directory", size="sm", visible=own_first)
                query = gr.Textbox(label="Search for", placeholder="a red heart", max_length=MAX_PROMPT)
                search_button = gr.Button("Search", variant="primary")
                labels = gr.Textbox(label="Labels to choose from", placeholder="a heart, a star, a face", lines=2)
                with gr.Row():
                    classify_button = gr.Button("Classify", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3, min_width=300):
                self.status = gr.HTML("", elem_classes="messages")
                self.found = gr.HTML("")

        def switch(where: Any) -> list[Any]:
            return [gr.File(visible=where == OWN), gr.UploadButton(visible=where == OWN)]

        outputs = [self.status, self.found]
        triggers = [search_button.click, query.submit]
        shared.on_click(triggers, stop, self.search, [place, files, query], outputs, self.search_problems)
        triggers = [classify_button.click]
        shared.on_click(triggers, stop, self.classify, [place, files, labels], outputs, self.classify_problems)
        folder.upload(lambda paths: paths, folder, files, queue=False, **HIDDEN)
        place.change(switch, place, [files, folder], queue=False, **HIDDEN)

    def place_problems(self, where: Any, paths: Any) -> list[str]:
        """What is wrong with the place to look at, and with the visitor's own files."""
        own, count = where == OWN, len(paths or [])
        missing = "Expected pictures, got none; upload some" if own and not count else ""
        many = f"Expected at most {MAX_FILES} pictures, got {count}; choose fewer" if own and count > MAX_FILES else ""
        known = "" if where in self.places else f"Expected {' or '.join(self.places)}, got {where}; choose one"
        return [known, missing or many]

    def search_problems(self, where: Any, paths: Any, text: Any) -> list[str]:
        """What is wrong with each value of a search."""
        return [*self.place_problems(where, paths), prompt_problem(text)]

    def classify_problems(self, where: Any, paths: Any, text: Any) -> list[str]:
        """What is wrong with each value of a classification."""
        return [*self.place_problems(where, paths), labels_problem(text)]

    def search(self, running: Running, where: str, paths: Sequence[str] | None, text: str) -> Iterator[Update]:
        """Show the pictures that fit a text best."""
        scorer = self.shared.dalle.scorer
        if where != OWN and self.shared.pictures:
            index = ImageIndex.open(self.shared.pictures, scorer)
            ranked: list[tuple[SourcePath | TarMember, float]] = [
                (hit.path, hit.score) for hit in index.search(text, SHOWN)
            ]
            library, count = Library(), len(index)
        else:
            library = yield from self.read(running, paths or [])
            scores = torch.stack(library.embeddings) @ scorer.embed_texts([text])[0]
            order = best_first(scores)[:SHOWN].tolist()
            ranked, count = [(library.paths[i], float(scores[i])) for i in order], len(library.paths)
        yield self.show([path for path, _ in ranked], [f"score {score:.3f}" for _, score in ranked], count, library)

    def classify(self, running: Running, where: str, paths: Sequence[str] | None, text: str) -> Iterator[Update]:
        """Show pictures with the label that fits each of them best."""
        scorer, labels = self.shared.dalle.scorer, read_labels(text)
        if where != OWN and self.shared.pictures:
            index = ImageIndex.open(self.shared.pictures, scorer)
            rows = index.pictures()[:SHOWN]
            library = Library([path for path, _ in rows], [index.vectors[row].float() for _, row in rows])
            count = len(index)
        else:
            library = yield from self.read(running, paths or [])
            count = len(library.paths)
        table = scorer.probabilities(torch.stack(library.embeddings[:SHOWN]), scorer.embed_labels(labels))
        likeliest = zip(*(values.tolist() for values in table.max(-1)), strict=True)
        captions = [f"{labels[place]} {value:.0%}" for value, place in likeliest]
        yield self.show(library.paths[:SHOWN], captions, count, library)

    def read(self, running: Running, paths: Sequence[str]) -> Generator[Update, None, Library]:
        """Embed uploaded pictures, and tell how far that is.

        Raises:
            UserError: none of them can be read.
        """
        yield {self.status: html.status(f"Looking at {len(paths)} pictures", 0.0)}
        steps = self.embedder.embed(running, paths)
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                library: Library = end.value
                break
            yield {self.status: html.status(f"Looking at {len(paths)} pictures, {done:.0%}", done)}
        if not library.paths:
            reason = library.skipped[0]
            raise UserError(f"expected pictures, got none that can be read ({reason}); upload PNG or JPEG files")
        return library

    def show(
        self, paths: Sequence[SourcePath | TarMember], captions: Sequence[str], count: int, library: Library
    ) -> Update:
        """What the page shows of some of `count` pictures."""
        text = f"{len(paths)} of {count} pictures."
        if library.skipped:
            text += f" {len(library.skipped)} could not be read, such as {library.skipped[0]}"
        tiles = [thumbnail(path, caption) for path, caption in zip(paths, captions, strict=True)]
        return {self.status: html.status(text), self.found: html.gallery(tiles)}


def thumbnail(path: SourcePath | TarMember, caption: str) -> html.Tile:
    """A small copy of a picture, with its caption."""
    image = small_copy(path, THUMBNAIL)
    return html.Tile(image, printable(f"{path.name}: {caption}"), printable(f"{caption} · {path.name}"))
