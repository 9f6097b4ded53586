"""Checkpoints on a Hugging Face hub, named `hf:USER/REPO`, through huggingface_hub (extra `hub`).

That library is imported here alone, and only when such a name came. Its cache, login, endpoint and offline mode
(`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`) are used as they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dalle_mini_impl.util.errors import UserError, need_extra

PREFIX = "hf:"
NAME = re.compile(PREFIX + r"([\w.-]+/[\w.-]+)(?:@(.+))?")
LOGIN = "log in with: hf auth login"


def download(name: str, files: Sequence[str], needed: Sequence[str]) -> Path:
    """The folder of a repository's files in the library's cache, brought up to date where the hub can be reached.

    Args:
        name: `hf:USER/REPO`, or with `@` and a branch, tag or commit.
        files: what to download where it is there; nothing else is.
        needed: of these at least one must be there.

    Raises:
        UserError: there is no such repository or revision, it has none of the needed files, or it is neither to be
            reached nor in the cache.
    """
    repo, revision = _parse(name)
    library = _library()
    with _one_line_errors(name, library):
        folder = Path(library.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    if not any((folder / file).is_file() for file in needed):
        raise UserError(f"{name} has no checkpoint in it; expected one of {', '.join(needed)}")
    return folder


def upload(name: str, files: Mapping[str, Path | bytes], obsolete: Sequence[str], private: bool, message: str) -> str:
    """Put files into a repository by one commit; it is made if it is not there.

    Args:
        name: `hf:USER/REPO`.
        files: what to put there, by name.
        obsolete: what to delete where it is there.
        private: whether only those who are let in may see it.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        UserError: nobody is logged in, they may not write there, the hub cannot be reached or refuses the files, or the
            repository is public already although it is to be private.
    """
    repo, revision = _parse(name)
    if revision:
        raise UserError(f"{name} names a revision, but a checkpoint is sent to the main branch; leave out @{revision}")
    library = _library()
    with _one_line_errors(name, library):
        api = library.HfApi()
        if library.get_token() is None:
            raise UserError(f"{name} cannot be written to by someone unknown; {LOGIN}, or set HF_TOKEN")
        url = api.create_repo(repo, private=private or None, exist_ok=True)  # None: as is usual there
        info = api.model_info(repo)
        if private and not info.private:
            raise UserError(f"{name} is there already and public; make it private first, or leave out --private")
        there = {file.rfilename for file in info.siblings}
        changes = [library.CommitOperationDelete(file) for file in obsolete if file in there]
        changes += [library.CommitOperationAdd(file, content) for file, content in files.items()]
        api.create_commit(repo, changes, commit_message=message)
    return str(url)


def _parse(name: str) -> tuple[str, str | None]:
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(f"{name!r} came; expected hf:USER/REPO, or hf:USER/REPO@REVISION")
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
    """Say in one line what went wrong with a repository."""
    errors, hub = library.errors, library.constants.ENDPOINT
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is only for those who were let in; ask on its page at {hub}, then {LOGIN}") from error
    except errors.RepositoryNotFoundError as error:  # a hub does not tell strangers which of the two it is
        raise UserError(f"{name} is not at {hub}, or it is private; check the name, or {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no such revision; name a branch, tag or commit of it after the @") from error
    except errors.LocalEntryNotFoundError as error:
        cache = library.constants.HF_HUB_CACHE
        raise UserError(
            f"{name} is not, or not wholly, in {cache}, and {hub} cannot be reached; connect to it once, "
            f"without HF_HUB_OFFLINE"
        ) from error
    except Exception as error:  # that library, and those under it, raise almost anything
        reason = " ".join((getattr(error, "server_message", None) or str(error)).split())
        raise UserError(
            f"{name}: no success with {hub} ({reason[:300]}); check the connection and your rights"
        ) from error
