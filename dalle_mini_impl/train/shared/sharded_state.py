"""States of a sharded model, in the format of torch.distributed.checkpoint: each process writes and reads its shards.

Written while the training goes on, from a copy of the shards in main memory.

The format's index, `.metadata`, is a pickle. It is read with a list of the classes that it needs, so that no code of
the file is run. `run.json` holds checksums of all files and the record of the run.
"""

import contextlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.run_record import RunRecord, added_settings, changed_settings, read_record
from dalle_mini_impl.train.shared.saved_tensors import DamagedState, check_sizes, errors_as_damage
from dalle_mini_impl.util.distributed import PATIENCE
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import file_digest, flush_to_disk, values_digest, write_json

METADATA_FILE = ".metadata"
RUN_FILE = "run.json"
SHARD = re.compile(r"__([0-9]+)_[0-9]+\.distcp")
"""Names of the files with shards; the number is that of the process."""
CLASSES = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}
"""Module and name of everything that an index may call besides torch's number types."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_type and (module, name) not in CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


class _Reader(checkpoint.FileSystemReader):
    """Reads an index without running code, and shards from its own folder only."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        if options.get("rank") is not None:  # one index for each process, which is not what `write` makes
            raise DamagedState("no index of all processes")
        with (Path(self.path) / METADATA_FILE).open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata) or not all(
            isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()
        ):
            raise DamagedState("an index of something else than tensors")
        if not all(SHARD.fullmatch(info.relative_path) for info in metadata.storage_data.values()):
            raise DamagedState("an index of other files")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def named_tensors(model: nn.Module, optimizers: list[Any], ema: Ema) -> dict[str, Tensor]:
    """All tensors that training changes, by unique names. They are the run's own, so loading into them restores it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in ema.state.items()}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():  # Muon's matrices of convolutions have no name
            tensors |= {f"moments.{names.get(parameter)}.{name}": value for name, value in moments.items()}
    return tensors


class Writer:
    """Writes states while the training goes on, one after the other. As a context it ends with the last one written.

    Args:
        accelerator: the processes of the run.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._thread = ThreadPoolExecutor(1)
        self._target = Path()
        self._running: Future[None] | None = None
        self._group: Any = None

    def begin(
        self, target: Path, tensors: dict[str, Tensor], record: RunRecord, then: Callable[[], None] = lambda: None
    ) -> None:
        """Copy a state into main memory and begin to write it; waits for the one before. All processes must call this.

        Args:
            target: a folder that gets its name once all processes have written.
            tensors: this process's shards, by name.
            record: what the state belongs to.
            then: called by the main process afterwards, in another thread.

        Raises:
            UserError: as `wait`.
        """
        self.wait()
        partial = target.with_name(".state.partial")  # one run writes here at a time, see `TrainingLog`
        if self._accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        # A group of its own: what its processes exchange must not come between what the training exchanges.
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._target = target
        written = cast("Future[Any]", checkpoint.async_save(tensors, checkpoint_id=partial, process_group=self._group))
        self._running = self._thread.submit(self._finish, written, partial, record, then)

    def wait(self) -> None:
        """Wait until the last state is written; all processes must call this.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._running is None:
            return
        running, self._running = self._running, None
        try:
            running.result()
        except (CheckpointException, OSError) as error:
            if self._accelerator.is_main_process:  # what was written takes the space that is missing
                shutil.rmtree(self._target.with_name(".state.partial"), ignore_errors=True)
            cause = first_cause(error)
            reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause).splitlines()[0]
            raise UserError(f"cannot write {self._target}: {reason}; make space, or choose a writable path") from error
        self._accelerator.wait_for_everyone()
        distributed.destroy_process_group(self._group)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
            elif self._running is not None:
                with contextlib.suppress(BaseException):  # the first error is the one to tell
                    self._running.result()
        finally:
            self._thread.shutdown()

    def _finish(self, written: "Future[Any]", partial: Path, record: RunRecord, then: Callable[[], None]) -> None:
        """What follows the shards: checksums of all files, the record, and the name of the folder."""
        written.result()
        own = [path for path in partial.iterdir() if _writer_of(path) == self._accelerator.process_index]
        for path in own:
            flush_to_disk(path)
        digests: list[Any] = [None] * self._accelerator.num_processes
        own_digests = {path.name: file_digest(path) for path in own}
        distributed.all_gather_object(digests, own_digests, group=self._group)
        if self._accelerator.is_main_process:
            everywhere = {name: digest for some in digests for name, digest in some.items()}
            content = {"digests": everywhere, "record": record.as_json()}
            write_json(partial / RUN_FILE, {**content, "checksum": values_digest(content)})
            shutil.rmtree(self._target, ignore_errors=True)  # of a run that was resumed at an earlier step
            partial.rename(self._target)
            flush_to_disk(self._target.parent)
            then()


def load(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizers: list[Any], ema: Ema, record: RunRecord
) -> tuple[int, dict[str, Tensor], list[str]]:
    """Restore model, optimizers and EMA from a sharded state.

    Returns:
        The next step, the process's own tensors by name, and the settings that differ from the state's, as
        `changed_settings` describes them.

    Raises:
        DamagedState: a file is missing or altered.
        UserError: it is of another model or run.
    """
    saved_record = _check_files(path, accelerator)
    changes = changed_settings(saved_record, record, str(path))
    if new := added_settings(saved_record, record):
        raise UserError(
            f"expected a state that is not sharded to add {' and '.join(new)} to, got {path}; resume without "
            f"{' and '.join(new)} and without FSDP first, which writes such a state"
        )
    reader = _Reader(path)
    with errors_as_damage():
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        saved_sizes = {name: list(entry.size) for name, entry in saved.items() if not name.startswith("own.")}
        processes = 1 + max(int(name.split(".")[1]) for name in saved if name.startswith("own."))
    create_moments(optimizers)
    tensors = named_tensors(model, optimizers, ema)
    check_sizes(path, saved_sizes, {name: list(value.size()) for name, value in tensors.items()})
    prefix = f"own.{accelerator.process_index % processes}."
    with errors_as_damage():
        process_tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in saved.items()
            if name.startswith(prefix)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as expected with one process
            checkpoint.load({**tensors, **process_tensors}, storage_reader=reader)
    own = {name.removeprefix(prefix): value for name, value in process_tensors.items()}
    return int(path.name.split("-")[1]), own, changes


def create_moments(optimizers: list[Any]) -> None:
    """Have optimizers create their moments, by a step with zero gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def first_cause(error: BaseException) -> BaseException:
    """The first of the errors that a CheckpointException collects from the processes."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _check_files(path: Path, accelerator: Accelerator) -> RunRecord:
    """Compare the files of a state with their checksums, shared out among the processes; returns the record.

    Raises:
        DamagedState: a file is missing or altered; in all processes.
    """
    record, digests = read_run(path)
    if digests is None:
        return record
    with errors_as_damage():
        names = sorted(digests)
        if not all(name == METADATA_FILE or SHARD.fullmatch(name) for name in names) or METADATA_FILE not in names:
            raise DamagedState("checksums of other files")
        own = names[accelerator.process_index :: accelerator.num_processes]
        broken = [name for name in own if not (path / name).is_file() or file_digest(path / name) != digests[name]]
        if everywhere := gather_object(broken):
            raise DamagedState(f"wrong checksum of {everywhere[0]}")
        return record


def read_run(path: Path) -> tuple[RunRecord, dict[str, str] | None]:
    """The record of a state and the checksums of its files, by name; an empty one and None if an old version wrote it.

    Raises:
        DamagedState: what describes the state is missing or altered.
    """
    with errors_as_damage():
        if not (path / RUN_FILE).is_file() and (path / METADATA_FILE).is_file():  # written by an old version
            return RunRecord(), None
        run = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        if run.pop("checksum") != values_digest(run):
            raise DamagedState(f"wrong checksum of {RUN_FILE}")
        return read_record(run["record"]), run["digests"]


def _writer_of(path: Path) -> int:
    """Number of the process that wrote a file."""
    match = SHARD.fullmatch(path.name)
    return int(match[1]) if match else 0
