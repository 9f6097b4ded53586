"""Pictures that are written, with metadata inside, and read again."""

import numpy as np
import pytest
from helpers.infotext import text_of
from PIL import Image, PngImagePlugin, features

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.picture_metadata import RECORD_KEY, infotext, xmp_record
from dalle_mini_impl.util.save_picture import picture_bytes, read_metadata, save_picture

METADATA = {"prompt": "ein rotes Herz ❤️‍🔥 心形 \x00\n <&>\"'", "seed": 2**63, "scores": [0.1 + 0.2, None], "ok": True}
FORMATS = [("a.png", "PNG"), ("a.PNG", "PNG"), ("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("a", "PNG")]


def noise(width, height, bands=3):
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (height, width, bands), dtype=np.uint8))


@pytest.mark.parametrize(("name", "format"), FORMATS)
def test_saved_metadata_text_and_pixels_are_read_back(tmp_path, name, format):
    picture = noise(13, 7)
    text = "心形, rot\nSteps: 64, Seed: 3"
    path = save_picture(picture, tmp_path / "deep" / name, METADATA, text)
    assert path == tmp_path / "deep" / name
    assert read_metadata(path) == METADATA
    assert "ein rotes Herz ❤️‍🔥 心形".encode() in path.read_bytes()  # for other programs to show
    with Image.open(path) as read:
        assert read.format == format
        assert text_of(read) == text
        if format == "JPEG":
            assert np.abs(np.asarray(read, dtype=int) - np.asarray(picture, dtype=int)).mean() < 8
        else:
            assert np.array_equal(np.asarray(read), np.asarray(picture))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize("letter", ["🦄", "é"])
def test_endless_prompts_leave_room_for_the_settings_in_exif(tmp_path, name, letter):
    text = infotext([letter * 100_000], [letter * 50_000], {"Steps": 64, "Seed": 3})
    with Image.open(save_picture(noise(5, 4), tmp_path / name, METADATA, text)) as read:
        assert text_of(read) == text
        assert text.endswith("Steps: 64, Seed: 3")


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_of_a_text_that_is_too_long_for_exif_the_beginning_is_written(tmp_path, name):
    text = "x" + "🦄" * 50_000
    with Image.open(save_picture(noise(5, 4), tmp_path / name, METADATA, text)) as read:
        written = text_of(read)
    assert text.startswith(written.removesuffix("…"))
    assert len(written) > 15_000


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_lower_quality_takes_fewer_bytes(ending):
    sizes = [len(picture_bytes(noise(40, 30), ending, METADATA, quality=quality)) for quality in (0, 40, 100, None)]
    assert sizes[:3] == sorted(set(sizes[:3]))
    assert picture_bytes(noise(40, 30), ending, quality=100) != picture_bytes(noise(40, 30), ending)


def test_plain_text_is_where_simple_viewers_look(tmp_path):
    content = save_picture(noise(3, 5), tmp_path / "a.png", text="a café\nSteps: 64").read_bytes()
    assert b"tEXtparameters\0a caf\xe9\nSteps: 64" in content


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_transparency_is_kept(tmp_path, name):
    picture = noise(13, 7, bands=4)
    with Image.open(save_picture(picture, tmp_path / name, METADATA)) as read:
        assert np.array_equal(np.asarray(read), np.asarray(picture))


def test_what_a_format_cannot_hold_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^expected \.png or \.webp for pictures with transparency, got JPEG"):
        save_picture(noise(3, 5, bands=4), tmp_path / "a.jpg")
    for name, side in (("a.jpg", 65_501), ("a.webp", 16_384)):
        with pytest.raises(UserError, match=rf"expected at most {side - 1} pixels a side for \w+, got 1 x {side}"):
            save_picture(Image.new("RGB", (1, side)), tmp_path / name)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(UserError, match="expected a Pillow with WebP"):
        save_picture(noise(3, 5), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_records_of_many_pictures_fit(tmp_path, name):
    metadata = {"pictures": [{"prompt": f"prompt {number}", "seed": number} for number in range(10_000)]}
    assert read_metadata(save_picture(noise(3, 5), tmp_path / name, metadata)) == metadata


def test_metadata_is_read_whatever_the_file_name(tmp_path):
    save_picture(noise(3, 5), tmp_path / "a.webp", {"seed": 3}).rename(tmp_path / "picture.jpg")
    assert read_metadata(tmp_path / "picture.jpg") == {"seed": 3}


def test_failed_save_leaves_no_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder\.png"):
        save_picture(noise(3, 5), tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_picture(noise(3, 5), tmp_path / "file" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_picture_without_metadata_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="carries no settings; give a picture made by dalle sample"):
        read_metadata(save_picture(noise(3, 5), tmp_path / name, text="Steps: 3"))


@pytest.mark.parametrize("text", ["{" * 10, "[" * 100_000, '{"a":' * 100_000, "7" * 5000, "{half"])
def test_hostile_metadata_is_refused(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(RECORD_KEY, text)
    noise(3, 5).save(tmp_path / "a.png", pnginfo=info)
    noise(3, 5).save(tmp_path / "a.webp", xmp=xmp_record(text))
    for name in ("a.png", "a.webp"):
        with pytest.raises(UserError, match=rf"the settings in .*{name} are damaged"):
            read_metadata(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_file_that_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable picture"):
        read_metadata(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_truncated_picture_is_refused(tmp_path, name):
    path = save_picture(noise(64, 64), tmp_path / name, {"seed": 3})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not a readable picture"):
        read_metadata(path)


def test_metadata_of_a_picture_above_the_pixel_limit_is_refused(tmp_path, monkeypatch):
    path = save_picture(noise(64, 64), tmp_path / "a.png", {"seed": 3})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="not a readable picture"):
        read_metadata(path)
