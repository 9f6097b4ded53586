"""The routes of the service."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from dalle_mini_impl import __version__
from dalle_mini_impl.config.serving import ServiceLimits
from dalle_mini_impl.pipeline.canvas import model_size
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.requests import choose_chunk
from dalle_mini_impl.serve import answers, drawing, uploads
from dalle_mini_impl.serve.engine import Engine
from dalle_mini_impl.serve.errors import ApiError, add_error_handlers, api_error, log
from dalle_mini_impl.serve.fields import (
    EditFields,
    Fields,
    ImageFields,
    ScoreFields,
    VariationFields,
    parse,
)
from dalle_mini_impl.serve.guard import FREE_PLACE, Guard
from dalle_mini_impl.serve.keys import Keys
from dalle_mini_impl.serve.metrics import Metrics
from dalle_mini_impl.serve.picture_files import PictureFiles

T = TypeVar("T")
SWEEP_SECONDS = 60.0
"""How often the files whose time is over are looked for."""
CODERS = 2
"""Threads that decode and encode pictures, which bounds how many are in memory in full size."""


class Service(NamedTuple):
    """What the routes use."""

    engine: Engine
    limits: ServiceLimits
    names: tuple[str, ...]
    """Names of the model; it is listed under the first."""
    files: PictureFiles
    url: str
    """Address of the service as clients see it; empty for the one of each request."""
    metrics: Metrics
    coders: ThreadPoolExecutor
    created: int
    """Seconds since 1970."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the model."""
        return self.engine.dalle.stream.config.grid

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the model's pictures."""
        return model_size(self.engine.dalle.image_tokenizer, self.grid)

    async def code(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that decodes or encodes pictures."""
        return await asyncio.get_running_loop().run_in_executor(self.coders, partial(function, *arguments))

    def check_model(self, fields: Fields) -> None:
        """Refuse a model of another name.

        Raises:
            ApiError: it has another.
        """
        if fields.model is not None and fields.model not in self.names:
            raise no_such_model(fields.model, self.names)


def no_such_model(name: str, names: tuple[str, ...]) -> ApiError:
    """The answer where a model has another name."""
    return ApiError(
        f"expected model {' or '.join(names)}, got {name[:60]!r}; GET /v1/models lists it",
        404,
        param="model",
        code="model_not_found",
    )


def make_app(
    dalle: DalleMini,
    names: tuple[str, ...],
    folder: Path,
    *,
    keys: Keys,
    limits: ServiceLimits,
    chunk: int | None = None,
    url: str = "",
) -> FastAPI:
    """The service as an ASGI app, with an engine that ends with it.

    Args:
        dalle: the model; nothing else may use it.
        names: of the model; the first is what PNG files record.
        folder: of the pictures that answers refer to by address.
        keys: one of them is needed, if there are any.
        limits: of requests.
        chunk: most candidates that are drawn together; None chooses.
        url: see `Service`.

    Raises:
        UserError: the folder cannot be made.
    """
    files, metrics = PictureFiles(folder, limits.url_seconds), Metrics()
    dalle.source = {**dalle.source, "model": names[0]}  # not a path of this machine
    engine = Engine(dalle, chunk or choose_chunk(dalle.transformer, dalle.stream), metrics.batch.observe)
    metrics.follow(engine)
    coders = ThreadPoolExecutor(CODERS, "coder")
    service = Service(engine, limits, names, files, url, metrics, coders, int(time.time()))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.to_thread(engine.close)
            coders.shutdown()

    # The pages at docs_url and redoc_url would load scripts from elsewhere.
    app = FastAPI(title="dalle serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    add_error_handlers(app)
    _add_routes(app, service)
    app.add_middleware(Guard, keys=keys, limits=limits, metrics=metrics, seconds_left=lambda: engine.seconds_left)
    return app


async def _sweep(service: Service) -> None:
    while True:
        try:
            await service.code(service.files.remove_old)
        except OSError as error:
            log.error("old pictures could not be removed", exc_info=error)
        await asyncio.sleep(SWEEP_SECONDS)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/generations", openapi_extra=_described("application/json", ImageFields))
    async def generations(request: Request) -> Response:
        """Draw pictures for a prompt."""
        fields = await uploads.read_json(request, ImageFields)
        return await _draw(service, request, fields, "image_generation")

    @app.post("/v1/images/edits", openapi_extra=_described("multipart/form-data", EditFields, "image", "mask"))
    async def edits(request: Request) -> Response:
        """Redraw the parts of a picture that a mask shows."""
        upload = await uploads.read_form(request, service.limits)
        fields = parse(EditFields, upload.values)
        mask = upload.image("mask") if "mask" in upload.files else None
        factor = service.engine.dalle.image_tokenizer.config.factor
        prepared = await service.code(
            uploads.prepare_edit, upload.image("image"), mask, service.limits, service.grid, factor
        )
        return await _draw(service, request, fields, "image_edit", drawing.edit(prepared, fields))

    @app.post("/v1/images/variations", openapi_extra=_described("multipart/form-data", VariationFields, "image"))
    async def variations(request: Request) -> Response:
        """Draw pictures like another one."""
        upload = await uploads.read_form(request, service.limits)
        fields = parse(VariationFields, upload.values)
        picture = await service.code(uploads.prepare_varied, upload.image("image"), service.limits)
        return await _draw(service, request, fields, "image_generation", drawing.vary(picture, fields))

    @app.post("/v1/score", openapi_extra=_described("multipart/form-data", ScoreFields, "image"))
    async def score(request: Request) -> Response:
        """Rank pictures by how well they fit a prompt, or say which labels fit each."""
        upload = await uploads.read_form(request, service.limits)
        fields = parse(ScoreFields, upload.values)
        service.check_model(fields)
        fields.check(service.limits)
        contents = upload.files.get("image", [])
        if not contents:
            raise ApiError("expected pictures as image, got none; send each as a file", param="image")
        scorer = service.engine.dalle.scorer
        prepare = partial(uploads.prepare_scored, preprocess=scorer.preprocess, limits=service.limits)
        pixels = torch.cat([await service.code(prepare, content) for content in contents])
        answer = service.engine.call(lambda: drawing.score(scorer, pixels, fields))
        return JSONResponse(await _finished(service, request, answer))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model."""
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        if name not in service.names:
            raise no_such_model(name, service.names)
        return _model(service, name)

    @app.get("/files/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        content = await service.code(service.files.read, name)
        if content is None:
            raise ApiError("expected the address of a picture, got one that is over or never was; draw it again", 404)
        headers = {"cache-control": "private, max-age=60", "x-content-type-options": "nosniff"}
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}", headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the service answers."""
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "dalle_mini_impl"}


def _described(content_type: str, fields: type[Fields], *files: str) -> dict[str, Any]:
    """The body of a route in the schema at /openapi.json."""
    schema = fields.model_json_schema()
    for name in files:
        schema["properties"][name] = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {content_type: {"schema": schema}}}}


async def _draw(
    service: Service,
    request: Request,
    fields: ImageFields,
    kind: str,
    make_arguments: drawing.MakeArguments | None = None,
) -> Response:
    """Draw the pictures of a request and answer it."""
    service.check_model(fields)
    zoom = fields.check(service.limits, service.size)
    if fields.stream:
        events = _events(service, request, fields, kind, zoom, make_arguments)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    drawn = await _finished(service, request, drawing.draw(service.engine, fields, make_arguments))
    contents = await service.code(answers.encode_pictures, drawn, zoom, fields)
    service.metrics.pictures.inc(len(contents))
    if fields.response_format == "b64_json":
        places = [answers.as_text(content) for content in contents]
    else:
        base = service.url or str(request.base_url)
        names = [await service.code(service.files.add, content, fields.ending) for content in contents]
        places = [{"url": f"{base.rstrip('/')}/files/{name}"} for name in names]
    return JSONResponse(answers.images_answer(drawn, places, fields, _size_text(service, zoom)))


async def _events(
    service: Service,
    request: Request,
    fields: ImageFields,
    kind: str,
    zoom: int,
    make_arguments: drawing.MakeArguments | None,
) -> AsyncIterator[str]:
    """The events of a request with `stream`. Where the client goes away, the iterator is closed and drawing ends."""
    loop, size = asyncio.get_running_loop(), _size_text(service, zoom)
    shown: asyncio.Queue[list[Image.Image] | None] = asyncio.Queue()

    def show(images: list[Image.Image] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(shown.put_nowait, images)

    previews = {"previews": fields.partial_images, "shown": fields.n, "show": show}
    future = drawing.draw(service.engine, fields, make_arguments, **previews)
    _free_place_when_done(request, future)
    future.add_done_callback(lambda _: show(None))
    try:
        number = 0
        while (images := await shown.get()) is not None:
            contents = await service.code(answers.encode_previews, images, zoom, fields)
            for index, content in enumerate(contents):
                yield answers.partial_event(kind, number, index, content, fields, size)
            number += 1
        drawn = future.result()
        contents = await service.code(answers.encode_pictures, drawn, zoom, fields)
        service.metrics.pictures.inc(len(contents))
        for index, content in enumerate(contents):
            yield answers.completed_event(kind, index, content, drawn, fields, size)
    except Exception as error:  # the answer has begun, so its status cannot tell
        yield answers.event("error", api_error(error).body)
    finally:
        if future.cancel():
            service.metrics.given_up.inc()


def _size_text(service: Service, zoom: int) -> str:
    width, height = service.size
    return f"{width * zoom}x{height * zoom}"


async def _finished(service: Service, request: Request, future: "Future[T]") -> T:
    """What the engine returns; if the client goes away before, the work is given up.

    Raises:
        ClientDisconnect: it went away.
    """
    _free_place_when_done(request, future)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    done = asyncio.wrap_future(future)
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if future.cancel():
            service.metrics.given_up.inc()


def _free_place_when_done(request: Request, future: "Future[Any]") -> None:
    """Let another request have the place in the queue, whose answer may take long to be read."""
    loop, free = asyncio.get_running_loop(), request.scope["state"][FREE_PLACE]

    def done(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(free)

    future.add_done_callback(done)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
