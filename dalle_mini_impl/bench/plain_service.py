"""The service that one writes first: a route that draws one request after the other. `dalle bench` measures it."""

import argparse
import base64
import socket
import threading
from typing import Any

import uvicorn
from fastapi import Body, FastAPI

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.save_picture import picture_bytes


def make_plain_app(dalle: DalleMini) -> FastAPI:
    """An app whose one route does for a single picture what `/v1/images/generations` of `serve.app` does."""
    app, one_at_a_time = FastAPI(), threading.Lock()

    @app.post("/v1/images/generations")
    def generations(fields: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        with one_at_a_time:
            result = dalle.generate(fields["prompt"], candidates=1, keep=1, seed=fields["seed"], rank="none")
        png = picture_bytes(result[0].image, metadata=result.metadata())
        return {"data": [{"b64_json": base64.b64encode(png).decode()}]}

    return app


def main() -> None:
    """Serve on a free port of this machine, whose address is printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    app = make_plain_app(DalleMini.from_pretrained(arguments.model, arguments.device))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        print(f"serving at http://127.0.0.1:{bound.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[bound])


if __name__ == "__main__":
    main()
