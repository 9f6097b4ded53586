"""Pictures on the way -> a GIF or an MP4."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import replace_file

ENDINGS = (".gif", ".mp4")
RATE = 12
"""Frames a second."""
LINGER = 18
"""Frames that the last picture stays."""


def frame_steps(steps: int, count: int) -> set[int]:
    """After which steps to keep a frame, 0 being the start: `count` of them, or fewer where there are fewer steps.

    Raises:
        UserError: fewer than 2 were asked for.
    """
    if count < 2:
        raise UserError(f"{count} frames were asked for, expected 2 or more")
    return {round(number * steps / (count - 1)) for number in range(count)}


def check_frames(path: str | Path) -> None:
    """Refuse what could not be written at the end.

    Raises:
        UserError: the ending is neither .gif nor .mp4, or for .mp4 the `video` extra is not installed.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"frames were asked for in {path}; expected a file that ends in {' or '.join(ENDINGS)}")
    if ending == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise need_extra("av", "video") from error


def save_frames(frames: Sequence[Image.Image], path: str | Path) -> Path:
    """Write pictures of one size as an endless GIF or an MP4 (extra `video`), by the file's ending.

    Raises:
        UserError: as `check_frames`, or the file cannot be written.
    """
    check_frames(path)
    with replace_file(path) as temporary:
        if temporary.suffix.lower() == ".gif":
            waits = [1000 // RATE] * (len(frames) - 1) + [1000 * LINGER // RATE]
            frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=waits, loop=0)
        else:
            _save_mp4([*frames, *[frames[-1]] * (LINGER - 1)], temporary)
    return Path(path)


def _save_mp4(frames: Sequence[Image.Image], path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)  # the format halves colour's sides
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
