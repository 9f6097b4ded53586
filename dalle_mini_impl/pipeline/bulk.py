"""Pictures of any number of prompts, written as they are finished and continued after an interruption.

The prompts are divided into blocks of neighbours. A folder has for each block a list of what was drawn, one JSON line
per prompt, and beside it the pictures: files in a folder of their own, or a WebDataset tar. While a block is being
drawn, its list and its tar end in `.part`; a line is written after the pictures that it names, so what no line names
does not count. Which process draws a block changes nothing.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tarfile import USTAR_FORMAT, TarInfo
from typing import Any, BinaryIO

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.results import Result, picture_text
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import (
    check_replaceable,
    dump_json,
    flush_to_disk,
    only_writer,
    os_errors_for_user,
    write_json,
)
from dalle_mini_impl.util.images import enlarge
from dalle_mini_impl.util.save_picture import picture_bytes, save_picture

BLOCK = 1000
"""Prompts of a block by default."""
SETTINGS_FILE = "settings.json"
CONTENTS = (SETTINGS_FILE, "[0-9]*", ".*")
"""What a folder of blocks holds."""
PART = ".part"
"""Ending of what is not finished."""


@dataclass(frozen=True, kw_only=True)
class BulkFolder:
    """A folder of blocks."""

    path: Path
    count: int
    """Prompts of all blocks together."""
    as_tar: bool
    """Whether pictures are written into tars."""
    zoom: int
    """How many times larger than they were drawn pictures are written."""
    format: str = "png"
    """Of the pictures, as a file name ending without its dot."""
    block: int = BLOCK
    """Prompts of a block."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.count // self.block)

    def prepare(self, settings: Mapping[str, Any]) -> "BulkFolder":
        """Make the folder, or check that it holds pictures of the same prompts and settings.

        Args:
            settings: everything that the pictures follow from, as JSON values.

        Returns:
            This folder, with the size of blocks that it was begun with.

        Raises:
            UserError: it holds anything else.
        """
        check_replaceable(self.path, CONTENTS)
        path = self.path / SETTINGS_FILE
        own = {"format": f"tar/{self.format}" if self.as_tar else self.format, "zoom": self.zoom, "count": self.count}
        values = json.loads(dump_json({**own, **settings}))
        if not path.exists():
            write_json(path, {**values, "block": self.block})
            return self
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            block = before.pop("block")
            different = [name for name in {**before, **values} if before.get(name) != values.get(name)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); remove {self.path} or name another folder") from error
        if different or type(block) is not int or block < 1:
            raise UserError(
                f"expected {self.path} to be new or of the same prompts and settings, got one with another "
                f"{[*different, 'block'][0]}; name another folder, or repeat the command that began it"
            )
        return replace(self, block=block)

    def indices(self, block: int) -> range:
        """Indices of a block's prompts."""
        return range(block * self.block, min((block + 1) * self.block, self.count))

    def is_finished(self, block: int) -> bool:
        """Whether all pictures of a block are written."""
        return self.list_path(block).exists()

    def list_path(self, block: int) -> Path:
        """The list of what was drawn of a block."""
        return self.path / f"{block:05d}.jsonl"


class _Block:
    """Writes the pictures of a block's prompts.

    Args:
        folder: where.
        number: of the block.

    Raises:
        UserError: another process draws it, or it cannot be written.
    """

    def __init__(self, folder: BulkFolder, number: int) -> None:
        self._folder = folder
        self._indices = folder.indices(number)
        self._path = folder.list_path(number)
        self._tar_path = self._path.with_suffix(".tar")
        self._list_part, self._tar_part = (path.with_name(path.name + PART) for path in (self._path, self._tar_path))
        self.drawn: set[int] = set()
        """Indices of the prompts whose pictures are written."""
        self._stack = ExitStack()
        with os_errors_for_user(self._path), self._stack:
            self._stack.enter_context(only_writer(self._path))
            if folder.as_tar and self._tar_path.exists():  # it was being finished
                self._tar_path.replace(self._tar_part)
            self._list = self._open(self._list_part)
            self._tar = self._open(self._tar_part) if folder.as_tar else None
            self._recover()
            self._stack = self._stack.pop_all()

    def _open(self, path: Path) -> BinaryIO:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        return self._stack.enter_context(file)

    @property
    def is_complete(self) -> bool:
        """Whether all pictures are written."""
        return len(self.drawn) == len(self._indices)

    def _recover(self) -> None:
        """Read what is drawn, and cut off what follows the last line whose pictures are whole."""
        end = tar_end = 0
        for line in self._list:
            try:
                entry = json.loads(line)
                index, size, digest = entry["index"], int(entry.get("bytes", 0)), entry.get("digest")
            except (ValueError, TypeError, KeyError, AttributeError):
                break
            is_whole = self._tar is None or _digest(self._tar.read(size)) == digest
            if not (is_whole and line.endswith(b"\n") and index in self._indices):
                break
            end, tar_end = end + len(line), tar_end + size
            self.drawn.add(index)
        for file, length in ((self._list, end), (self._tar, tar_end)):
            if file:
                file.seek(length)
                file.truncate()

    def write(self, index: int, result: Result) -> None:
        """Write the pictures of the prompt with this index, then its line.

        Raises:
            UserError: they cannot be written.
        """
        pictures, members = [], b""
        for rank, candidate in enumerate(result, 1):
            (image,) = enlarge([candidate.image], self._folder.zoom)
            metadata = result.metadata([candidate], self._folder.zoom)
            name = f"{index:08d}-{rank:02d}"
            picture = f"{name}.{self._folder.format}"
            text = picture_text([result], candidate)
            file = picture if self._tar else f"{self._path.stem}/{picture}"
            pictures.append({"file": file, "seed": candidate.seed, "score": candidate.score})
            if self._tar is None:
                save_picture(image, self._folder.path / file, metadata, text)
                continue
            caption = " ".join(result.prompt.split())  # readers take each line for a caption
            contents: dict[str, bytes | str] = {
                self._folder.format: picture_bytes(image, f".{self._folder.format}", metadata, text),
                "txt": caption,
                "json": dump_json(metadata),
            }
            members += b"".join(_member(f"{name}.{ending}", content) for ending, content in contents.items())
        entry = {"index": index, "prompt": result.prompt, "negative": result.negative, "pictures": pictures}
        with os_errors_for_user(self._path):
            if self._tar:
                self._tar.write(members)
                self._tar.flush()
                entry |= {"bytes": len(members), "digest": _digest(members)}
            self._list.write(dump_json(entry).encode() + b"\n")
            self._list.flush()
        self.drawn.add(index)

    def finish(self) -> None:
        """Give the files their final names, once all that they hold is on the disk, and close them.

        Raises:
            UserError: they cannot be written.
        """
        with os_errors_for_user(self._path), self._stack:
            if self._tar:
                self._tar.write(bytes(1024))  # two empty blocks end a tar
                self._tar.flush()
                flush_to_disk(self._tar_part)
                self._tar_part.replace(self._tar_path)
            flush_to_disk(self._list_part)
            self._list_part.replace(self._path)
            flush_to_disk(self._folder.path)

    def close(self) -> None:
        """Close the files and let others draw the block."""
        self._stack.close()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _member(name: str, content: bytes | str) -> bytes:
    """A file as it stands in a tar, always the same bytes."""
    content = content.encode() if isinstance(content, str) else content
    info = TarInfo(name)
    info.size = len(content)
    return info.tobuf(USTAR_FORMAT) + content + bytes(-len(content) % 512)


def draw_blocks(
    dalle: DalleMini,
    prompts: Callable[[], Iterator[Mapping[str, Any]]],
    folder: BulkFolder,
    blocks: Iterable[int],
    *,
    on_progress: Callable[[int], object],
    **options: Any,
) -> int:
    """Draw those prompts of some blocks that are not drawn yet.

    Args:
        dalle: the model.
        prompts: begins to read all prompts, as `DalleMini.generate_many` takes them.
        folder: where to write.
        blocks: numbers, ascending; other processes draw the others.
        on_progress: called with a number of prompts whose pictures are written, now or before.
        **options: of `DalleMini.generate_many`.

    Returns:
        How many prompts were drawn now.

    Raises:
        UserError: as `DalleMini.generate_many`, or another process draws a block, or files cannot be written.
    """
    open_blocks: list[_Block] = []
    waiting: deque[tuple[_Block, int]] = deque()

    def remaining() -> Iterator[Mapping[str, Any]]:
        read, position = prompts(), 0
        for number in blocks:
            indices = folder.indices(number)
            if folder.is_finished(number):
                on_progress(len(indices))
                continue
            block = _Block(folder, number)
            on_progress(len(block.drawn))
            if block.is_complete:
                block.finish()
                continue
            open_blocks.append(block)
            own = islice(read, indices.start - position, indices.stop - position)
            position = indices.stop
            for index, arguments in zip(indices, own, strict=False):
                if index not in block.drawn:
                    waiting.append((block, index))
                    yield arguments

    count = 0
    try:
        for result in dalle.generate_many(remaining(), **options):
            block, index = waiting.popleft()
            block.write(index, result)
            on_progress(1)
            count += 1
            if block.is_complete:
                block.finish()
                open_blocks.remove(block)
    finally:
        for block in open_blocks:
            block.close()
    return count
