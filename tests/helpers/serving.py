"""A service over a small model, as tests speak to it."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from dalle_mini_impl.config.serving import ServiceLimits
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.serve.app import Service, make_app
from dalle_mini_impl.serve.keys import Keys

ADDRESS = "http://127.0.0.1"
DRAW = "/v1/images/generations"


class Client(TestClient):
    """Sends requests to a service in this process."""

    @property
    def service(self) -> Service:
        """What the routes use."""
        app: Any = self.app
        return app.state.service

    def draw(self, prompt: str = "a red heart", **fields: Any) -> Any:
        """Send a request for pictures, as base64 unless told otherwise."""
        return self.post(DRAW, json={"prompt": prompt, "response_format": "b64_json", **fields})

    def metric(self, name: str) -> float:
        """The value of a counter."""
        lines = self.get("/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


@contextmanager
def serving(
    dalle: DalleMini, folder: Path, keys: tuple[str, ...] = (), chunk: int | None = None, **limits: Any
) -> Iterator[Client]:
    """A service; `limits` are fields of `ServiceLimits`."""
    app = make_app(dalle, ("tiny",), folder, keys=Keys(keys), limits=ServiceLimits(**limits), chunk=chunk)
    with Client(app, base_url=ADDRESS) as client:
        yield client


def picture_of(item: dict[str, Any]) -> Image.Image:
    """The picture of an item of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


def png(image: Image.Image) -> bytes:
    """A picture's file."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    """Assert that an answer is an error in OpenAI's form, and return it."""
    assert response.status_code == status, response.text
    (name, error), *rest = response.json().items()
    assert (name, rest) == ("error", [])
    assert {*error} == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error
