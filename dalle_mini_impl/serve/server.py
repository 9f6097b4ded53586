"""Binds the socket, loads the model and serves until it is told to end."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dalle_mini_impl.config.serving import ServiceLimits
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.serve.app import make_app
from dalle_mini_impl.serve.keys import Keys
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.loopback import is_loopback

BACKLOG = 512
"""Connections that may wait to be accepted."""


class _Server(uvicorn.Server):
    """Tells when it answers.

    Args:
        config: of uvicorn.
        on_start: called then.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._on_start()


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a service runs."""

    host: str = "127.0.0.1"
    """Name or address that it is bound to."""
    port: int = 8000
    """0 for any that is free."""
    names: tuple[str, ...]
    """Of the model, as clients call it."""
    folder: Path | None = None
    """Where the pictures of answers with addresses are; None for a temporary folder."""
    url: str = ""
    """Address of the service as clients see it, where another program stands before it."""
    chunk: int | None = None
    """Candidates drawn together; None chooses."""


def bind(host: str, port: int, keys: Keys) -> socket.socket:
    """A socket that is bound, but does not listen yet.

    Raises:
        UserError: others could reach it without a key, there is no such address, or another program uses the port.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"expected an address of this machine, got --host {host} ({error}); try 127.0.0.1") from error
    if not is_loopback(str(address[0])) and not keys:
        raise UserError(
            f"expected keys, because others can reach {host}, got none; give --keys-file, or leave out --host"
        )
    bound = socket.socket(family, kind)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"expected a free port, got {port}, which another program uses; choose another --port, or 0 for any"
            ) from error
        raise UserError(
            f"cannot bind {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from error
    return bound


def run_service(
    load: Callable[[], DalleMini],
    serving: Serving,
    keys: Keys,
    limits: ServiceLimits,
    on_start: Callable[[str], object],
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; what was begun by then is finished.

    Args:
        load: loads the model, once the socket is bound.
        serving: how it runs.
        keys: one of them is needed, if there are any.
        limits: of requests.
        on_start: called with the address of the service, once it answers.

    Raises:
        UserError: see `bind`, or what `load` raises, or the folder of pictures cannot be made.
    """
    with bind(serving.host, serving.port, keys) as bound, contextlib.ExitStack() as stack:
        folder = serving.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dalle-serve-")))
        app = make_app(load(), serving.names, folder, keys=keys, limits=limits, chunk=serving.chunk, url=serving.url)
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="warning",
            access_log=False,
            backlog=BACKLOG,
            server_header=False,
            timeout_graceful_shutdown=round(limits.grace),
        )
        host, port = bound.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        # The signal that ended it is raised again at the end, once everything is finished.
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, lambda: on_start(address)).run(sockets=[bound])
