"""What stands before the routes: keys, bounds of a request, and how many are answered at a time."""

import asyncio
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dalle_mini_impl.config.serving import MEGABYTE, ServiceLimits
from dalle_mini_impl.serve.errors import ApiError, api_error
from dalle_mini_impl.serve.keys import Keys
from dalle_mini_impl.serve.metrics import Metrics
from dalle_mini_impl.util.loopback import is_of_this_machine

OPEN_PATHS = ("/healthz", "/files/")
"""Begin the paths that need no key: names of files cannot be guessed."""
FREE_PLACE = "free_place"
"""Key in a request's state of a function that is called when its work is done, and its answer only has to be read."""
OPEN_ANSWERS = 4
"""Requests whose answers may be unread, for each place in the queue."""
LONGEST_WAIT = 600
"""Most seconds that `Retry-After` names."""


class Guard:
    """Lets requests through to an app, or answers them itself.

    Args:
        app: what answers.
        keys: one of them is needed, if there are any; without them, only pages of this machine may send requests.
        limits: bounds of a request, and how many are answered at a time.
        metrics: counts what is answered.
        seconds_left: how long until what waits now is drawn.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, limits: ServiceLimits, metrics: Metrics, seconds_left: Callable[[], float]
    ) -> None:
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
        self._seconds_left = seconds_left
        self._in_hand = self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await refusal.response(scope, receive, counting_send)
            elif scope["method"] == "POST":
                await self._bounded(scope, receive, counting_send)
            else:
                await self._app(scope, receive, counting_send)
        except Exception as error:
            if status:  # the answer has begun
                raise
            await api_error(error).response(scope, receive, counting_send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._keys and not is_of_this_machine(scope["headers"]):
            return ApiError("expected a request from this machine, got one for another; serve with --keys-file", 403)
        if not scope["path"].startswith(OPEN_PATHS) and not self._keys.accept(headers.get("authorization", "")):
            return ApiError(
                "expected one of the keys of this service, got another or none; send Authorization: Bearer KEY",
                401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limits.max_upload * MEGABYTE:
            return self._too_large()
        if self._in_hand >= self._limits.queue or self._open >= OPEN_ANSWERS * self._limits.queue:
            wait = min(LONGEST_WAIT, max(1, math.ceil(self._seconds_left())))
            return ApiError(
                f"expected at most {self._limits.queue} requests at a time, got one more; send it again in {wait} s",
                429,
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait)},
            )
        return None

    def _too_large(self) -> ApiError:
        return ApiError(
            f"expected a request of at most {self._limits.max_upload:g} MB, got more; send smaller pictures", 413
        )

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whose body has to come in time and must not be longer than allowed.

        Its place is free when its work is done: a client may take long to read the answer.
        """
        loop = asyncio.get_running_loop()
        deadline, left, is_read = loop.time() + self._limits.upload_seconds, self._limits.max_upload * MEGABYTE, False

        async def bounded_receive() -> Message:
            nonlocal left, is_read
            if is_read:  # what comes now is that the client goes away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except TimeoutError:
                seconds = f"{self._limits.upload_seconds:g} s"
                raise ApiError(f"expected the whole request within {seconds}, got a part; send it again", 408) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            is_read = not message.get("more_body", False)
            return message

        has_place = False

        def take(places: int) -> None:
            nonlocal has_place
            if has_place != (places > 0):
                has_place = places > 0
                self._in_hand += places
                self._metrics.in_hand.set(self._in_hand)

        take(1)
        self._open += 1
        scope.setdefault("state", {})[FREE_PLACE] = lambda: take(-1)
        try:
            await self._app(scope, bounded_receive, send)
        finally:
            take(-1)
            self._open -= 1
