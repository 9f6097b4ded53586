import dataclasses

import pytest
import torch

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.util.errors import UserError

CONFIG = StreamConfig(text_length=5, text_vocab=17, grid=(2, 3), image_vocab=11, bos_id=13)
STREAM = Stream(CONFIG)


def test_text_padding_and_image_ids_fill_the_id_space():
    assert STREAM.text_range == (0, 17 + 5)
    assert STREAM.image_range == (22, 33)
    assert STREAM.image_offset == 22
    assert STREAM.vocab_size == 33
    assert STREAM.length == 1 + 5 + 6
    assert STREAM.image_length == 6


def test_each_empty_text_position_has_its_own_padding_id():
    prefix = STREAM.prefix([[3, 4], [], [0, 1, 2, 16, 16]])
    assert prefix.tolist() == [[13, 3, 4, 19, 20, 21], [13, 17, 18, 19, 20, 21], [13, 0, 1, 2, 16, 16]]
    assert prefix.dtype == torch.int64


def test_pad_id_is_replaced_by_the_padding_of_its_position():
    stream = Stream(dataclasses.replace(CONFIG, pad_id=0))
    prefix = stream.prefix([[3, 0, 4], [0], [0, 1, 2, 16, 0]])
    assert prefix.tolist() == [[13, 3, 18, 4, 20, 21], [13, 17, 18, 19, 20, 21], [13, 17, 1, 2, 16, 21]]


def test_join_appends_image_ids_row_by_row():
    image_ids = torch.tensor([[[0, 1, 2], [8, 9, 10]]])
    assert STREAM.join(STREAM.prefix([[7]]), image_ids).tolist() == [[13, 7, 18, 19, 20, 21, 22, 23, 24, 30, 31, 32]]


def test_split_is_the_inverse_of_join():
    generator = torch.Generator().manual_seed(0)
    captions = [torch.randint(17, (length,), generator=generator).tolist() for length in (0, 1, 2, 3, 4, 5, 5)]
    image_ids = torch.randint(11, (7, 2, 3), generator=generator)
    ids = STREAM.join(STREAM.prefix(captions), image_ids)
    assert ids.shape == (7, STREAM.length)
    split_captions, split_image_ids = STREAM.split(ids)
    assert split_captions == captions
    assert torch.equal(split_image_ids, image_ids)
    assert torch.equal(STREAM.join(STREAM.prefix(split_captions), split_image_ids), ids)


def test_ids_are_in_the_range_of_their_positions():
    generator = torch.Generator().manual_seed(1)
    ids = STREAM.join(STREAM.prefix([[16], [0] * 5]), torch.randint(11, (2, 2, 3), generator=generator))
    text, image = ids[:, 1:6], ids[:, 6:]
    assert 0 <= int(text.min()) <= int(text.max()) < STREAM.text_range[1]
    assert STREAM.image_range[0] <= int(image.min()) <= int(image.max()) < STREAM.image_range[1]


def test_coordinates_of_text_and_picture():
    assert STREAM.coordinates().tolist() == [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 3],
        [4, 4],
        [5, 5],
        [6, 6],
        [6, 7],
        [6, 8],
        [7, 6],
        [7, 7],
        [7, 8],
    ]


def test_coordinates_of_all_positions_differ():
    coordinates = Stream(StreamConfig(text_length=7, text_vocab=17, grid=(5, 3), image_vocab=11)).coordinates()
    assert len(coordinates.unique(dim=0)) == len(coordinates) == 23


def test_join_and_prefix_do_not_change_their_arguments():
    captions, image_ids = [[3, 4], []], torch.zeros(2, 2, 3, dtype=torch.int64)
    prefix = STREAM.prefix(captions)
    before = prefix.clone()
    STREAM.join(prefix, image_ids)
    assert captions == [[3, 4], []]
    assert torch.equal(prefix, before)
    assert not image_ids.any()


def test_prefix_of_no_captions_is_empty():
    assert STREAM.prefix([]).shape == (0, 6)


def test_a_caption_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="expected captions of up to 5 text ids, got 6; shorten"):
        STREAM.prefix([[1], [1] * 6])


@pytest.mark.parametrize("text_id", [-1, 17, 22])
def test_prefix_refuses_ids_outside_the_text_vocabulary(text_id):
    message = f"expected text ids from 0 to 16, got ids from {min(3, text_id)} to {max(3, text_id)}; encode with"
    with pytest.raises(UserError, match=message):
        STREAM.prefix([[3, text_id]])
