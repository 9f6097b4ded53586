import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.contrastive import make_batch, make_clip

from dalle_mini_impl.train.losses.contrastive import contrastive_loss
from dalle_mini_impl.train.losses.grad_cache import backward


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradient_caching_gives_the_gradient_of_the_whole_batch(accelerator, parts, sigmoid):
    expected, clip = make_clip(sigmoid), make_clip(sigmoid)
    pixels, text_ids, groups = make_batch()
    whole = contrastive_loss(*expected(pixels, text_ids), groups)
    whole.backward()
    pairs = list(zip(pixels.chunk(parts), text_ids.chunk(parts), strict=True))
    loss, scale = backward(accelerator, clip, pairs, groups)
    torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(scale, expected.logit_scale.detach())
    for (name, one), other in zip(expected.named_parameters(), clip.parameters(), strict=True):
        assert (other.grad - one.grad).norm() < 1e-5 * one.grad.norm(), name


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_pictures_without_captions_end_each_chunk(accelerator, parts, sigmoid):
    expected, clip = make_clip(sigmoid), make_clip(sigmoid)
    pixels, text_ids, groups = make_batch()
    others = pixels.flip(3)[:3]
    image, text, *scalars = expected(torch.cat([pixels, others]), text_ids)
    whole = contrastive_loss(image[:6], text, *scalars, groups, image[6:])
    whole.backward()
    chunks = zip(pixels.chunk(parts), others.chunk(parts), text_ids.chunk(parts), strict=True)
    chunks = [(torch.cat([own, other]), texts) for own, other, texts in chunks]
    loss, _ = backward(accelerator, clip, chunks, groups, 3 // parts)
    torch.testing.assert_close(loss, whole.detach())
    for (name, one), two in zip(expected.named_parameters(), clip.parameters(), strict=True):
        assert (two.grad - one.grad).norm() < 1e-5 * one.grad.norm(), name


@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_of_several_captions_is_the_mean_of_theirs(accelerator, parts):
    expected, clip = make_clip(), make_clip()
    pixels, text_ids, groups = make_batch()
    other = text_ids.flip(0)  # captions of other pictures
    whole = (
        contrastive_loss(*expected(pixels, text_ids), groups) + contrastive_loss(*expected(pixels, other), groups)
    ) / 2
    whole.backward()
    both = torch.stack([text_ids, other], 1).flatten(0, 1)  # each picture's in a row
    loss, _ = backward(accelerator, clip, list(zip(pixels.chunk(parts), both.chunk(parts), strict=True)), groups)
    torch.testing.assert_close(loss, whole.detach())
    for (name, one), two in zip(expected.named_parameters(), clip.parameters(), strict=True):
        assert (two.grad - one.grad).norm() < 1e-5 * one.grad.norm(), name


def test_only_one_part_is_in_memory_at_a_time(accelerator):
    clip, alive, most = make_clip(), 0, []
    pixels, text_ids, groups = make_batch()

    def forward(*part):
        nonlocal alive
        if torch.is_grad_enabled():
            alive += 1
            most.append(alive)
        image, text, scale, _ = clip(*part)

        def done(_):
            nonlocal alive
            alive -= 1

        if image.requires_grad:
            image.register_hook(done)  # the gradient has come back
        return image, text, scale

    backward(accelerator, forward, list(zip(pixels.chunk(3), text_ids.chunk(3), strict=True)), groups)
    assert most == [1, 1, 1]
