"""The tab Mix of the page, without a browser: of a model that takes image embeddings, and of one that does not."""

import base64
import json
import re
import shutil
import threading
from urllib.error import HTTPError

import pytest
from helpers.page import Visitor
from helpers.priors import add_diffusion_decoder, take_embeddings
from PIL import Image

from dalle_mini_impl.app.limits import MAX_PROMPT
from dalle_mini_impl.app.server import PageSettings, serve
from dalle_mini_impl.app.tabs.mix import BETWEEN, NO_EMBEDDINGS, VARY, WORDS
from dalle_mini_impl.checkpoint.settings import save_sampling
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.pipeline import manipulations
from dalle_mini_impl.pipeline.manipulations import parse_edit
from dalle_mini_impl.pipeline.recorded import parse_recorded
from dalle_mini_impl.util.save_picture import parse_metadata

pytest.importorskip("gradio", reason="needs the extra app")

SAMPLING = (2, 0, 1.0, 1.0, "auto", 0)
"""Candidates, seed, guidance, temperature, rank and diversity."""


@pytest.fixture(scope="module")
def told(tiny_model, tmp_path_factory):
    """The address of a page whose model takes image embeddings."""
    folder = take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("told") / "model"))
    with serve(PageSettings(model=str(folder), device="cpu")) as served:
        yield served


def of_strip(way, first, text="", second=None, other_text="", *, theta=0.5, steps=3, guidance=1.0):
    """Values of the fields of the tab Mix."""
    return way, first, text, second, other_text, 0.5, theta, steps, 7, guidance, *SAMPLING


def shown(visitor):
    """Contents of the pictures that the page shows in the end, and its last message."""
    messages = [str(one.get("output")) for one in visitor.messages() if one["msg"] == "process_generating"]
    found = re.findall(r'href=\\?"data:image/png;base64,([^"\\]+)', messages[-1])
    return [base64.b64decode(content) for content in found], messages[-1]


def uploaded(visitor, tmp_path, colour="red"):
    """A picture as a field of the page holds it."""
    Image.new("RGB", (40, 24), colour).save(tmp_path / f"{colour}.png")
    return visitor.upload(tmp_path / f"{colour}.png")


def test_a_strip_goes_from_a_picture_to_a_text_and_each_of_its_pictures_can_be_drawn_again(told, tmp_path):
    visitor = Visitor(told, "between")
    visitor.press("Mix", *of_strip(BETWEEN, uploaded(visitor, tmp_path), other_text="a house"))
    pictures, text = shown(visitor)
    assert "3 pictures from the picture to a house." in text
    records = [parse_recorded(parse_metadata(content, "x"), "x") for content in pictures]
    assert len({record.pictures[0].image_embed for record in records}) == 3
    assert [record.pictures[0].seed for record in records] == [7, 7, 7]


def test_a_picture_is_changed_by_words_and_records_how(told, tmp_path):
    visitor = Visitor(told, "words")
    visitor.press("Mix", *of_strip(WORDS, uploaded(visitor, tmp_path), "a cat", other_text="a house", theta=0.4))
    pictures, text = shown(visitor)
    assert "0.40 of the way" in text
    record = parse_edit(parse_metadata(pictures[-1], "x"), "x").edit
    assert (record.source, record.target, record.theta, record.steps) == ("a cat", "a house", 0.4, 3)


def test_variations_are_drawn_of_the_embedding(told, tmp_path):
    visitor = Visitor(told, "vary")
    visitor.press("Mix", *of_strip(VARY, uploaded(visitor, tmp_path)))
    pictures, text = shown(visitor)
    assert "2 candidates in" in text
    assert parse_recorded(parse_metadata(pictures[0], "x"), "x").pictures[0].image_embed
    assert NO_EMBEDDINGS not in json.dumps(visitor.config)


def test_what_the_tab_mix_cannot_do_is_told_below_the_field(told, tmp_path):
    visitor = Visitor(told, "wrong")
    path = uploaded(visitor, tmp_path)
    cases = [
        (of_strip(VARY, None), 1, "Expected a picture, got none"),
        (of_strip(BETWEEN, None, "", path), 1, "Expected a picture or a description, got neither"),
        (of_strip(BETWEEN, path, "a cat", path), 2, "got both"),
        (of_strip(BETWEEN, path, other_text="x" * (MAX_PROMPT + 1)), 4, "Expected at most"),
        (of_strip(WORDS, path), 4, "Expected a description, got none"),
    ]
    for values, place, message in cases:
        with pytest.raises(HTTPError) as caught:
            visitor.press("Mix", *values)
        content = caught.value.read().decode()
        assert message in content, values
        problems = [one["message"] for one in json.loads(content)["detail"]]
        assert [number for number, text in enumerate(problems) if text] == [place]


def test_a_strip_that_is_stopped_frees_the_engine(told, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    original = manipulations.redraw

    def slow(*arguments):
        begun.set()
        go_on.wait(60)
        return original(*arguments)

    monkeypatch.setattr(manipulations, "redraw", slow)
    visitor = Visitor(told, "stops")
    visitor.press("Mix", *of_strip(WORDS, uploaded(visitor, tmp_path), other_text="a house"))
    messages = visitor.messages()
    begun.wait(60)
    visitor.stop("Mix")
    go_on.set()
    assert "Stopped" in str([*messages])
    next_one = Visitor(told, "after", visitor.config)
    next_one.press("Draw", "a cat", "any", *SAMPLING)
    assert "2 candidates in" in shown(next_one)[1]


def test_a_model_without_positions_says_so_and_varies_some_cells(tiny_model, tmp_path):
    with serve(PageSettings(model=str(tiny_model), device="cpu")) as address:
        visitor = Visitor(address, "plain")
        assert NO_EMBEDDINGS in json.dumps(visitor.config)
        path = uploaded(visitor, tmp_path)
        with pytest.raises(HTTPError) as caught:
            visitor.press("Mix", *of_strip(BETWEEN, path, other_text="a house"))
        assert "not in the list of choices" in caught.value.read().decode()
        visitor.press("Mix", *of_strip(VARY, path))
        pictures, text = shown(visitor)
        assert "2 candidates in" in text
        assert "canvas" in parse_metadata(pictures[0], "x")


def test_a_recommended_diffusion_decoder_draws_strips_and_the_transformer_is_explained(tiny_model, tmp_path):
    pytest.importorskip("diffusers")
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"), sampling={"steps": 2})
    save_sampling(folder, SamplingConfig(decoder="diffusion"))
    with serve(PageSettings(model=str(folder), device="cpu")) as address:
        visitor = Visitor(address, "diffused")
        visitor.press("Mix", *of_strip(WORDS, uploaded(visitor, tmp_path), other_text="a house"))
        pictures, _ = shown(visitor)
        assert parse_edit(parse_metadata(pictures[-1], "x"), "x").edit.decoder == "diffusion"
        explained = Visitor(address, "explained", visitor.config)
        explained.press("Show", "a cat", 0, 1.0, 1.0)
        assert "candidates is shown step by step" in str([*explained.messages()])
