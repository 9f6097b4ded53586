"""The picture store that `--data` of `dalle evaluate` names: an existing one, or one made from a source."""

from collections.abc import Sequence
from pathlib import Path

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.picture_store import HEADER_FILE, store_fit
from dalle_mini_impl.data.remote import is_address
from dalle_mini_impl.util.errors import UserError

MAKE_STORE = "`dalle data emoji --out data/emoji` and `dalle data store data/emoji --out data/emoji-store --fit crop`"
"""The two commands that make the store which every `dalle evaluate` command reads by default."""


def is_store(data: str | Path) -> bool:
    """Whether a path is a picture store, as opposed to a source of captioned pictures."""
    return (Path(data) / HEADER_FILE).is_file()


def check_exists(data: str | Path) -> None:
    """Refuse a path that does not exist. Patterns of tar files (`*`, `?`, `{`) and addresses are left to the reader.

    Raises:
        UserError: naming the commands that make the default store.
    """
    left = is_address(data) or any(letter in str(data) for letter in "*?{[")
    if not left and not Path(data).expanduser().exists():
        raise UserError(
            f"{data} does not exist; expected a picture store or a source of captioned pictures; "
            f"make a store of the emoji set with {MAKE_STORE}"
        )


def store_config(data: str | Path, skip_kinds: Sequence[str] = ()) -> DataConfig:
    """Config by which `open_store` opens `data`.

    Where `data` is a folder, a table or a tar of captioned pictures, the store is made from it on opening and kept
    beside it as `NAME-store`; one that lies there is used however its pictures were fitted.

    Args:
        data: a picture store, or anything `read_pairs` reads except a pattern or an address.
        skip_kinds: kinds of pictures to leave out.

    Raises:
        UserError: `data` does not exist, or is a pattern or an address.
    """
    check_exists(data)
    kinds = tuple(skip_kinds)
    if is_store(data):
        return DataConfig(store=str(data), skip_kinds=kinds)
    source = Path(data).expanduser()
    if is_address(data) or not source.exists():
        raise UserError(
            f"expected a picture store, got the {'address' if is_address(data) else 'pattern'} {data}; "
            f"make a store with: dalle data store '{data}' --out STORE"
        )
    name = source.resolve().name if source.is_dir() else source.stem
    store = source.resolve().parent / f"{name}-store"
    return DataConfig(source=str(data), store=str(store), skip_kinds=kinds, fit=store_fit(store))
