"""What is refused before gradio sees it."""

import asyncio
import json
import os
import time

import pytest

from dalle_mini_impl.app.guard import PageGuard, stored_bytes
from dalle_mini_impl.app.limits import MAX_BODY_BYTES, MAX_REQUEST_BYTES, MAX_STORED_BYTES, UPLOADS_KEPT_SECONDS

JOIN = "/gradio_api/queue/join"


def call(path, method="GET", body=b"", headers=None, folder=None, guard=None, client=("10.0.0.1", 1)):
    """Ask a guarded app that answers with the body that it got; returns status, headers and text."""

    async def echo(scope, receive, send):
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    sent = []
    length = {"content-length": str(len(body))} if method == "POST" else {}
    given = {"host": "127.0.0.1:7860", **length, **(headers or {})}
    scope = {
        "type": "http", "method": method, "path": path, "client": client,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run((guard or PageGuard(echo, folder, own_machine_only=True))(scope, receive, send))
    start, content = sent
    return start["status"], dict(start["headers"]), content["body"].decode()


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/gradio_api/file=/tmp/x.png", "/theme.css"])
def test_addresses_of_the_page_pass_with_headers_that_forbid_other_hosts(path):
    status, headers, _ = call(path)
    assert status == 200
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://x", "/gradio_api/file=https://x", "/gradio_api/run/draw", "/gradio_api/call/draw",
        "/gradio_api/component_server", "/monitoring", "/gradio_api/vibe-edit", "/docs", "/gradio_api/stream/1",
    ],
)  # fmt: skip
def test_other_addresses_of_gradio_do_not(path):
    assert call(path)[0] == 404


def test_bodies_pass_unchanged_and_are_bounded():
    assert call(JOIN, "POST", b'{"a": "https in a text"}')[::2] == (200, '{"a": "https in a text"}')
    status, _, text = call(JOIN, "POST", b"", {"content-length": str(MAX_BODY_BYTES + 1)})
    assert (status, "at most 2 MiB" in text) == (413, True)
    assert call(JOIN, "POST", b"", {"content-length": "many"})[0] == 411
    # A body in parts may be of any length, whatever is told.
    assert call(JOIN, "POST", b"{}", {"transfer-encoding": "chunked"})[0] == 411
    assert call(JOIN, "PUT")[0] == 405


@pytest.mark.parametrize("path", ["http://x/a.png", " HTTPS://x/a.png", "https://x"])
def test_no_file_is_fetched_that_a_request_names_by_address(path):
    body = json.dumps({"data": [{"deep": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}]})
    assert call(JOIN, "POST", body.encode())[0] == 403
    assert call(JOIN, "POST", body.replace("t", "\\u0074").encode())[0] == 403


def test_a_call_is_json_and_a_login_need_not_be():
    assert call(JOIN, "POST", b"no JSON")[0] == 403
    assert call("/login", "POST", b"username=a&password=b")[0] == 200


def test_uploads_are_bounded_one_by_one_and_together(tmp_path, monkeypatch):
    upload = "/gradio_api/upload"
    assert call(upload, "POST", b"abc", folder=tmp_path)[0] == 200
    assert call(upload, "POST", b"", {"content-length": str(MAX_REQUEST_BYTES + 1)}, folder=tmp_path)[0] == 413
    monkeypatch.setattr("dalle_mini_impl.app.guard.stored_bytes", lambda folder: MAX_STORED_BYTES - 4)
    statuses = []

    async def second(scope, receive, send):
        """While one upload arrives, another one begins."""
        await receive()
        if not statuses:
            statuses.append(0)
            statuses[0] = await asyncio.to_thread(lambda: call(upload, "POST", b"abc", guard=guard)[0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = PageGuard(second, tmp_path, own_machine_only=True)
    assert call(upload, "POST", b"abc", guard=guard)[0] == 200
    assert statuses == [507]
    assert call(upload, "POST", b"abc", guard=guard)[0] == 200


def test_what_uploads_leave_that_are_broken_off_is_removed(tmp_path):
    (tmp_path / "hash").mkdir()
    names = ("old", "new", "hash/whole")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    for name in ("old", "hash/whole"):
        os.utime(tmp_path / name, (time.time() - UPLOADS_KEPT_SECONDS - 1,) * 2)
    assert call("/gradio_api/upload", "POST", b"abc", folder=tmp_path)[0] == 200
    assert [(tmp_path / name).exists() for name in names] == [False, True, True]


def test_stored_bytes_counts_files_at_any_depth(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"12")
    assert stored_bytes(tmp_path) == 7


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1", "127.3.2.1:7860"])
def test_a_page_of_this_machine_answers_its_own_pages(host):
    assert call("/", headers={"host": host})[0] == 200
    assert call(JOIN, "POST", b"{}", {"host": host, "origin": f"http://{host}"})[0] == 200


def test_a_page_of_this_machine_answers_no_page_of_others():
    """A browser sends forms of any web site to any address, and a name of its own may lead a site here."""
    assert call("/", headers={"host": "evil.example:7860"})[0] == 403
    for origin in ("https://evil.example", "null"):
        assert call("/gradio_api/upload", "POST", b"abc", {"origin": origin})[0] == 403


def test_with_a_password_a_page_has_any_name():
    guard = PageGuard(None, None, own_machine_only=False)
    assert call("/other", headers={"host": "any.example", "origin": "https://any.example"}, guard=guard)[0] == 404
