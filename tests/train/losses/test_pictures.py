import pytest
import torch

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.evaluate.perceptual import gradient_ssim
from dalle_mini_impl.model.image_tokenizer import Reconstruction
from dalle_mini_impl.train.losses.pictures import build_picture_loss, crop_at_random, reconstruction_loss
from dalle_mini_impl.util.errors import UserError

CPU = torch.device("cpu")


def result_of(pixels):
    return Reconstruction(pixels, pixels, torch.zeros(len(pixels), 1, 1), torch.tensor(0.0))


def test_reconstruction_loss_by_hand():
    target = torch.zeros(1, 1, 2, 3)
    pixels = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 0.0, 3.0]]]])
    pixelwise = (1 + 1 + 3) / 6 + (1 + 1 + 9) / 6
    sideways, downwards = (1 + 0 + 0 + 3) / 4, (0 + 1 + 2) / 3
    assert float(reconstruction_loss(pixels, target, 0)) == pytest.approx(pixelwise)
    assert float(reconstruction_loss(pixels, target, 0.5)) == pytest.approx(pixelwise + 0.5 * (sideways + downwards))


def test_reconstruction_loss_works_in_full_precision():
    pixels, target = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7)
    half = reconstruction_loss(pixels.bfloat16(), target, 0.5)
    assert half.dtype == torch.float32
    assert half == reconstruction_loss(pixels.bfloat16().float(), target, 0.5)


def test_the_loss_has_the_configured_terms():
    pixels, target = torch.rand(2, 3, 16, 24), torch.rand(2, 3, 16, 24)
    terms = build_picture_loss(ImageTokenizerRun(edge=0.3), CPU)(result_of(pixels), target)
    assert terms == {"reconstruction": reconstruction_loss(pixels, target, 0.3)}
    config = ImageTokenizerRun(edge=0.3, perceptual="gradient-ssim", perceptual_weight=0.7)
    torch.manual_seed(0)
    terms = build_picture_loss(config, CPU)(result_of(pixels), target)
    assert terms.keys() == {"reconstruction", "perceptual"}
    torch.manual_seed(0)
    expected = 0.7 * gradient_ssim(*crop_at_random(pixels, target)).mean()
    torch.testing.assert_close(terms["perceptual"], expected)


def test_crops_at_every_offset_up_to_three_pixels_occur():
    rows, columns = torch.arange(7.0)[:, None].expand(7, 9), torch.arange(9.0).expand(7, 9)
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        row, column = crop_at_random(rows[None, None], columns[None, None])
        seen.add((int(row[0, 0, 0, 0]), int(column[0, 0, 0, 0])))
        assert row.shape == column.shape == (1, 1, 7 - row[0, 0, 0, 0], 9 - column[0, 0, 0, 0])
    assert seen == {(top, left) for top in range(4) for left in range(4)}


def test_an_unknown_distance_is_refused():
    with pytest.raises(UserError, match="unknown perceptual distance"):
        build_picture_loss(ImageTokenizerRun(model=ImageTokenizerConfig(), perceptual="l3"), CPU)
