"""A web server in a thread that serves files from memory, and fails as it is told."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Web:
    """What the server serves, and what it was asked for."""

    address: str = ""
    """Such as `http://127.0.0.1:40123`."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Path, beginning with a slash -> content."""
    faults: dict[str, list[int]] = field(default_factory=dict)
    """Path -> what the next requests for it get: a status, or minus the number of bytes after which the line breaks.
    The last entry stays."""
    ranges: bool = True
    """Whether a part of a file can be asked for."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""


@contextmanager
def web_server() -> Iterator[Web]:
    """Serve on a free port of this machine."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            asked = self.headers.get("Range", "")
            web.requests.append((self.command, self.path, asked))
            faults = web.faults.get(path, [200])
            fault = faults.pop(0) if len(faults) > 1 else faults[0]
            if fault >= 400:
                self.reply(fault, b"a fault", with_body)
            elif path in web.files:
                content = web.files[path]
                place = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if web.ranges else None
                start = int(place[1]) if place else 0
                end = int(place[2]) + 1 if place and place[2] else len(content)
                part = content[start:end]
                self.reply(206 if place else 200, part, with_body, -fault if fault < 0 else len(part))
            elif below := sorted(name for name in web.files if name.startswith(path.rstrip("/") + "/")):
                start = len(path.rstrip("/")) + 1
                names = dict.fromkeys(name[start:].partition("/")[0] + "/" * ("/" in name[start:]) for name in below)
                page = "".join(f'<a href="{name}">{name}</a>' for name in ["../", *names])
                self.reply(200, page.encode(), with_body, kind="text/html")
            else:
                self.reply(404, b"nothing here", with_body)

        def reply(self, status: int, content: bytes, with_body: bool, sent: int = 1 << 62, kind: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content[:sent])
            if sent < len(content):
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        web.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
