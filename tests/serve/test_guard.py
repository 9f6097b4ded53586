"""Keys, bounds and how many requests are answered at a time."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from helpers.engines import busy
from helpers.serving import DRAW, error_of, serving

from dalle_mini_impl.serve.guard import OPEN_ANSWERS

KEY = "a-key-of-this-service"


def test_everything_but_health_and_files_needs_a_key(own_dalle, tmp_path):
    with serving(own_dalle, tmp_path, keys=("another-key-01234567", KEY)) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert error_of(client.get(path), 401)["code"] == "invalid_api_key"
        assert client.draw().status_code == 401
        assert client.get("/healthz").status_code == 200
        client.headers["authorization"] = f"Bearer {KEY}"
        url = client.draw(response_format="url").json()["data"][0]["url"]
        assert client.get("/v1/models").status_code == 200
        client.headers["host"] = "pictures.example"  # who has a key may come from anywhere
        assert client.get("/v1/models").status_code == 200
        del client.headers["authorization"]
        assert client.get(url).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "http://127.0.0.1:5173"}, 200),
        ({"host": "pictures.example"}, 403),
        ({"host": "127.0.0.1.pictures.example"}, 403),
        ({"origin": "https://pictures.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "[::1"}, 403),
    ],
)
def test_without_keys_pages_of_others_are_refused(client, headers, status):
    assert client.get("/v1/models", headers=headers).status_code == status


def test_a_full_queue_is_told_with_how_long_to_wait(own_dalle, tmp_path):
    with serving(own_dalle, tmp_path, queue=3) as client, ThreadPoolExecutor(4) as clients:
        client.draw(quality="low")  # says how fast it is
        with busy(client.service.engine):
            waiting = [clients.submit(client.draw, quality="low") for _ in range(3)]
            while client.metric("dalle_in_hand_requests") < 3:
                assert not any(one.done() for one in waiting)
                time.sleep(0.001)  # a turn of polling
            refused = client.draw(quality="low")
            assert client.get("/healthz").status_code == 200
        error = error_of(refused, 429)
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 600
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert client.draw(quality="low").status_code == 200


def test_a_request_that_is_too_large_is_refused_before_it_is_read(own_dalle, tmp_path):
    with serving(own_dalle, tmp_path, max_upload=0.01) as client:
        limit = int(0.01 * 2**20)
        assert "at most 0.01 MB" in error_of(client.draw(prompt="x" * limit), 413)["message"]

        def chunks():  # without a length
            for _ in range(40):
                yield b" " * 1000

        error_of(client.post(DRAW, content=chunks(), headers={"content-type": "application/json"}), 413)
        error_of(
            client.post(
                "/v1/images/edits", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"}
            ),
            413,
        )
        assert client.draw().status_code == 200
        assert client.metric("dalle_in_hand_requests") == 0


# --- clients that go away or do not finish: straight to the app, as a server does


def scope_of(path=DRAW):
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip


async def exchange(app, messages):
    """Give an app what a client sends; returns what it answers."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return await anext(messages)

    await app(scope_of(), receive, send)
    return sent


@pytest.mark.parametrize("stream", [b"false", b"true"])
def test_where_a_client_goes_away_its_work_is_given_up(client, stream):
    engine = client.service.engine
    drawn_before = client.metric("dalle_batch_candidates_count")

    async def messages():
        body = b'{"prompt": "a", "stream": %s}' % stream
        yield {"type": "http.request", "body": body, "more_body": False}
        while not engine.candidates:
            await asyncio.sleep(0.001)  # a turn of polling: it waits in the queue
        yield {"type": "http.disconnect"}
        await asyncio.Event().wait()

    with busy(engine):
        sent = asyncio.run(exchange(client.app, messages()))
    engine.call(lambda: None).result()
    assert client.metric("dalle_batch_candidates_count") == drawn_before
    assert client.metric("dalle_given_up_total") == 1
    assert client.metric("dalle_in_hand_requests") == 0
    if stream == b"false":
        assert sent[0]["status"] == 499


def test_a_client_that_does_not_finish_its_request_is_not_waited_for(own_dalle, tmp_path):
    async def messages():
        yield {"type": "http.request", "body": b'{"prompt":', "more_body": True}
        await asyncio.Event().wait()

    with serving(own_dalle, tmp_path, upload_seconds=0.05) as client:
        sent = asyncio.run(exchange(client.app, messages()))
        assert sent[0]["status"] == 408
        assert b"the whole request within 0.05 s" in sent[1]["body"]


def test_threads_of_a_service_end_with_it(own_dalle, tmp_path):
    with serving(own_dalle, tmp_path) as client:
        client.draw()
        assert "engine" in {thread.name for thread in threading.enumerate()}
    names = {thread.name for thread in threading.enumerate()}
    assert not [name for name in names if name.startswith(("engine", "coder"))]


class SlowReader:
    """A client that reads nothing of its answer's body until it is told to, over an app in the same event loop."""

    def __init__(self, app, **fields):
        self.app, self.status, self.go_on, self.blocked = app, None, asyncio.Event(), asyncio.Event()
        self.body = json.dumps({"prompt": "a cat", "quality": "low", "response_format": "b64_json", **fields}).encode()

    async def receive(self):
        if self.body is None:
            await self.go_on.wait()
            return {"type": "http.disconnect"}
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self.blocked.set()
            await self.go_on.wait()

    def ask(self):
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
        scope |= {"path": DRAW, "raw_path": DRAW.encode(), "query_string": b"", "root_path": "", "headers": headers}
        return asyncio.ensure_future(self.app(scope, self.receive, self.send))


@pytest.mark.parametrize("stream", [False, True])
def test_who_reads_slowly_holds_no_place_and_not_all_memory(own_dalle, tmp_path, stream):
    async def talk(app):
        readers = [SlowReader(app, stream=stream) for _ in range(OPEN_ANSWERS)]
        asked = []
        for reader in readers:  # one after the other, because there is one place
            asked.append(reader.ask())
            await asyncio.wait_for(reader.blocked.wait(), 60)
        one_more = SlowReader(app)
        one_more.go_on.set()
        await one_more.ask()
        for reader in readers:
            reader.go_on.set()
        await asyncio.gather(*asked)
        return [reader.status for reader in readers], one_more.status

    with serving(own_dalle, tmp_path, queue=1) as client:
        assert client.portal.call(talk, client.app) == ([200] * OPEN_ANSWERS, 429)
        assert client.metric("dalle_in_hand_requests") == 0
        assert client.draw(quality="low").status_code == 200
