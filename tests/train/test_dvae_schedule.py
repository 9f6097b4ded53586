import math

import pytest
import torch

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.training import DvaeConfig, ImageTokenizerRun, RunConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.logit_laplace import MIN_LOG_SCALE, laplace_loss, mean_pixels
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.train.dvae_schedule import anneal, set_relaxation
from dalle_mini_impl.util.errors import UserError

DVAE = ("model.quantizer=gumbel", "model.likelihood=laplace")


# --- likelihood


def at(pixel, log_scale):
    """Decoder output whose mean is this pixel value."""
    location = torch.logit(torch.tensor(0.4 * pixel + 0.5))
    return torch.cat([location.expand(1, 3, 2, 5), torch.full((1, 3, 2, 5), log_scale)], 1)


@pytest.mark.parametrize("pixel", [-1.0, -0.3, 0.0, 0.7, 1.0])
def test_mean_pixels_undo_the_map(pixel):
    torch.testing.assert_close(mean_pixels(at(pixel, 0.0)), torch.full((1, 3, 2, 5), pixel))


def test_every_channel_has_its_own_location():
    decoded = torch.cat([at(value, 0.0)[:, :1] for value in (-0.5, 0.25, 1.0)] + [torch.zeros(1, 3, 2, 5)], 1)
    assert mean_pixels(decoded).mean((0, 2, 3)).tolist() == pytest.approx([-0.5, 0.25, 1.0], abs=1e-6)


@pytest.mark.parametrize(("location", "log_scale"), [(0.3, 0.0), (-1.0, -1.0), (2.0, -0.7)])
def test_the_density_sums_to_one(location, log_scale):
    # Over all values the sigmoid can take; pixels only reach 0.1 to 0.9, hence beyond [-1, 1]
    x = (torch.arange(20001, dtype=torch.float64) + 0.5) / 20001
    decoded = torch.tensor([location] * 3 + [log_scale] * 3)[None, :, None, None]
    nats = [float(laplace_loss(decoded, torch.full((1, 3, 1, 1), float(value)))) for value in ((x - 0.5) / 0.4)[::40]]
    assert float(torch.tensor(nats).neg().exp().mean()) == pytest.approx(1, abs=0.02)


def test_the_likeliest_pixel_by_hand():
    log_scale = MIN_LOG_SCALE + math.log1p(math.exp(0.5 - MIN_LOG_SCALE))
    expected = log_scale + math.log(2) + math.log(0.25)
    assert float(laplace_loss(at(0.0, 0.5), torch.zeros(1, 3, 2, 5))) == pytest.approx(expected)


def test_the_likelihood_of_a_flat_background_is_bounded():
    white = torch.ones(1, 3, 2, 5)
    assert float(laplace_loss(at(1.0, -100.0), white)) == pytest.approx(MIN_LOG_SCALE + math.log(2) + math.log(0.09))
    decoded = at(0.5, -10.0).requires_grad_()
    laplace_loss(decoded, white).backward()
    assert bool((decoded.grad[:, 3:] < 0).all())  # it can always become wider again


def test_half_precision_is_accepted():
    decoded = at(0.4, -1.0).bfloat16()
    assert laplace_loss(decoded, torch.zeros(1, 3, 2, 5)).dtype == mean_pixels(decoded).dtype == torch.float32


# --- model


def test_decoding_gives_the_mean_pixels():
    config = ImageTokenizerConfig(image_size=16, channels=(7, 11), codebook_size=13, embed_dim=5, likelihood="laplace")
    tokenizer = ImageTokenizer(config).eval()
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    result = tokenizer.train()(pixels)
    assert result.decoded.shape == (2, 6, 16, 24)
    torch.testing.assert_close(result.pixels, mean_pixels(result.decoded))
    assert tokenizer.eval().decode(tokenizer.encode(pixels)).shape == (2, 3, 16, 24)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(pixels)), tokenizer(pixels).pixels.clamp(-1, 1))


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(UserError, match="expected likelihood none or laplace, got 'gauss'"):
        ImageTokenizer(ImageTokenizerConfig(likelihood="gauss"))


# --- schedule


def test_anneal_is_half_a_cosine():
    assert [anneal(1.0, 0.2, done, 0.5) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert anneal(0.0, 6.6, 0.125, 0.5) == pytest.approx(6.6 * (1 - math.sqrt(0.5)) / 2)
    assert anneal(1.0, 0.2, 0.0, 0.0) == 0.2


def test_the_schedule_of_the_paper():
    config = ImageTokenizerRun(
        model=ImageTokenizerConfig(quantizer="gumbel"),
        run=RunConfig(steps=3_000_000),
        dvae=DvaeConfig(temperature_share=0.05, kl_share=1 / 600),
    )
    gumbel, found = Gumbel(13, 5), {}
    for step in (0, 2500, 5000, 75_000, 150_000, 2_999_999):
        set_relaxation(gumbel, config, step, slice(0, 5))
        found[step] = float(gumbel.temperature), float(gumbel.kl_weight) * 192
    temperatures, weights = zip(*found.values(), strict=True)
    assert temperatures[0] == 1
    assert temperatures[3:] == pytest.approx([(1 + 1 / 16) / 2, 1 / 16, 1 / 16])
    assert weights == pytest.approx([0, 3.3, 6.6, 6.6, 6.6, 6.6])


def test_noise_depends_on_step_and_rows():
    config = ImageTokenizerRun(model=ImageTokenizerConfig(quantizer="gumbel"))
    gumbel = Gumbel(13, 5).train()

    def draw(step, first):
        set_relaxation(gumbel, config, step, slice(first, first + 2))
        return gumbel(torch.zeros(2, 3, 13))[0]

    assert torch.equal(draw(3, 0), draw(3, 0))
    assert not torch.equal(draw(3, 0), draw(4, 0))
    assert not torch.equal(draw(3, 0), draw(3, 2))


def test_other_quantizers_keep_their_noise():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    set_relaxation(torch.nn.Identity(), ImageTokenizerRun(), 3, slice(0, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_logits_are_larger_than_the_noise():
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(quantizer="gumbel", codebook_size=61, embed_dim=5))
    logits = tokenizer.encoder(torch.rand(3, 3, 64, 64) * 2 - 1)
    assert logits.shape[1] == 61
    assert logits.std(dim=1).mean() > math.pi / 6**0.5  # the spread of Gumbel noise


def test_the_dvae_schedule_trains_an_image_tokenizer(untrained, tmp_path):
    home = untrained.copy(tmp_path / "home")
    home.run(
        "image_tokenizer",
        *DVAE,
        "run.steps=400",
        "run.sample_every=0",
        "run.save_every=0",
        "run.validate_every=400",
        "optimizer.learning_rate=1e-2",
        "model.codebook_size=61",
        "dvae.temperature_share=0.5",
        "dvae.kl_weight=0.1",
    )
    log = home.log("image_tokenizer")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 1
    assert log[-1]["validation_psnr"] > log[0]["psnr"] + 3
    tokenizer = ImageTokenizer.from_pretrained(home.folder / "model")
    assert tokenizer.config.likelihood == "laplace"
    assert tokenizer.encode(torch.zeros(1, 3, 24, 16)).shape == (1, 3, 2)
