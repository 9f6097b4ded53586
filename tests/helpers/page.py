"""The page of `dalle app` served for tests, asked as a browser asks it, and opened in one."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Visitor:
    """Somebody who uses the page without a browser.

    Args:
        address: of the page.
        session: its hash.
        config: what the page consists of; asked for if it is not given.
    """

    address: str
    session: str
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.config or json.loads(self.get("/config"))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address.rstrip("/") + path, timeout=120) as answer:
            return answer.read().decode()

    def post(self, path: str, values: Any) -> Any:
        request = urllib.request.Request(
            self.address.rstrip("/") + path, json.dumps(values).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def upload(self, path: Path) -> dict[str, Any]:
        """Upload a file; returns what a field of the page then holds."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n'
        body = f"{head}Content-Type: image/png\r\n\r\n".encode() + path.read_bytes() + b"\r\n--x--\r\n"
        url, kind = f"{self.address.rstrip('/')}/gradio_api/upload", {"content-type": "multipart/form-data; boundary=x"}
        with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=120) as answer:
            (stored,) = json.loads(answer.read())
        return {"path": stored, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def functions_of(self, target: int, event: str = "click") -> list[dict[str, Any]]:
        """Functions that start when something happens to a component."""
        return [one for one in self.config["dependencies"] if [target, event] in map(list, one["targets"])]

    def function_of(self, button: str) -> int:
        """Number of the function that a button starts."""
        (component,) = [
            one["id"]
            for one in self.config["components"]
            if one["type"] == "button" and one["props"].get("value") == button
        ]
        (found,) = self.functions_of(component)
        return found["id"]

    def stop(self, button: str) -> None:
        """Press the button that stops what another one has started."""
        started = self.function_of(button)
        (stopper,) = {
            target for one in self.config["dependencies"] if started in one["cancels"] for target, _ in one["targets"]
        }
        for one in self.functions_of(stopper):
            if one["backend_fn"]:
                self.post("/gradio_api/run/predict", {"data": [], "fn_index": one["id"], "session_hash": self.session})

    def press(self, button: str, *values: Any) -> str:
        """Press a button with values in the fields that it reads; returns the event that now waits in line."""
        body = {"data": list(values), "fn_index": self.function_of(button), "session_hash": self.session}
        return self.post("/gradio_api/queue/join", body)["event_id"]

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the page is told until all that was asked for is done."""
        url = f"{self.address.rstrip('/')}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(url, timeout=120) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium that finds no other host than this machine; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        try:
            yield chromium
        finally:
            chromium.close()
