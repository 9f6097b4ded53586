"""What tabs have in common: pictures that the page sends back, and those that visitors upload."""

import pytest
from PIL import Image

from dalle_mini_impl.app.html import data_uri
from dalle_mini_impl.app.page import build_page
from dalle_mini_impl.app.shared import Shared, read_png
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError


def test_a_picture_of_the_page_is_read_with_what_it_records():
    picture, metadata = read_png(data_uri(Image.new("RGB", (3, 2), "red"), {"seed": 7}))
    assert (picture.size, metadata) == ((3, 2), {"seed": 7})


def test_a_small_file_with_many_pixels_is_refused_before_they_are_decoded(monkeypatch):
    bomb = data_uri(Image.new("L", (2049, 2049)))
    assert len(bomb) < 10_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(UserError, match=r"expected a picture of this page, .*too many pixels"):
        read_png(bomb)


def test_uploaded_pictures_reach_the_model_as_they_are(tiny_model, tmp_path):
    gradio = pytest.importorskip("gradio", reason="needs the extra app")
    from gradio.data_classes import ImageData

    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    page = build_page(Shared(DalleMini.from_pretrained(tiny_model, "cpu"), (), None, tmp_path), "page")
    uploads = [one for one in page.blocks.values() if isinstance(one, gradio.Image)]
    assert len(uploads) == 4  # one to complete, one to search by, two to mix
    for one in uploads:
        # Not converted: what is see-through would become black, and EPS files would start Ghostscript.
        assert one.preprocess(ImageData(path=str(tmp_path / "a.png"), orig_name="a.png")) == str(tmp_path / "a.png")
