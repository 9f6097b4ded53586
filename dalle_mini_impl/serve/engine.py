"""One thread that draws for all clients: what waits together is sampled together."""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from torch import Tensor

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.previews import decode_unfinished
from dalle_mini_impl.pipeline.ranking import decoded_candidates, finish
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import GeneratedIds, generate_many
from dalle_mini_impl.sampling.requests import CHUNK, IdRequest
from dalle_mini_impl.serve.decoding import SharedDecoder

T = TypeVar("T")
Show = Callable[[list[Image.Image]], object]
"""Callback of the engine's thread: called with unfinished pictures."""


class DrawnRequest(NamedTuple):
    """What a request has brought, and what it took."""

    result: Result
    text_ids: int
    """Text ids of its prompt."""
    image_ids: int
    """Image ids of all its candidates."""


class _CallWork(NamedTuple):
    """A function to call on the engine's thread."""

    future: "Future[Any]"
    function: Callable[[], Any]


class _DrawWork(NamedTuple):
    """Candidates to draw, perhaps together with those of other clients."""

    future: "Future[DrawnRequest]"
    make: Callable[[], GenerationRequest]
    candidates: int
    previews: int
    shown: int
    show: Show


class Engine:
    """Draws on one thread. What is submitted while it draws waits, and is then drawn together, in order of arrival.

    A picture depends on its own request alone, not on what is drawn beside it. Work whose future is cancelled is
    dropped, at the next cell of the token grid if it is being drawn.

    Args:
        dalle: the model; nothing else may use it until the engine is closed.
        chunk: most candidates that are drawn together.
        on_batch: called with the number of candidates of each batch when it begins.
    """

    def __init__(
        self, dalle: DalleMini, chunk: int = CHUNK, on_batch: Callable[[int], object] = lambda candidates: None
    ) -> None:
        self.dalle = dalle
        self._chunk, self._on_batch = chunk, on_batch
        self._decoder = SharedDecoder(dalle.image_tokenizer)
        self._waiting: deque[_CallWork | _DrawWork] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._in_hand = 0  # candidates of the batch that is being drawn
        self._rate = 0.0  # candidates per second of the last batch
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def draw(
        self,
        make: Callable[[], GenerationRequest],
        candidates: int,
        *,
        previews: int = 0,
        shown: int = 1,
        show: Show = lambda images: None,
    ) -> "Future[DrawnRequest]":
        """Have candidates drawn.

        Args:
            make: makes the request, on the engine's thread; what it raises is what the future raises.
            candidates: how many it will have.
            previews: how often unfinished pictures are shown.
            shown: how many of the candidates these show.
            show: see `Show`.
        """
        return self._submit(_DrawWork(Future(), make, candidates, previews, shown, show))

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Have a function called that uses the model."""
        return self._submit(_CallWork(Future(), function))

    @property
    def candidates(self) -> int:
        """How many candidates wait or are being drawn."""
        with self._changed:
            return self._in_hand + sum(_size(work) for work in self._waiting)

    @property
    def seconds_left(self) -> float:
        """How long what waits or is being drawn will take, by the speed of the last batch."""
        return self.candidates / self._rate if self._rate else 1.0

    def close(self) -> None:
        """Finish what waits and end; nothing may be submitted any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, work: Any) -> "Future[Any]":
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append(work)
            self._changed.notify()
        work.future.add_done_callback(self._forget)
        return work.future

    def _forget(self, future: "Future[Any]") -> None:
        """Take work that was cancelled out of the queue, with the pictures that it holds."""
        with self._changed:
            for work in [work for work in self._waiting if work.future is future]:
                self._waiting.remove(work)

    def _run(self) -> None:
        while works := self._take():
            for work in works:
                if isinstance(work, _CallWork):
                    _settle(work.future, work.function)
            drawings = [work for work in works if isinstance(work, _DrawWork)]
            start = time.perf_counter()
            self._draw(drawings)
            finished = [work for work in drawings if not work.future.cancelled() and not work.future.exception()]
            if finished:
                self._rate = sum(map(_size, finished)) / (time.perf_counter() - start)

    def _take(self) -> list[_CallWork | _DrawWork]:
        """What is done next: the first in the queue, and what fits into a batch with it; nothing at the end."""
        with self._changed:
            self._in_hand = 0
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            works: list[_CallWork | _DrawWork] = []
            while self._waiting and (not works or self._in_hand + _size(self._waiting[0]) <= self._chunk):
                works.append(self._waiting.popleft())
                self._in_hand += _size(works[-1])
            return works

    def _draw(self, drawings: Sequence[_DrawWork]) -> None:
        """Draw a batch. If it fails as a whole, as where the memory is full, each request is drawn alone."""
        begun = []
        for drawing in drawings:
            made = None if drawing.future.cancelled() else _try(drawing.future, partial(self._make, drawing))
            if made is not None:
                begun.append((drawing, *made))
        if not begun:
            return
        self._on_batch(sum(len(request.seeds) for _, request, _ in begun))
        # Only those with equally long starts are drawn together.
        begun.sort(key=lambda one: self._known_start(one[1]))
        for _, alike in groupby(begun, lambda one: self._known_start(one[1])):
            self._draw_alike([*alike])

    def _draw_alike(self, begun: list[tuple[_DrawWork, GenerationRequest, IdRequest]]) -> None:
        dalle = self.dalle
        try:
            ids = [one for _, _, one in begun]
            generated = generate_many(dalle.transformer, dalle.stream, ids, chunk=self._chunk)
            drawn = [
                (drawing.future, request, one)
                for (drawing, request, _), one in zip(begun, generated, strict=True)
                if not drawing.future.cancelled()
            ]
            decoded = self._decode([(request, one) for _, request, one in drawn])
            for (future, request, one), pixels in zip(drawn, decoded, strict=True):
                _settle(future, partial(self._finish, request, one, pixels))
        except Exception as error:
            for drawing in [drawing for drawing, _, _ in begun if not drawing.future.done()]:
                if len(begun) > 1:
                    self._draw([drawing])
                else:
                    _fail(drawing.future, error)

    def _decode(self, drawn: Sequence[tuple[GenerationRequest, GeneratedIds]]) -> list[dict[int, Tensor] | None]:
        """Pixels of each request's candidates that are decoded; None where these have to be decoded by themselves."""
        rows = [[] if request.sampling.tile else decoded_candidates(request, generated) for request, generated in drawn]
        shared = [generated.image_ids[some] for (_, generated), some in zip(drawn, rows, strict=True) if some]
        pixels = self._decoder.decode(shared) if len(shared) > 1 else None
        if pixels is None:
            return [None] * len(rows)
        parts = iter(pixels)
        return [dict(zip(some, next(parts), strict=True)) if some else None for some in rows]

    def _make(self, drawing: _DrawWork) -> tuple[GenerationRequest, IdRequest]:
        """A request, and what to sample for it."""
        request = drawing.make()
        return request, self._followed(drawing, request)

    def _known_start(self, request: GenerationRequest) -> int:
        """How many known ids the candidates of a request begin with."""
        return len(request.canvas.known.shared_prefix(self.dalle.stream)) if request.canvas else 0

    def _followed(self, drawing: _DrawWork, request: GenerationRequest) -> IdRequest:
        """What to sample, with a watch that shows unfinished pictures and notices a cancelled future."""
        stream = self.dalle.stream
        first = self._known_start(request)
        steps = range(1, drawing.previews + 1)
        cells = {first + round((stream.image_length - first) * step / (drawing.previews + 1)) for step in steps}

        def watch(done: int, ids: Callable[[], Tensor]) -> bool:
            if drawing.future.cancelled():
                return False
            if done in cells and done < stream.image_length:
                cells.remove(done)  # candidates that are drawn after the first ones are not shown
                drawing.show(decode_unfinished(ids()[: drawing.shown], stream, request.canvas, self.dalle.decode))
            return True

        return dataclasses.replace(request.ids, watch=watch)

    def _finish(
        self, request: GenerationRequest, generated: GeneratedIds, decoded: dict[int, Tensor] | None
    ) -> DrawnRequest:
        dalle = self.dalle
        model = dalle.transformer, dalle.stream, dalle.image_tokenizer
        result = finish(request, generated, *model, dalle.source, decoded)
        image_ids = len(request.seeds) * dalle.stream.image_length
        return DrawnRequest(result, len(request.prompt_ids.text_ids), image_ids)


def _size(work: _CallWork | _DrawWork) -> int:
    return work.candidates if isinstance(work, _DrawWork) else 0


def _try(future: "Future[Any]", function: Callable[[], T]) -> T | None:
    """What a function returns; None if it raised an error, which becomes that of the future."""
    try:
        return function()
    except Exception as error:
        _fail(future, error)
        return None


def _settle(future: "Future[T]", function: Callable[[], T]) -> None:
    """Give a future what a function returns or raises, unless it was cancelled."""
    if future.cancelled():
        return
    value = _try(future, function)
    with suppress(InvalidStateError):  # cancelled meanwhile, or failed already
        future.set_result(value)  # type: ignore[arg-type]


def _fail(future: "Future[Any]", error: Exception) -> None:
    with suppress(InvalidStateError):  # it is done already
        future.set_exception(error)
