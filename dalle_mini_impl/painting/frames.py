"""Intermediate pictures of a painting -> a GIF or an MP4."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import replace_file

VIDEO_ENDINGS = (".gif", ".mp4")
FRAMES_PER_SECOND = 12
MAX_FRAMES = 10_000
"""Most pictures of an animation, a quarter of an hour."""
LAST_FRAME_REPEATS = 18
"""How many frames the last picture is shown for: a second and a half, so that it is noticed in the loop."""


def frame_steps(steps: int, count: int) -> set[int]:
    """The steps after which a frame is recorded, evenly spaced from 0 (the start) to `steps`.

    Args:
        steps: of the painter.
        count: how many frames to record; fewer where there are fewer steps.

    Raises:
        UserError: `count` is below 2, or above `MAX_FRAMES`.
    """
    if not 2 <= count <= MAX_FRAMES:
        raise UserError(f"expected 2 to {MAX_FRAMES} frames, the first and the last included, got {count}; change it")
    count = max(2, min(count, steps + 1))
    return {round(index * steps / (count - 1)) for index in range(count)}


def check_frames(path: str | Path) -> None:
    """Check, before anything is painted, that frames can be written to this file.

    Raises:
        UserError: the ending is neither .gif nor .mp4, or for .mp4 the `video` extra is not installed.
    """
    ending = Path(path).suffix.lower()
    if ending not in VIDEO_ENDINGS:
        raise UserError(f"expected a file for frames that ends in {' or '.join(VIDEO_ENDINGS)}, got {path}; rename it")
    if ending == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise need_extra("av", "video") from error


def save_frames(frames: Sequence[Image.Image], path: str | Path) -> Path:
    """Write frames as an endless GIF or an MP4 (extra `video`), by the file's ending.

    Args:
        frames: pictures of one size, at least one.
        path: ends in .gif or .mp4.

    Returns:
        The path.

    Raises:
        UserError: as `check_frames`, or the file cannot be written.
    """
    check_frames(path)
    with replace_file(path) as temporary:
        if temporary.suffix.lower() == ".gif":
            frame_ms = 1000 // FRAMES_PER_SECOND
            durations = [frame_ms] * (len(frames) - 1) + [1000 * LAST_FRAME_REPEATS // FRAMES_PER_SECOND]
            frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)
        else:
            _save_mp4([*frames, *[frames[-1]] * (LAST_FRAME_REPEATS - 1)], temporary)
    return Path(path)


def _save_mp4(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an H.264 video; `check_frames` has made sure that PyAV is installed."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        # yuv420p halves the resolution of colour, so both sides must be even.
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
