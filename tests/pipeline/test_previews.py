"""`DalleMini.stream_previews`."""

from types import SimpleNamespace

import numpy as np
import pytest

from dalle_mini_impl import UserError
from dalle_mini_impl.pipeline import previews


def test_previews_show_finished_rows_above_white_and_end_with_the_result(tiny_dalle):
    *given, last = tiny_dalle.stream_previews("a cat", candidates=5, keep=2, seed=4, show=2, share=1.0, chunk=3)
    assert [preview.done for preview in given] == pytest.approx([3 / 15, 6 / 15, 9 / 15, 11 / 15, 13 / 15])
    assert [len(preview.images) for preview in given] == [2] * 5
    finished = tiny_dalle.generate("a cat", candidates=5, keep=5, seed=4, rank="none")
    for index, preview in enumerate(given):
        chunk, row = divmod(index, 3)
        height = 8 * (row + 1)
        for image, candidate in zip(preview.images, finished[3 * chunk :][:2], strict=True):
            preview_values, final_values = (np.asarray(picture, dtype=int) for picture in (image, candidate.image))
            assert (preview_values[height:] == 255).all()
            equal = (preview_values[:height] == final_values[:height]).mean()
            assert equal > (0.99 if row == 2 else 0.2)  # rows below also change the pixels above them
    assert last.done == 1
    expected = tiny_dalle.generate("a cat", candidates=5, keep=2, seed=4)
    assert [candidate.seed for candidate in last.result] == [candidate.seed for candidate in expected]
    for image, candidate in zip(last.images, last.result, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(candidate.image))


@pytest.mark.parametrize(("share", "done"), [(0.0, [1.0]), (0.5, [1 / 3, 1.0]), (1.0, [1 / 3, 2 / 3, 1.0])])
def test_previews_take_at_most_their_share_of_the_time(tiny_dalle, monkeypatch, share, done):
    clock = iter(range(0, 1000, 10))  # ten seconds pass between two readings
    monkeypatch.setattr(previews, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    given = tiny_dalle.stream_previews("a cat", candidates=2, share=share)
    assert [preview.done for preview in given] == pytest.approx(done)


@pytest.mark.parametrize("options", [{"show": 0}, {"share": 1.5}, {"share": -0.1}])
def test_show_and_share_out_of_range_are_refused(tiny_dalle, options):
    with pytest.raises(UserError, match="expected show of 1 or more and share from 0 to 1, got show"):
        next(tiny_dalle.stream_previews("a cat", **options))


def test_previews_have_the_defaults_and_checks_of_generate(tiny_dalle):
    *_, last = tiny_dalle.stream_previews("a cat", share=0)
    assert [c.seed for c in last.result] == [c.seed for c in tiny_dalle.generate("a cat")]
    with pytest.raises(UserError, match="got 'topk'"):
        next(tiny_dalle.stream_previews("a cat", topk=5))
