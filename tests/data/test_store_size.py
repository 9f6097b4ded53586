"""The size of stored pictures in headers, messages and commands."""

import pytest

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.store_size import frame_of_header, height_and_width, shown_size, size_in_header, store_command


@pytest.mark.parametrize(("frame", "header", "shown"), [((7, 7), 7, "7"), ((7, 11), [7, 11], "7×11")])
def test_one_number_stands_for_a_square(frame, header, shown):
    assert size_in_header(frame) == header
    assert frame_of_header(header) == frame
    assert shown_size(frame) == shown
    assert height_and_width(7) == height_and_width((7, 7)) == (7, 7)


@pytest.mark.parametrize("size", ["7", None, 7.0, [7], [7, 8, 9], [7, "8"], {}])
def test_other_sizes_in_a_header_are_refused(size):
    with pytest.raises(ValueError, match="expected a size in the header"):
        frame_of_header(size)


def test_the_command_quotes_paths():
    config = DataConfig(source="my set", store="runs/s", validation=0.2, fit="pad")
    command = store_command(config, (48, 32))
    assert command == "dalle data store 'my set' --out runs/s --size 48x32 --validation 0.2 --fit pad"
