"""The recipe for several machines, with two replicas on this one."""

import importlib.util
import io
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-this-service"


@pytest.fixture
def address(tiny_model, tmp_path, monkeypatch):
    """Of a service with two replicas."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    serve = pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    variables = {"DALLE_MODEL": str(tiny_model), "DALLE_REPLICAS": "2", "DALLE_API_KEYS": KEY, "DALLE_CPUS": "0.5"}
    for name, value in {**variables, "DALLE_FOLDER": str(tmp_path / "files")}.items():
        monkeypatch.setenv(name, value)
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        spec = importlib.util.spec_from_file_location("ray_serve", ROOT / "deploy" / "ray_serve.py")
        recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipe)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(recipe.app)
        (deployment,) = serve.status().applications["default"].deployments.values()
        assert deployment.replica_states == {"RUNNING": 2}
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(address, path, fields=None):
    body = None if fields is None else json.dumps(fields).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address + path, body, headers), timeout=120) as answer:
        return answer.read()


@pytest.mark.slow
def test_two_replicas_draw_the_same_pictures(address, own_dalle, tmp_path):
    requests = [{"prompt": f"{number} cats", "seed": number, "quality": "low"} for number in range(12)]
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda fields: json.loads(ask(address, "/v1/images/generations", fields)), requests))
    for fields, answer in zip(requests, answers, strict=True):
        expected = own_dalle.generate(fields["prompt"], candidates=1, keep=1, seed=fields["seed"], rank="none")
        (item,) = answer["data"]
        assert item["seed"] == expected[0].seed
        content = ask(address, item["url"].removeprefix(address))  # whichever replica has written it
        assert Image.open(io.BytesIO(content)).tobytes() == expected[0].image.tobytes()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(address + "/v1/models", timeout=120)
