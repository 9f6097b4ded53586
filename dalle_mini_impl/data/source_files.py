"""The files that a source of captioned pictures consists of, with sizes and times, to notice when they change."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dalle_mini_impl.data.folder_reader import CAPTION_ENDINGS, METADATA_FILES
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import pictures_of_table
from dalle_mini_impl.data.remote import RemotePath, SourcePath, file_states, source_path
from dalle_mini_impl.data.shards import is_folder, list_folder, shards_of_folder, shards_of_pattern
from dalle_mini_impl.data.tables import TABLE_ENDINGS
from dalle_mini_impl.util.images import PICTURE_ENDINGS
from dalle_mini_impl.util.text import printable

FileStates = dict[str, list[int]]
"""Name of each file -> size in bytes and time of modification in nanoseconds; an empty list for a missing file."""


def source_states(source: str, known: Collection[str] = ()) -> FileStates:
    """The present state of every file of a source; nothing is opened but a table.

    At an address it is what the file system tells of the content in place of a time, and only the table itself of a
    table.

    Args:
        source: as for `read_pairs`.
        known: names of an earlier call. With a table only these are looked up, which saves reading it: what it names
            changes only if the table itself does.

    Returns:
        Empty where the source is missing or cannot be listed.
    """
    try:
        path = source_path(source)
        if isinstance(path, RemotePath):
            return _remote_states(path)
        if path.is_dir():
            files = _files_read(path, list_folder(path, SkipLog()))
            return _states(path, [os.path.relpath(str(file), path) for file in files])
        if path.is_file() and path.suffix.lower() in TABLE_ENDINGS:
            return _states(path.parent, known or (path.name, *pictures_of_table(path)))
        found = [os.path.realpath(str(shard)) for shard in shards_of_pattern(str(path))]
        folder = os.path.commonpath([os.path.dirname(shard) for shard in found])
        return _states(Path(folder), [os.path.relpath(shard, folder) for shard in found])
    except (OSError, ValueError):  # UserError, or paths on two drives of Windows
        return {}


def describe_changes(before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str:
    """How many files were added, changed and removed, with the name of one of each; empty if none."""
    changes = {
        "added": [name for name, state in now.items() if state and not before.get(name)],
        "changed": [name for name, state in now.items() if state and before.get(name) and state != before[name]],
        "removed": [name for name, state in before.items() if state and not now.get(name)],
    }
    return ", ".join(f"{len(names)} {kind} ({printable(names[0])})" for kind, names in changes.items() if names)


def _files_read(folder: SourcePath, files: Sequence[SourcePath]) -> list[SourcePath]:
    """Those of all files of a folder that are read."""
    relevant = (*PICTURE_ENDINGS, *CAPTION_ENDINGS, ".json")
    return shards_of_folder(folder, files) or [
        file for file in files if file.suffix.lower() in relevant or file.name in METADATA_FILES
    ]


def _remote_states(path: RemotePath) -> FileStates:
    if is_folder(path):
        states = path.list_states(recursive=True)
        return {str(file.relative_to(path)): states[file] for file in _files_read(path, [*states])}  # type: ignore[arg-type, index]
    files = [path] if path.suffix.lower() in TABLE_ENDINGS else shards_of_pattern(str(path))
    return {str(file): state for file, state in file_states([f for f in files if isinstance(f, RemotePath)]).items()}


def _states(folder: Path, names: Collection[str]) -> FileStates:
    states: FileStates = {}
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))
        except (OSError, ValueError):  # a table may name anything
            states[name] = []
        else:
            states[name] = [status.st_size, status.st_mtime_ns]
    return states
