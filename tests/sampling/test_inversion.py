"""Image ids and the uniform numbers that draw them."""

import pytest
import torch
from helpers.models import GRID, make_transformer
from helpers.sampling import make_patches

from dalle_mini_impl.sampling.inversion import invert, redraw
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.sampling.requests import Prompt
from dalle_mini_impl.util.errors import UserError

PROMPT = Prompt([5, 9, 33], [7])
OTHER = Prompt([80, 4], [])


def pictures(count, seed=0):
    return torch.randint(61, (count, *GRID), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_picture_comes_back_id_for_id(guidance, precision):
    transformer, stream = make_transformer(n_embd=32)
    if precision != "fp32":
        transformer = pack(transformer, precision, stream.image_range)
    for image_ids in pictures(8):
        uniforms = invert(transformer, stream, PROMPT, image_ids, guidance)
        assert ((uniforms > 0) & (uniforms < 1)).all()
        assert torch.equal(redraw(transformer, stream, PROMPT, uniforms, guidance), image_ids)


def test_ids_of_no_probability_come_back_too():
    transformer, stream = make_transformer()
    with torch.no_grad():
        transformer.head.weight *= 400  # all but one id have a probability of 0 even in double precision
    for image_ids in pictures(8):
        uniforms = invert(transformer, stream, PROMPT, image_ids)
        assert torch.equal(redraw(transformer, stream, PROMPT, uniforms), image_ids)


def test_models_over_patches_are_inverted_in_the_order_of_their_stream():
    transformer, stream = make_patches(24)
    image_ids = torch.randint(stream.config.image_vocab, stream.config.grid)
    uniforms = invert(transformer, stream, PROMPT, image_ids)
    assert torch.equal(redraw(transformer, stream, PROMPT, uniforms), image_ids)


def test_numbers_are_as_in_sampling_and_another_prompt_gives_another_picture():
    transformer, stream = make_transformer()
    uniforms = torch.rand(stream.image_length, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = redraw(transformer, stream, PROMPT, uniforms)
    again = invert(transformer, stream, PROMPT, drawn)
    assert (again - uniforms).abs().max() < 0.2  # within the interval of the same id
    assert torch.equal(redraw(transformer, stream, PROMPT, again), drawn)
    assert not torch.equal(redraw(transformer, stream, OTHER, again), drawn)


def test_wrong_shapes_are_refused():
    transformer, stream = make_transformer()
    with pytest.raises(UserError, match=r"expected image ids of shape \(3, 5\), got \(3, 4\)"):
        invert(transformer, stream, PROMPT, torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"expected 15 uniform numbers, got \(14,\)"):
        redraw(transformer, stream, PROMPT, torch.zeros(14))


@pytest.mark.parametrize("wrong", [-1, 61])
def test_ids_that_the_model_does_not_have_are_refused(wrong):
    transformer, stream = make_transformer()
    image_ids = pictures(1)[0]
    image_ids[1, 2] = wrong
    with pytest.raises(UserError, match=rf"expected image ids from 0 to 60, got ids from .*{wrong}"):
        invert(transformer, stream, PROMPT, image_ids)
