"""`DalleMini.stream_previews`."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dalle_mini_impl import UserError
from dalle_mini_impl.pipeline import previews
from dalle_mini_impl.pipeline.canvas import Region, completion_canvas

FACTOR = 8
"""Pixels per cell of the tiny model, along each side."""


def values(image):
    return np.asarray(image, dtype=int)


def test_previews_show_finished_rows_above_white_and_end_with_the_result(tiny_dalle):
    *given, last = tiny_dalle.stream_previews("a cat", candidates=5, keep=2, seed=4, show=2, share=1.0, chunk=3)
    assert [preview.done for preview in given] == pytest.approx([3 / 15, 6 / 15, 9 / 15, 11 / 15, 13 / 15])
    assert [len(preview.images) for preview in given] == [2] * 5
    finished = tiny_dalle.generate("a cat", candidates=5, keep=5, seed=4, rank="none")
    for index, preview in enumerate(given):
        chunk, row = divmod(index, 3)
        height = FACTOR * (row + 1)
        for image, candidate in zip(preview.images, finished[3 * chunk :][:2], strict=True):
            assert (values(image)[height:] == 255).all()
            equal = (values(image)[:height] == values(candidate.image)[:height]).mean()
            assert equal > (0.99 if row == 2 else 0.2)  # rows below also change the pixels above them
    assert last.done == 1
    expected = tiny_dalle.generate("a cat", candidates=5, keep=2, seed=4)
    assert [candidate.seed for candidate in last.result] == [candidate.seed for candidate in expected]
    for image, candidate in zip(last.images, last.result, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(candidate.image))


@pytest.fixture
def ticking(monkeypatch):
    """Let some seconds pass between two readings of the clock."""

    def tick(seconds):
        clock = iter(seconds * reading for reading in range(1000))
        monkeypatch.setattr(previews, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    return tick


@pytest.mark.parametrize(("share", "done"), [(0.0, [1.0]), (0.15, [1 / 3, 1.0]), (1.0, [1 / 3, 2 / 3, 1.0])])
def test_previews_take_at_most_their_share_of_the_time(tiny_dalle, ticking, share, done):
    ticking(0.1)
    given = tiny_dalle.stream_previews("a cat", candidates=2, share=share)
    assert [preview.done for preview in given] == pytest.approx(done)


def test_previews_do_not_wait_for_the_end_of_a_slow_row(tiny_dalle, ticking):
    ticking(10)
    first, second, *rest = tiny_dalle.stream_previews("a cat", candidates=2, share=1.0, seed=4)
    assert [first.done, second.done] == pytest.approx([1 / 15, 2 / 15])
    assert len(rest) == 13
    for preview, cells in ((first, 1), (second, 2)):
        shown = values(preview.images[0])
        assert (shown[FACTOR:] == 255).all()
        assert (shown[:FACTOR, cells * FACTOR :] == 255).all()
        assert (shown[:FACTOR, : cells * FACTOR] != 255).any()


def test_previews_of_a_canvas_show_what_is_kept(tiny_dalle, ticking):
    ticking(10)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 200, (24, 40, 3), dtype=np.uint8))
    region = Region(box=(16, 8, 32, 24))
    canvas = completion_canvas(tiny_dalle.image_tokenizer, (3, 5), picture, region, paste=True)
    before = values(previews.first_preview((40, 24), canvas))
    redrawn = np.zeros((24, 40), dtype=bool)
    redrawn[8:, 16:32] = True
    assert (before[redrawn] == 255).all()
    assert np.array_equal(before[~redrawn], values(picture)[~redrawn])
    first, *_ = tiny_dalle.stream_previews("a cat", candidates=2, share=1.0, canvas=canvas)
    shown = values(first.images[0])
    assert np.array_equal(shown[~redrawn], values(picture)[~redrawn])
    redrawn[8:16, 16:24] = False  # the first cell
    assert (shown[redrawn] == 255).all()
    assert (shown[8:16, 16:24] != 255).any()


def test_without_a_canvas_the_first_preview_is_white():
    assert (values(previews.first_preview((7, 5), None)) == 255).all()


@pytest.mark.parametrize("options", [{"show": 0}, {"share": 1.5}, {"share": -0.1}])
def test_show_and_share_out_of_range_are_refused(tiny_dalle, options):
    with pytest.raises(UserError, match="expected show of 1 or more and share from 0 to 1, got show"):
        next(tiny_dalle.stream_previews("a cat", **options))


def test_previews_have_the_defaults_and_checks_of_generate(tiny_dalle):
    *_, last = tiny_dalle.stream_previews("a cat", share=0)
    assert [c.seed for c in last.result] == [c.seed for c in tiny_dalle.generate("a cat")]
    with pytest.raises(UserError, match="got 'topk'"):
        next(tiny_dalle.stream_previews("a cat", topk=5))
