"""The engine draws what waits together, and each picture as it would be drawn alone."""

import dataclasses
from concurrent.futures import CancelledError

import pytest
from helpers.engines import busy
from PIL import Image

from dalle_mini_impl.pipeline.canvas import Region, completion_canvas
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.serve import engine as engine_module
from dalle_mini_impl.serve.engine import Engine
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import picture_bytes

REQUESTS = (
    {"prompt": "a red heart", "candidates": 3, "keep": 2, "seed": 5},
    {"prompt": "two cats", "candidates": 1, "keep": 1, "seed": 6, "guidance": 1.0, "rank": "none"},
    {"prompt": "a house", "candidates": 5, "keep": 1, "seed": 7, "rank": "both", "prune": True},
    {"prompt": "", "candidates": 2, "keep": 2, "seed": 8, "temperature": 0.5, "negative": "a tree", "tile": True},
)


@pytest.fixture
def batches():
    return []


@pytest.fixture
def engine(own_dalle, batches):
    engine = Engine(own_dalle, 64, batches.append)
    yield engine
    engine.close()


def submit(engine, request, **previews):
    return engine.draw(lambda: engine.dalle.request(**request), request["candidates"], **previews)


def files(drawn):
    """Pictures with all that they record: ids, scores, seeds, settings."""
    return [picture_bytes(one.image, metadata=drawn.result.metadata([one])) for one in drawn.result]


def test_pictures_are_the_same_bytes_alone_and_among_others(engine, batches):
    alone = [files(submit(engine, request).result()) for request in REQUESTS]
    assert batches == [3, 1, 5, 2]
    with busy(engine):
        waiting = [submit(engine, request) for request in REQUESTS]
    assert [files(one.result()) for one in waiting] == alone
    assert batches[4:] == [11]
    with busy(engine):
        waiting = [submit(engine, request) for request in REQUESTS[::-1]]
    assert [files(one.result()) for one in waiting[::-1]] == alone


def test_pictures_are_the_same_bytes_where_they_must_not_be_decoded_together(engine, monkeypatch):
    alone = [files(submit(engine, request).result()) for request in REQUESTS]
    asked = []
    monkeypatch.setattr(engine._decoder, "decode", lambda groups: asked.append(len(groups)))
    with busy(engine):
        waiting = [submit(engine, request) for request in REQUESTS]
    assert [files(one.result()) for one in waiting] == alone
    assert asked == [3]  # tiles are always decoded by themselves


def test_pictures_are_those_of_generate(engine, own_dalle):
    drawn = submit(engine, REQUESTS[0]).result()
    expected = own_dalle.generate(**REQUESTS[0])
    assert files(drawn) == [picture_bytes(one.image, metadata=expected.metadata([one])) for one in expected]
    assert drawn.image_ids == 3 * own_dalle.stream.image_length
    assert drawn.text_ids == len(own_dalle.encode("a red heart"))


def test_batches_take_what_fits_in_order_of_arrival(own_dalle, batches):
    engine = Engine(own_dalle, 4, batches.append)
    done = []
    with busy(engine):
        for number, count in enumerate((3, 1, 2, 3, 9, 1)):
            request = {"prompt": "a", "candidates": count, "keep": count, "rank": "none"}
            submit(engine, request).add_done_callback(lambda _, number=number: done.append(number))
        assert engine.candidates == 19
    engine.close()
    assert batches == [4, 2, 3, 9, 1]  # a request above the limit is drawn alone, in pieces
    assert done == [0, 1, 2, 3, 4, 5]
    assert engine.candidates == 0


def test_edits_with_other_beginnings_are_drawn_in_the_same_round(engine, own_dalle, batches):
    picture = Image.new("RGB", (40, 24), "red")
    tokenizer, grid = own_dalle.image_tokenizer, own_dalle.stream.config.grid
    canvases = [completion_canvas(tokenizer, grid, picture, Region(rows=rows), True) for rows in (1, 2)]
    requests = [{**REQUESTS[0], "canvas": canvas} for canvas in (*canvases, None, canvases[0])]
    alone = [files(submit(engine, request).result()) for request in requests]
    with busy(engine):
        waiting = [submit(engine, request) for request in requests]
    assert [files(one.result()) for one in waiting] == alone
    assert batches[-1] == 12


def test_a_mistake_in_a_request_fails_that_request_alone(engine):
    with busy(engine):
        wrong = submit(engine, {**REQUESTS[0], "top_p": 7.0})
        right = submit(engine, REQUESTS[1])
        broken = engine.call(lambda: 1 / 0)
    with pytest.raises(UserError, match="top_p"):
        wrong.result()
    with pytest.raises(ZeroDivisionError):
        broken.result()
    assert len(right.result().result) == 1


def test_what_cannot_be_begun_fails_alone(engine):
    class Broken(GenerationRequest):
        @property
        def ids(self):
            raise UserError("no image embedding could be drawn")

    def make():
        request = engine.dalle.request(**REQUESTS[0])
        return Broken(**{field.name: getattr(request, field.name) for field in dataclasses.fields(request)})

    with busy(engine):
        broken = engine.draw(make, 3)
        other = submit(engine, REQUESTS[1])
    with pytest.raises(UserError, match="no image embedding could be drawn"):
        broken.result(timeout=60)
    assert files(other.result(timeout=60)) == files(submit(engine, REQUESTS[1]).result(timeout=60))


def test_where_a_batch_fails_each_request_is_drawn_alone(engine, monkeypatch):
    original = engine_module.generate_many
    sizes = []

    def full_memory(transformer, stream, ids, **options):
        sizes.append(len(ids))
        if len(ids) > 1 or ids[0].seeds[0] == 13:
            raise MemoryError("too many")
        return original(transformer, stream, ids, **options)

    monkeypatch.setattr(engine_module, "generate_many", full_memory)
    seeds = (11, 12, 13)
    with busy(engine):
        first, second, third = (submit(engine, {**REQUESTS[1], "seeds": [seed]}) for seed in seeds)
    assert [one.result().result[0].seed for one in (first, second)] == [11, 12]
    with pytest.raises(MemoryError):
        third.result()
    assert sizes == [3, 1, 1, 1]


def test_cancelled_work_is_dropped_and_the_rest_is_as_alone(engine, batches):
    alone = files(submit(engine, REQUESTS[0]).result())
    with busy(engine):
        waiting = submit(engine, REQUESTS[1])
        assert waiting.cancel()  # before it is drawn
        drawn = submit(engine, REQUESTS[2])
        # While it is drawn: its neighbour's preview cancels it.
        kept = submit(engine, REQUESTS[0], previews=3, show=lambda images: drawn.cancel())
    assert files(kept.result()) == alone
    assert drawn.cancelled()
    with pytest.raises(CancelledError):
        drawn.result()
    assert batches[-1] == 8


def test_cancelled_work_leaves_the_queue_at_once(engine):
    with busy(engine):
        first, second = submit(engine, REQUESTS[0]), submit(engine, REQUESTS[1])
        assert first.cancel()
        assert engine.candidates == 1
    assert len(second.result().result) == 1


def test_drawing_ends_where_nobody_waits_any_more(engine):
    cells = []

    def give_up(images):
        cells.append(len(images))
        only.cancel()

    with busy(engine):
        only = submit(engine, REQUESTS[0], previews=14, show=give_up)
    with pytest.raises(CancelledError):
        only.result()
    engine.call(lambda: None).result()
    assert cells == [1]  # it was given up after the first cell


def test_previews_show_the_pictures_so_far(engine, own_dalle):
    shown = []
    drawn = submit(engine, REQUESTS[0], previews=2, shown=2, show=shown.append).result()
    assert [len(images) for images in shown] == [2, 2]
    size = drawn.result[0].image.size
    for images in shown:
        assert all(image.size == size for image in images)
        assert images[0].getpixel((size[0] - 1, size[1] - 1)) == (255, 255, 255)  # still to be sampled
    # The finished rows differ less and less from the finished picture; the first cell is not white any more.
    assert shown[0][0].getpixel((0, 0)) != (255, 255, 255)


def test_closing_finishes_what_waits_and_takes_nothing_more(own_dalle):
    engine = Engine(own_dalle)
    with busy(engine):
        waiting = [submit(engine, request) for request in REQUESTS]
    engine.close()
    assert all(one.done() and len(one.result().result) for one in waiting)
    with pytest.raises(RuntimeError, match="closed"):
        submit(engine, REQUESTS[0])


def test_the_wait_follows_from_the_speed_of_the_last_batch(engine):
    assert engine.seconds_left == 1.0  # nothing was drawn yet
    submit(engine, REQUESTS[0]).result()
    engine.call(lambda: None).result()
    assert engine.seconds_left == 0
    with busy(engine):
        submit(engine, REQUESTS[0])
        one = engine.seconds_left
        submit(engine, REQUESTS[0])
        assert engine.seconds_left == pytest.approx(2 * one)
        assert one > 0


def test_a_mistake_says_nothing_about_the_speed(engine):
    submit(engine, REQUESTS[0]).result()
    engine.call(lambda: None).result()
    rate = engine._rate
    with pytest.raises(UserError):
        submit(engine, {**REQUESTS[0], "top_p": 7.0}).result()
    engine.call(lambda: None).result()
    assert engine._rate == rate
