"""What `--data` of `dalle evaluate` accepts, and what it says of anything else."""

import dataclasses
import json

import pytest
from PIL import Image

from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.evaluate.data import check_exists, is_store, store_config
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures with captions and a table of the same."""
    folder = tmp_path / "my.pictures"
    folder.mkdir()
    lines = []
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a cat")
        line = {"path": f"{number}.png", "caption": "a cat", "split": "train" if number else "validation"}
        lines.append(json.dumps(line))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder


def test_a_source_becomes_a_store_beside_it_once(pictures):
    table = pictures / "list.jsonl"
    config = store_config(str(table))
    assert config.store == str(pictures / "list-store")
    assert len(open_store(config, "train")) == 5
    assert is_store(config.store)
    written = (pictures / "list-store" / "store.json").stat().st_mtime_ns
    assert len(open_store(store_config(str(table)), "validation")) == 1
    assert (pictures / "list-store" / "store.json").stat().st_mtime_ns == written
    assert store_config(str(pictures)).store == str(pictures.parent / "my.pictures-store")


def test_a_store_is_opened_as_it_is(pictures):
    store = store_config(pictures / "list.jsonl").store
    open_store(store_config(pictures / "list.jsonl"), "train")
    config = store_config(store, ["flag"])
    assert (config.source, config.store, config.skip_kinds) == ("", store, ("flag",))


def test_a_store_beside_a_source_keeps_its_fit(pictures):
    first = dataclasses.replace(store_config(pictures), fit="stretch")
    open_store(first, "train")
    assert store_config(pictures).fit == "stretch"
    assert len(open_store(store_config(pictures), "train")) == len(open_store(first, "train"))


def test_missing_data_names_the_two_commands_that_make_the_default_store(tmp_path):
    commands = "`dalle data emoji --out data/emoji` and `dalle data store data/emoji --out data/emoji-store --fit crop`"
    for check in (check_exists, store_config):
        with pytest.raises(UserError, match=f"data/emoji-store does not exist; .*{commands}"):
            check("data/emoji-store")


def test_a_pattern_needs_a_store_of_its_own():
    check_exists("set-{000..007}.tar")
    with pytest.raises(
        UserError, match=r"got the pattern set-\{000\.\.007\}\.tar; make a store with: dalle data store"
    ):
        store_config("set-{000..007}.tar")
