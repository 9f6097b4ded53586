"""A real process over loopback, and OpenAI's own client."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from helpers.commands import one_line
from helpers.serving import png
from helpers.training import DEADLINE
from PIL import Image

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.serve.keys import VARIABLE, Keys
from dalle_mini_impl.serve.server import bind
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

KEY = "a-key-of-this-service"
LARGE = "640x384"


@contextmanager
def running(model, *options, **environment):
    """`dalle serve` on a free port: the process and its address."""
    command = [
        sys.executable,
        "-m",
        "dalle_mini_impl",
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [*command, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), (line, process.stderr.read())
        yield process, line.split()[-1]
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(tiny_model, tmp_path_factory):
    """Of a service that all tests of this file share."""
    folder = tmp_path_factory.mktemp("service")
    keys = folder / "keys.txt"
    keys.write_text(KEY)
    with running(tiny_model, "--name", "tiny", "--keys-file", keys, "--folder", folder / "files") as (_, address):
        yield address


@pytest.fixture
def openai(address):
    """OpenAI's own client, unchanged."""
    package = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    return package.OpenAI(base_url=address, api_key=KEY, max_retries=0)


def picture_of(item):
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def test_openais_client_draws(openai, tiny_model):
    answer = openai.images.generate(
        prompt="a red heart", n=2, size="80x48", response_format="b64_json", model="tiny", quality="low",
        extra_body={"seed": 5},
    )  # fmt: skip
    assert [picture_of(item).size for item in answer.data] == [(80, 48)] * 2
    expected = DalleMini.from_pretrained(tiny_model, "cpu").generate("a red heart", candidates=2, keep=2, seed=5)
    small = [picture_of(item).resize((40, 24), Image.Resampling.NEAREST) for item in answer.data]
    assert [image.tobytes() for image in small] == [one.image.tobytes() for one in expected]
    assert answer.usage.output_tokens == 2 * 15


def test_openais_client_gets_addresses(openai, tmp_path):
    answer = openai.images.generate(prompt="a cat")
    content = openai._client.get(answer.data[0].url).content
    (tmp_path / "one.png").write_bytes(content)
    assert read_metadata(tmp_path / "one.png")["pictures"][0]["prompt"] == "a cat"


def test_openais_client_streams(openai):
    events = list(openai.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 1}))
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    plain = openai.images.generate(prompt="a cat", response_format="b64_json", extra_body={"seed": 1})
    assert events[-1].b64_json == plain.data[0].b64_json


def test_openais_client_edits_and_varies(openai):
    picture = Image.effect_noise((40, 24), 90).convert("RGB")
    mask = picture.convert("RGBA")
    mask.paste((0, 0, 0, 0), (20, 8, 40, 24))
    files = {"image": ("a.png", png(picture)), "mask": ("m.png", png(mask))}
    options = {"response_format": "b64_json", "extra_body": {"seed": 2}}
    edited = picture_of(openai.images.edit(prompt="a cat", **files, **options).data[0])
    kept = (0, 0, 40, 8)
    assert edited.crop(kept).tobytes() == picture.crop(kept).tobytes()
    assert edited.tobytes() != picture.tobytes()
    streamed = list(openai.images.edit(prompt="a cat", **files, stream=True, extra_body={"seed": 2}))
    assert picture_of(streamed[-1]).tobytes() == edited.tobytes()
    varied = openai.images.create_variation(image=("a.png", png(picture)), n=2, **options)
    assert [picture_of(item).size for item in varied.data] == [(40, 24)] * 2


def test_openais_client_understands_the_errors(openai, address):
    import openai as package

    with pytest.raises(package.BadRequestError, match="expected n to be greater") as caught:
        openai.images.generate(prompt="a cat", n=0)
    assert caught.value.param == "n"
    with pytest.raises(package.NotFoundError, match="expected model tiny"):
        openai.images.generate(prompt="a cat", model="gpt-image-9")
    with pytest.raises(package.AuthenticationError, match="one of the keys"):
        package.OpenAI(base_url=address, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(package.APIError, match="top_p"):
        list(openai.images.generate(prompt="a cat", stream=True, extra_body={"top_p": 7}))
    assert [model.id for model in openai.models.list()] == ["tiny"]


def test_sigterm_finishes_what_was_begun(tiny_model, tmp_path):
    package = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    with running(tiny_model, "--max-candidates", "2000", TMPDIR=str(tmp_path)) as (process, address):
        assert [path.name[:12] for path in tmp_path.glob("dalle-serve-*")] == ["dalle-serve-"]
        client = package.OpenAI(base_url=address, api_key="none", max_retries=0)
        many = {"prompt": "a cat", "stream": True, "partial_images": 1, "extra_body": {"candidates": 1500, "n": 3}}
        events = iter(client.images.generate(**many))
        first = next(events)  # it is being drawn
        process.send_signal(signal.SIGTERM)
        rest = list(events)
        assert first.type == "image_generation.partial_image"
        assert [event.type for event in rest].count("image_generation.completed") == 3
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == ""
        assert not [*tmp_path.glob("dalle-serve-*")]


@pytest.mark.slow
def test_ctrl_c_ends_it(tiny_model, tmp_path):
    with running(tiny_model, "--folder", tmp_path / "files") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == ""


# --- what ends it before it begins


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_port_in_use_is_told_before_the_model_is_loaded(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"expected a free port, got {port}" in one_line(refused("serve", "--port", port, "--model", "nothing"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_others_can_reach_it_only_with_keys(refused, host):
    assert "expected keys, because others can reach" in one_line(refused("serve", "--host", host))


def test_with_keys_any_address_of_this_machine_is_bound():
    with bind("0.0.0.0", 0, Keys([KEY])) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    with bind("localhost", 0, Keys()) as bound:
        assert bound.getsockname()[0] in ("127.0.0.1", "::1")
    with pytest.raises(UserError, match=r"an address of this machine|cannot bind"):
        bind("192.0.2.7", 0, Keys([KEY]))
    with pytest.raises(UserError, match="an address of this machine, got --host no such"):
        bind("no such host.invalid", 0, Keys([KEY]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nothing"), "no model 'nothing'"),
        (("--keys-file", "missing.txt"), "expected a file with one key per line"),
        (("--queue", "0"), "0 is not in the range"),
        (("--max-upload", "nan"), "nan"),
        (("--port", "70000"), "70000 is not in the range"),
    ],
)
def test_wrong_options_end_with_one_line(refused, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in one_line(refused("serve", "--port", 0, *options))


def test_without_its_extra_the_error_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install fastapi uvicorn python-multipart prometheus-client" in one_line(refused("serve"))
