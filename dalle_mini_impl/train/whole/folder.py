"""The folder of a whole training, and the record in it of what was asked for and what is done.

run.json          the record; marks the folder as one of `dalle train all`
model/            the checkpoint
report.html       what came of it, brought up to date after each stage
configs/          settings of the stages, for the plain commands
store/ ids/       decoded pictures, and their image ids
image_tokenizer/ transformer/ scorer/ prior/    logs, sample sheets and resumable states
earlier/          a run that --overwrite set aside
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, os_errors_for_user, values_digest, write_json

RECORD_FILE = "run.json"
REPORT_FILE = "report.html"
SCRATCH = "measuring"
"""Subfolder in which the speed of the stages is measured; removed afterwards."""
EARLIER = "earlier"
"""Subfolder for a run that `--overwrite` set aside."""
CONTENTS = (
    RECORD_FILE, REPORT_FILE, "model", "configs", "store", "ids", "text_tokenizer.model", "image_tokenizer",
    "transformer", "scorer", "prior", "store.*.safetensors", SCRATCH, EARLIER, ".*.lock",
)  # fmt: skip
"""Everything that is written into the folder; the first marks it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command asks for."""

    source: str
    """Pictures, as for `read_pairs`."""
    minutes: float
    """Time for everything."""
    preset: str = ""
    """Name of a preset or a folder of configs; empty to choose by the pictures and the time."""
    start_from: str = ""
    """Checkpoint to start from; empty to start from nothing."""
    settings: tuple[str, ...] = ()
    """`KEY=VALUE` or `STAGE.KEY=VALUE` each."""


@dataclass
class StageRecord:
    """What is known about a stage that has begun."""

    config: str
    """Digest of its config file."""
    seconds: float = 0.0
    """Time that it took, without what a kill cost; 0 until it is finished."""
    result: str = ""
    """Identity of what it made; empty until it is finished."""
    planned: float = 0.0
    """Seconds that were planned for it."""


@dataclass
class Record:
    """The content of `run.json`."""

    request: dict[str, Any]
    """Fields of `Request`."""
    preset: str = ""
    """Name of the preset that is used; empty until it is chosen."""
    data: dict[str, Any] = field(default_factory=dict)
    """What was found out about the pictures; empty until they are decoded."""
    stages: dict[str, StageRecord] = field(default_factory=dict)
    """By name, those that have begun."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that everything but the stages took."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured in the end; empty until everything is finished."""

    @property
    def asked(self) -> Request:
        """What the command asked for."""
        return Request(**{**self.request, "settings": tuple(self.request["settings"])})

    @property
    def spent(self) -> float:
        """Seconds that everything finished has taken."""
        return sum(self.seconds.values()) + sum(stage.seconds for stage in self.stages.values())


@dataclass(frozen=True)
class RunFolder:
    """The folder of a whole training."""

    path: Path

    @property
    def model(self) -> Path:
        """The checkpoint."""
        return self.path / "model"

    @property
    def store(self) -> Path:
        """The picture store."""
        return self.path / "store"

    @property
    def ids(self) -> Path:
        """The token cache."""
        return self.path / "ids"

    @property
    def text_tokenizer(self) -> Path:
        """The text tokenizer, as the first stage writes it."""
        return self.path / "text_tokenizer.model"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / REPORT_FILE

    def config(self, stage: str) -> Path:
        """Config file of a stage, by its file name."""
        return self.path / "configs" / f"{stage}.yaml"

    def log(self, stage: str) -> Path:
        """Figures that a stage has logged, by its file name."""
        return self.path / stage / "log.jsonl"

    def save(self, record: Record) -> None:
        """Write the record."""
        write_json(self.path / RECORD_FILE, asdict(record))

    def load(self) -> Record | None:
        """The record; None if there is none.

        Raises:
            UserError: it is damaged, or the folder is another kind of folder.
        """
        path = self.path / RECORD_FILE
        if not path.is_file():
            check_replaceable(self.path, CONTENTS)
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            stages = {name: StageRecord(**stage) for name, stage in values.pop("stages").items()}
            record = Record(**{**values, "stages": stages})
            if not isinstance(record.asked.minutes * record.spent, (int, float)):
                raise TypeError("times that are no numbers")
            return record
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}); add --overwrite to train anew"
            ) from error

    @contextmanager
    def timed(self, record: Record, name: str) -> Iterator[None]:
        """Add the time that the block takes to the record, and write it."""
        start = time.monotonic()
        yield
        record.seconds[name] = record.seconds.get(name, 0.0) + time.monotonic() - start
        self.save(record)

    def set_aside(self) -> None:
        """Move an earlier run of this command to a subfolder, whose former content is removed.

        Raises:
            UserError: the folder holds anything else.
        """
        check_replaceable(self.path, CONTENTS)
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        earlier = self.path / EARLIER
        with os_errors_for_user(self.path):
            shutil.rmtree(earlier, ignore_errors=True)
            shutil.rmtree(self.path / SCRATCH, ignore_errors=True)
            earlier.mkdir()
            # The record goes last: a kill on the way leaves a folder that is still recognised.
            for path in sorted(self.path.iterdir(), key=lambda path: path.name == RECORD_FILE):
                if path.name != EARLIER:
                    path.rename(earlier / path.name)


def digest(path: Path) -> str:
    """Digest of a config file; empty if it is missing."""
    return values_digest(path.read_text(encoding="utf-8")) if path.is_file() else ""


def training_seconds(log: Path) -> float:
    """Time that a stage has trained according to its log, without what was lost in kills."""
    total = last = 0.0
    for line in read_log(log):
        seconds = line.get("seconds", 0.0)
        if seconds < last:  # a resumed run counts from 0 again
            total += last
        last = seconds
    return total + last


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a stage's log; empty if there is none. A line that a kill cut off is left out."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and "step" in values:
                lines.append(values)
    return lines
