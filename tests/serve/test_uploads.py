"""Pictures that clients send: bounded before they are decoded."""

import struct
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from helpers.serving import error_of, png, serving
from PIL import Image

from dalle_mini_impl.config.serving import ServiceLimits
from dalle_mini_impl.serve import uploads
from dalle_mini_impl.serve.app import CODERS
from dalle_mini_impl.serve.errors import ApiError
from dalle_mini_impl.serve.uploads import decode_upload

LIMITS = ServiceLimits(max_pixels=10_000)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side):
    """A small PNG file that says it has side² pixels, and holds many of them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(20_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [101, 5000, 12_000, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_before_its_pixels_are_decoded(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ApiError, match=r"at most 10000 pixels in image|cannot be read"):
        decode_upload(bomb(side), "image", LIMITS)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS", b"8BPS"]
)
def test_other_files_are_refused(content):
    with pytest.raises(ApiError, match="a picture as mask, got a file that cannot be read as one"):
        decode_upload(content, "mask", LIMITS)


def test_cut_off_and_damaged_pictures_are_refused():
    whole = png(Image.effect_noise((60, 60), 90))
    for content in (whole[:200], whole[:80] + bytes(40) + whole[120:]):
        with pytest.raises(ApiError, match="cannot be read"):
            decode_upload(content, "image", LIMITS)


def test_pictures_are_upright_and_of_two_modes():
    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[0x0112] = 6
    from io import BytesIO

    content = BytesIO()
    turned.save(content, "JPEG", exif=exif)
    assert decode_upload(content.getvalue(), "image", LIMITS).size == (10, 20)
    modes = {
        mode: decode_upload(png(Image.new(mode, (3, 3))), "image", LIMITS).mode
        for mode in ("1", "L", "LA", "P", "I;16")
    }
    assert modes == {"1": "RGB", "L": "RGB", "LA": "RGBA", "P": "RGB", "I;16": "RGB"}


def test_the_service_goes_on_after_a_bomb(own_dalle, tmp_path):
    with serving(own_dalle, tmp_path, max_pixels=10_000, max_upload=1) as client:
        for content in (bomb(9000), b"\x89PNG", b""):
            error_of(client.post("/v1/images/variations", files={"image": content}))
        error_of(client.post("/v1/score", files={"image": bomb(9000)}, data={"prompt": "a"}))
        many = [("image", b"x")] * 17
        assert "Too many files" in error_of(client.post("/v1/score", files=many, data={"prompt": "a"}))["message"]
        assert client.draw().status_code == 200


def test_few_decoded_pictures_are_in_memory_however_many_requests_wait(own_dalle, tmp_path, monkeypatch):
    decoded, most = [], []

    def decode(*arguments):
        decoded.append(weakref.ref(image := decode_upload(*arguments)))
        most.append(sum(one() is not None for one in decoded))
        return image

    monkeypatch.setattr(uploads, "decode_upload", decode)
    files = {"image": png(Image.effect_noise((300, 300), 9)), "mask": png(Image.new("L", (300, 300), 255))}
    with serving(own_dalle, tmp_path) as client, ThreadPoolExecutor(12) as clients:
        fields = {"prompt": "a", "quality": "low"}
        waiting = [clients.submit(client.post, "/v1/images/edits", files=files, data=fields) for _ in range(12)]
        assert {one.result().status_code for one in waiting} == {200}
    assert len(most) == 24
    assert max(most) <= 2 * CODERS


def test_uploads_are_kept_in_memory(own_dalle, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: pytest.fail("a file was written"))
    noise = png(Image.effect_noise((1500, 1100), 90))
    assert len(noise) > 1.2 * 2**20
    with serving(own_dalle, tmp_path) as client:
        response = client.post("/v1/images/variations", files={"image": noise}, data={"response_format": "b64_json"})
        assert response.status_code == 200, response.text
