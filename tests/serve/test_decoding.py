"""Pictures of several requests are decoded together only where each stays what it would be alone."""

import torch
from helpers.models import make_image_tokenizer

from dalle_mini_impl.serve.decoding import TOGETHER, SharedDecoder

GROUPS = (1, 3, 1, TOGETHER, 2)


def groups_of_ids():
    ids = torch.randint(0, 61, (sum(GROUPS), 3, 5), generator=torch.Generator().manual_seed(2))
    return list(ids.split(GROUPS))


class Counted:
    """An image tokenizer that notes how many pictures it decodes at a time, whose rounding may depend on that."""

    def __init__(self, steady: bool) -> None:
        self.tokenizer, self.steady, self.counts = make_image_tokenizer(), steady, []
        self.device = self.tokenizer.device

    def decode(self, ids):
        self.counts.append(len(ids))
        pixels = torch.cat([self.tokenizer.decode(one[None]) for one in ids])
        return pixels if self.steady else pixels + 1e-7 * len(ids)


def test_pictures_are_decoded_together_with_the_bytes_that_they_have_alone():
    tokenizer = Counted(steady=True)
    decoder = SharedDecoder(tokenizer)
    expected = [torch.cat([tokenizer.tokenizer.decode(one[None]) for one in ids]) for ids in groups_of_ids()]
    for again in range(2):
        tokenizer.counts.clear()
        pixels = decoder.decode(groups_of_ids())
        assert all(torch.equal(one, other) for one, other in zip(pixels, expected, strict=True))
        assert [count for count in tokenizer.counts if count > 1] == [TOGETHER, sum(GROUPS) - TOGETHER]
        assert tokenizer.counts.count(1) == (0 if again else 4)


def test_nothing_is_decoded_together_where_that_would_change_a_picture():
    tokenizer = Counted(steady=False)
    decoder = SharedDecoder(tokenizer)
    assert decoder.decode(groups_of_ids()) is None
    assert decoder.decode(groups_of_ids()) is None
    assert decoder.decode(groups_of_ids()[:1]) is not None
