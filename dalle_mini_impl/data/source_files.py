"""The files that a source of captioned pictures consists of, with sizes and times, to notice when they change."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from dalle_mini_impl.data.folder_reader import CAPTION_ENDINGS, METADATA_FILES
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import is_folder, pictures_of_table, tars_of_pattern
from dalle_mini_impl.data.remote import RemotePath, file_states, source_path
from dalle_mini_impl.data.sample import list_files
from dalle_mini_impl.data.tables import TABLE_ENDINGS
from dalle_mini_impl.data.tar_reader import is_tar
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
            tars = [name for name in sorted(os.listdir(path)) if is_tar(Path(name)) and not name.startswith(".")]
            return _states(path, tars or _folder_names(path))
        if path.is_file() and path.suffix.lower() in TABLE_ENDINGS:
            return _states(path.parent, known or (path.name, *pictures_of_table(path)))
        found = [os.path.realpath(str(tar)) for tar in tars_of_pattern(str(path))]
        folder = os.path.commonpath([os.path.dirname(tar) for tar in found])
        return _states(Path(folder), [os.path.relpath(tar, folder) for tar in found])
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


def _folder_names(folder: Path) -> list[str]:
    start = len(os.path.join(folder, ""))
    return [str(path)[start:] for path in list_files(folder, SkipLog()) if _is_relevant(path)]


def _is_relevant(path: Path | RemotePath) -> bool:
    """Whether a file of a folder of pictures is read."""
    return path.suffix.lower() in (*PICTURE_ENDINGS, *CAPTION_ENDINGS, ".json") or path.name in METADATA_FILES


def _remote_states(path: RemotePath) -> FileStates:
    if is_folder(path):
        states = path.list_states()
        tars = {file: state for file, state in states.items() if is_tar(file)}
        files = tars or {f: state for f, state in path.list_states(recursive=True).items() if _is_relevant(f)}
        return {str(file.relative_to(path)): state for file, state in files.items()}
    tars_or_table = [path] if path.suffix.lower() in TABLE_ENDINGS else tars_of_pattern(str(path))
    states = file_states([file for file in tars_or_table if isinstance(file, RemotePath)])
    return {str(file): state for file, state in states.items()}


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
