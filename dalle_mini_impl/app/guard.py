"""What is refused before gradio sees it, and what browsers are told: bounded requests, and no other host is asked.

Gradio answers more addresses than the page uses; some fetch what a request names from other machines. Only those that
the page uses pass.
"""

import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from dalle_mini_impl.app.attempts import MAX_WRONG, Attempts
from dalle_mini_impl.app.limits import MAX_BODY_BYTES, MAX_REQUEST_BYTES, MAX_STORED_BYTES, UPLOADS_KEPT_SECONDS
from dalle_mini_impl.util.loopback import is_of_this_machine

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api/"
LOGIN = "/login"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", LOGIN, "/logout")
FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}file=", f"{API}heartbeat/")
CALLS = frozenset(
    f"{API}{name}"
    for name in (
        "app_id",
        "cancel",
        "login_check",
        "queue/data",
        "queue/join",
        "reset",
        "run/predict",
        "startup-events",
        "theme.css",
        "upload",
        "upload_progress",
        "user",
    )
)
"""Addresses that the page uses."""
UPLOAD = f"{API}upload"
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self'; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Sent with every answer: a browser then asks no other host, whatever the page contains."""


class PageGuard:
    """Passes on what the page needs, by the protocol of ASGI.

    Args:
        app: what answers.
        folder: of uploaded files.
        own_machine_only: whether it answers requests of this machine's own pages alone, so that no web site that is
            open in a browser here can send it anything, or reach it through a name of its own that leads here.
        attempts: counts wrong passwords.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        folder: Path,
        *,
        own_machine_only: bool,
        attempts: Attempts | None = None,
    ) -> None:
        self._app = app
        self._folder = folder
        self._own_machine_only = own_machine_only
        self._attempts = attempts or Attempts()
        self._arriving = 0  # bytes of uploads that have begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST" and scope["path"] in CALLS - {UPLOAD}:
            body = await _read(receive)
            receive = _replay(body, receive)
            if _names_address(body):
                refusal = 403, "expected JSON that names files of this page, got other content"
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if scope["method"] == "POST" and scope["path"] == LOGIN:
            await self._log_in(scope, receive, send)
            return
        arriving = _length(scope) if scope["path"] == UPLOAD else 0
        self._arriving += arriving
        try:
            await self._app(scope, receive, _with_headers(send))
        finally:
            self._arriving -= arriving

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a password, unless its address has tried too many wrong ones."""
        address = (scope.get("client") or ("", 0))[0]
        if wait := math.ceil(self._attempts.begin(address)):
            text = f"expected at most {MAX_WRONG} wrong passwords, got more; try again in {wait} s"
            await _answer(send, 429, text, {"retry-after": str(wait)})
            return

        async def noticed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._attempts.succeed(address)
            await send(message)

        await self._app(scope, receive, _with_headers(noticed))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason with which a request is refused, None if it is not."""
        headers = dict(scope["headers"])
        if self._own_machine_only and not is_of_this_machine(scope["headers"]):
            return 403, "expected a request for and from a page of this machine, got another one; open 127.0.0.1"
        path = scope["path"]
        if (path not in PAGES and path not in CALLS and not path.startswith(FOLDERS)) or path.startswith(
            f"{API}file=http"
        ):
            return 404, "expected an address of this page, got another one"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "expected GET or POST, got another method"
        # In parts, a request may be longer than it says.
        if not headers.get(b"content-length", b"").isdigit() or b"transfer-encoding" in headers:
            return 411, "expected a request that tells its length, got none"
        length, most = _length(scope), MAX_REQUEST_BYTES if path == UPLOAD else MAX_BODY_BYTES
        if length > most:
            return 413, f"expected at most {most // 2**20} MiB at once, got {length / 2**20:.1f}; send less"
        if path == UPLOAD:
            remove_unfinished(self._folder)
            if stored_bytes(self._folder) + self._arriving + length > MAX_STORED_BYTES:
                return 507, "expected room for more files, got none; try again in an hour"
        return None


def _length(scope: Scope) -> int:
    return int(dict(scope["headers"])[b"content-length"])


def remove_unfinished(folder: Path) -> None:
    """Remove what uploads that were broken off have left, which gradio forgets; whole files are in folders below."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # it is removed meanwhile, or still open
            if path.is_file() and time.time() - path.stat().st_mtime > UPLOADS_KEPT_SECONDS:
                path.unlink()


def stored_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, at any depth; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _names_address(body: bytes) -> bool:
    """Whether a request names a file by an address, which gradio would fetch; True if it is no JSON."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    content = text.encode()
    given = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(content)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
