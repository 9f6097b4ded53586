import gzip
import json

import pytest
from helpers.sources import encode, put_tar

from dalle_mini_impl.train.whole.pictures import listed_pictures, look_at
from dalle_mini_impl.util.errors import UserError


def make_folder(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(encode((number, 9, 200), size=(20 + number, 30)))
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


def test_pictures_of_every_kind_of_source_are_counted(tmp_path):
    folder = make_folder(tmp_path / "set", 60)
    table = tmp_path / "set.jsonl"
    table.write_text("".join(json.dumps({"path": f"set/{n:03}.png", "caption": "x"}) + "\n" for n in range(60)))
    members = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    (tmp_path / "tars").mkdir()
    for name in ("a", "b"):
        put_tar(tmp_path / "tars" / f"{name}.tar", members)
    assert listed_pictures(str(folder)) == listed_pictures(str(table)) == 60
    assert 90 < listed_pictures(str(tmp_path / "tars")) < 150
    assert 90 < listed_pictures(str(tmp_path / "tars" / "{a,b}.tar")) < 150
    compressed = tmp_path / "c.tar.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "tars" / "a.tar").read_bytes()))
    assert listed_pictures(str(compressed)) == 0
    assert listed_pictures(str(tmp_path / "nothing")) == 0


def test_of_large_sets_some_are_looked_at(tmp_path):
    look = look_at(str(make_folder(tmp_path / "set", 30)), 10)
    assert (look.count, look.total) == (10, 30)
    assert look.lines[0].endswith("set: 30 pictures; of 10 of them:")
    assert look.lines[1] == "  20 to 47 pixels wide, 30 to 30 high; width : height 0.667 to 1.567; 0 with transparency"
    assert look.seconds > 0


def test_captions_are_needed(tmp_path):
    folder = make_folder(tmp_path / "set", 4)
    (folder / "000.txt").unlink()
    assert look_at(str(folder), 100).lines[2].startswith("  3 captions (unknown 3)")
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"expected at least 2 pictures with captions in .*, got 4 of which 0 have a caption"
    ):
        look_at(str(folder), 100)
