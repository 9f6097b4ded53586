"""The files of a source that count when it is looked at again: all that the readers read."""

import pytest
from helpers.sources import encode, put, put_tar

from dalle_mini_impl.data.source_files import describe_changes, source_states


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.cap", "a.json", "b.jpe", "deep/b.tga"])
def test_every_file_that_is_read_of_a_folder_counts(tmp_path, name):
    put(tmp_path, "a.png", encode())
    before = source_states(str(tmp_path))
    put(tmp_path, name, "red")
    assert describe_changes(before, source_states(str(tmp_path))) == f"1 added ({name})"


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "TAR.xz"])
def test_compressed_tars_count_as_tars(tmp_path, ending):
    put_tar(tmp_path / f"set.{ending}", [("a.png", encode()), ("a.txt", "red")])
    put(tmp_path, ".hidden.tar", "")
    put(tmp_path, "beside.png", encode())
    assert list(source_states(str(tmp_path))) == [f"set.{ending}"]
    assert list(source_states(str(tmp_path / f"set.{ending}"))) == [f"set.{ending}"]
