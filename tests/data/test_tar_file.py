"""Zeros in tars are passed over quickly, whatever the size they claim."""

import io
import os

import pytest
from helpers.sources import encode, put_tar, read

from dalle_mini_impl.data.tar_file import TarFileObject


@pytest.mark.parametrize("position", [0, 511, 512, 5000, (1 << 20) - 1, 1 << 20, (3 << 20) + 700])
def test_the_first_block_that_is_not_zero_is_found(position):
    content = bytearray(4 << 20)
    content[position] = 1
    file = TarFileObject(io.BytesIO(content))
    file.seek(7)
    assert file.skip_zeros(0) == position // 512 * 512
    assert file.skip_zeros((position // 512 + 1) * 512) == len(content)
    assert file.tell() == 7


def test_members_behind_terabytes_of_holes_are_read(tmp_path):
    first = put_tar(tmp_path / "a.tar", [("a.png", encode()), ("a.txt", "red")])
    second = put_tar(tmp_path / "b.tar", [("b.png", encode()), ("b.txt", "blue")])
    whole = tmp_path / "whole.tar"
    with whole.open("wb") as file:
        file.seek(1 << 40)
        file.write(first.read_bytes())
        file.seek(1 << 41)
        file.write(second.read_bytes())
    os.truncate(whole, 1 << 42)
    pairs, log = read(whole)
    assert [pair.key for pair in pairs] == ["a", "b"]
    assert not log.entries
