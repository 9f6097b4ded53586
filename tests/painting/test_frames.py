import numpy as np
import pytest
from helpers.pictures import block_picture
from PIL import Image, ImageSequence

from dalle_mini_impl.painting.frames import LAST_FRAME_REPEATS, frame_steps, save_frames
from dalle_mini_impl.util.errors import UserError


def test_frames_are_spread_over_all_steps():
    assert sorted(frame_steps(100, 5)) == [0, 25, 50, 75, 100]
    assert sorted(frame_steps(3, 50)) == [0, 1, 2, 3]
    assert frame_steps(0, 2) == {0}
    assert sorted(frame_steps(7, 10_000)) == list(range(8))
    for count in (-1, 1, 10_001, 10**30):
        with pytest.raises(UserError, match=rf"expected 2 to 10000 frames, .* got {count}"):
            frame_steps(10**18, count)


def test_a_gif_has_every_frame_and_shows_the_last_one_longest(tmp_path):
    frames = [block_picture(seed) for seed in range(5)]
    with Image.open(save_frames(frames, tmp_path / "way.gif")) as gif:
        assert sum(1 for _ in ImageSequence.Iterator(gif)) == 5
        assert gif.size == (24, 24)
        durations = []
        for index in range(5):
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert durations[-1] > 5 * durations[0] > 0


def test_frames_in_another_format_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.gif or \.mp4, got .*way\.avi"):
        save_frames([block_picture(), block_picture(1)], tmp_path / "way.avi")


def test_an_mp4_has_every_frame_and_repeats_the_last_one(tmp_path):
    av = pytest.importorskip("av")
    frames = [block_picture(seed, 28, 20).resize((23, 17)) for seed in range(5)]
    with av.open(str(save_frames(frames, tmp_path / "way.mp4"))) as video:
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(decoded) == 4 + LAST_FRAME_REPEATS
    assert decoded[0].shape == (18, 24, 3)  # the format has even sides
    assert abs(decoded[-1].mean() - np.asarray(frames[-1]).mean()) < 8


def test_an_mp4_without_its_extra_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"av is not installed; .*\[video\]"):
        save_frames([block_picture()] * 2, tmp_path / "way.mp4")
    assert not list(tmp_path.iterdir())
