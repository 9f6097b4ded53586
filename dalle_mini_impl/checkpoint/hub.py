"""Downloads and uploads checkpoints on a Hugging Face hub, named `hf:USER/REPO`, with huggingface_hub (extra `hub`).

Only this module imports that library, and only once such a name is used. The library's own cache, login, endpoint and
offline mode apply (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.text import printable

PREFIX = "hf:"
REPOSITORY_NAME = re.compile(PREFIX + r"([\w.-]+/[\w.-]+)(?:@(.+))?")
LOGIN = "log in with: hf auth login"
"""Advice in error messages."""


def download(name: str, files: Sequence[str], needed: Sequence[str]) -> Path:
    """Download files of a repository into the library's cache; offline, the cached files are used.

    Args:
        name: `hf:USER/REPO`, or `hf:USER/REPO@REVISION` with a branch, tag or commit.
        files: names of the files to download, where the repository has them; no others are downloaded.
        needed: at least one of these files must exist.

    Returns:
        The folder of the downloaded files in the cache.

    Raises:
        UserError: there is no such repository or revision, it has none of the needed files, it is neither reachable
            nor in the cache, or a file in the cache is a link that leads out of it.
    """
    repo, revision = _parse(name)
    library = _library()
    with _one_line_errors(name, library):
        folder = Path(library.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    _check_links(folder, files)
    if not any((folder / file).is_file() for file in needed):
        raise UserError(f"{name} holds no checkpoint; expected one of {', '.join(needed)}; name another repository")
    return folder


def _check_links(folder: Path, files: Sequence[str]) -> None:
    """Check that downloaded files are in the cache of their repository, in which the library keeps links to them.

    A cache may have been written by somebody else, and what its links lead to would be read, and uploaded by a push.
    """
    repository = folder.resolve().parents[1]
    places = (repository, (repository / "blobs").resolve())
    for file in files:
        path = folder / file
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in places):
            raise UserError(f"{path} is a link that leads out of the cache; delete it, and it will be downloaded again")


def upload(name: str, files: Mapping[str, Path | bytes], obsolete: Sequence[str], private: bool, message: str) -> str:
    """Upload files to a repository in one commit; the repository is created if missing.

    Args:
        name: `hf:USER/REPO`.
        files: name in the repository -> file on disk, or content.
        obsolete: names of files to delete from the repository, if it has them.
        private: make the repository private.
        message: commit message.

    Returns:
        URL of the repository.

    Raises:
        UserError: the user is not logged in or may not write, the hub is unreachable or refuses the files, or `private`
            is set and the repository already exists as a public one.
    """
    repo, revision = _parse(name)
    if revision:
        raise UserError(
            f"{name} names a revision, but checkpoints are pushed to the main branch; leave out @{revision}"
        )
    library = _library()
    with _one_line_errors(name, library):
        api = library.HfApi()
        if library.get_token() is None:
            raise UserError(f"{name} cannot be written to without a login; {LOGIN}, or set HF_TOKEN")
        url = api.create_repo(repo, private=private or None, exist_ok=True)  # None: the hub's default
        info = api.model_info(repo)
        if private and not info.private:
            raise UserError(f"{name} already exists and is public; make it private first, or leave out --private")
        present = {file.rfilename for file in info.siblings}
        changes = [library.CommitOperationDelete(file) for file in obsolete if file in present]
        changes += [library.CommitOperationAdd(file, content) for file, content in files.items()]
        api.create_commit(repo, changes, commit_message=message)
    return str(url)


def _parse(name: str) -> tuple[str, str | None]:
    match = REPOSITORY_NAME.fullmatch(name)
    if not match:
        raise UserError(f"expected hf:USER/REPO or hf:USER/REPO@REVISION, got {name!r}; correct the name")
    return match[1], match[2]


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise need_extra("huggingface_hub", "hub") from error
    return huggingface_hub


@contextmanager
def _one_line_errors(name: str, library: Any) -> Iterator[None]:
    """Turn the library's exceptions into a `UserError` of one line."""
    errors = library.errors
    hub = library.constants.ENDPOINT
    name = printable(name)
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated; request access on its page at {hub}, then {LOGIN}") from error
    except errors.RepositoryNotFoundError as error:  # without a login the hub does not say which of the two it is
        raise UserError(f"{name} is not at {hub}, or it is private; check the name, or {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no such revision; name one of its branches, tags or commits after the @"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cache = library.constants.HF_HUB_CACHE
        tried = (
            "HF_HUB_OFFLINE is set; download it once without"
            if library.constants.HF_HUB_OFFLINE
            else f"{hub} cannot be reached; check the connection"
        )
        raise UserError(f"{name} is not complete in {cache}, and {tried}") from error
    except Exception as error:  # the library and those it uses raise many other exceptions
        reason = printable(getattr(error, "server_message", None) or str(error))
        raise UserError(f"{name}: {hub} failed ({reason[:300]}); check the connection and your rights") from error
