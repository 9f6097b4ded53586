"""What a whole training has to know about the pictures: a first look, then facts of the finished picture store."""

import math
import statistics
import tarfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.inspect import inspect_pairs
from dalle_mini_impl.data.pair import Pair, SkipLog
from dalle_mini_impl.data.parquet_reader import count_rows, is_parquet
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.remote import RemotePath, SourcePath, source_path
from dalle_mini_impl.data.shards import shards_of_source
from dalle_mini_impl.data.source_files import source_states
from dalle_mini_impl.data.tar_file import TarFileObject
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.read_files import open_regular

LEAST_PICTURES = 2
"""One to train on and one to hold out."""
LISTED_MEMBERS = 2000
"""Members of a tar by which the number of its pictures is estimated."""
LISTED_BYTES = 1 << 24
"""Bytes of a tar at an address by which it is."""


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What some of the pictures of a source are like."""

    count: int
    """Pictures that were looked at."""
    total: int
    """Pictures of the source as far as its list of files tells; at least `count`."""
    seconds: float
    """Time that one picture took to be read."""
    side: float
    """Median of the shorter sides in pixels."""
    lines: tuple[str, ...]
    """What to print."""


def look_at(source: str, count: int) -> FirstLook:
    """Read some pictures of a source, evenly spaced; all if it has no more than `count`.

    Raises:
        UserError: the source cannot be read, or has too few pictures that can be used.
    """
    listed = listed_pictures(source)
    log = SkipLog()
    sides: list[int] = []
    start = time.monotonic()

    def with_captions() -> Iterator[Pair]:
        pairs = read_pairs(source, log, captions="optional", workers=max(1, math.ceil(listed / count)))
        for pair in islice(pairs, count):
            sides.append(min(pair.image.size))
            if pair.captions:
                yield pair

    report, _ = inspect_pairs(with_captions(), sample=1)
    if report is None or len(sides) < LEAST_PICTURES:
        found = f"{len(sides)} of which {report.pictures if report else 0} have a caption"
        reasons = f"; {log.report().splitlines()[0]}" if log.report() else ""
        raise UserError(
            f"expected at least {LEAST_PICTURES} pictures with captions in {source}, got {found}{reasons}; "
            f"`dalle data inspect {source}` says more"
        )
    total = max(listed, len(sides))
    some = "" if total == len(sides) else f"; of {len(sides):,} of them:"
    languages = ", ".join(f"{name} {number:,}" for name, number in report.languages.items())
    lines = [
        f"{source}: {total:,} pictures{some}",
        f"  {report.width.smallest:g} to {report.width.largest:g} pixels wide, {report.height.smallest:g} to "
        f"{report.height.largest:g} high; width : height {report.aspect.smallest:g} to {report.aspect.largest:g}; "
        f"{report.transparent:,} with transparency",
        f"  {report.captions:,} captions ({languages or 'none'}), "
        f"{report.characters.smallest:g} to {report.characters.largest:g} characters long",
    ]
    if repeats := sum(len(group) - 1 for group in report.exact_duplicates + report.near_duplicates):
        lines.append(f"  {repeats:,} look like another one")
    lines += [f"  {line}" for line in log.report(limit=3).splitlines()]
    return FirstLook(
        count=len(sides),
        total=total,
        seconds=(time.monotonic() - start) / len(sides),
        side=statistics.median(sides),
        lines=tuple(lines),
    )


def listed_pictures(source: str) -> int:
    """Number of picture files of a folder or table, about that of tars or Parquet files; 0 where it cannot be told."""
    states = source_states(source)
    if count := sum(Path(name).suffix.lower() in PICTURE_ENDINGS for name in states):
        return count
    try:
        first = shards_of_source(source_path(source))[0]
        sizes = [state[0] for state in states.values() if state]
        if is_parquet(first):
            return count_rows(first) * sum(sizes) // sizes[0]
        return int(sum(sizes) * pictures_per_byte(first))
    except (OSError, ValueError, LookupError, ArithmeticError, tarfile.TarError):  # reading it says what is wrong
        return 0


def pictures_per_byte(tar: SourcePath) -> float:
    """Pictures for each byte at the beginning of a tar that is not compressed.

    Raises:
        OSError, ValueError or tarfile.TarError: it cannot be read so.
    """
    start = BytesIO(tar.read_start(LISTED_BYTES)) if isinstance(tar, RemotePath) else open_regular(tar)
    with start as file, tarfile.TarFile(fileobj=TarFileObject(file)) as archive:  # type: ignore[arg-type]
        count = 0
        with suppress(tarfile.ReadError):  # the end of what was read
            for member in islice(archive, LISTED_MEMBERS):
                count += member.isfile() and Path(member.name).suffix.lower() in PICTURE_ENDINGS
        return count / max(1, archive.offset)


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What the settings of the stages depend on."""

    train: int
    """Training pictures with captions."""
    held_out: int
    """Held-out pictures with captions."""
    without_caption: int
    """Pictures of which only the image tokenizer learns."""
    characters: int
    """Distinct characters of the captions, as the text tokenizer normalises them."""
    captions: int
    """Distinct captions of training pictures."""
    languages: dict[str, int]
    """Captions by language; `unknown` where the source names none."""

    @property
    def first_language(self) -> str:
        """The language that most captions are in; empty if it is unknown."""
        name = max(self.languages, key=lambda code: self.languages[code], default="unknown")
        return "" if name == "unknown" else name


def facts_of(config: DataConfig) -> PictureFacts:
    """Facts of the pictures of a store.

    Raises:
        UserError: it cannot be opened, or a split has no captioned picture.
    """
    train, held_out = (open_store(config, split) for split in ("train", "validation"))
    every = sum(len(open_store(config, split, captions="optional")) for split in ("train", "validation"))
    captions = [caption for entry in train.entries for caption in entry.captions]
    letters: set[str] = set()
    for text in {caption.text for caption in captions}:
        letters.update(unicodedata.normalize("NFKC", text).casefold())
    return PictureFacts(
        train=len(train),
        held_out=len(held_out),
        without_caption=every - len(train) - len(held_out),
        characters=len(letters),
        captions=len({caption.text for caption in captions}),
        languages=dict(Counter(caption.language or "unknown" for caption in captions).most_common()),
    )
