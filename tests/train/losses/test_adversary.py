from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.training import GanConfig, ImageTokenizerRun, RunConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, Reconstruction
from dalle_mini_impl.train.losses.adversary import build_adversary
from dalle_mini_impl.train.losses.discriminator import Discriminator
from dalle_mini_impl.util.errors import UserError

ALONE = SimpleNamespace(
    mixed_precision="no",
    device=torch.device("cpu"),
    autocast=nullcontext,
    prepare=lambda network: network,
    reduce=lambda value, how: value,
    backward=lambda loss: loss.backward(),
)
"""One process in full precision."""
MODEL = ImageTokenizerConfig(image_size=16, factor=8, channels=(7, 11), codebook_size=13, embed_dim=5)


def random_pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(steps=100, accumulation=1, **gan):
    torch.manual_seed(0)
    config = ImageTokenizerRun(
        model=MODEL,
        run=RunConfig(steps=steps, accumulation=accumulation),
        gan=GanConfig(**{"weight": 0.5, "channels": (5, 7), **gan}),
    )
    return build_adversary(ALONE, config, ImageTokenizer(MODEL))


def says(adversary, *logits):
    """Let the discriminator give these logits, one a picture, whatever it sees."""
    answer = torch.tensor(logits, requires_grad=True)
    adversary.network = lambda pixels: answer[:, None, None, None]


def gradients(module):
    return torch.cat([value.grad.flatten() for value in module.parameters()])


# --- discriminator


@pytest.mark.parametrize(("channels", "grid"), [((5,), (8, 12)), ((5, 7), (4, 6)), ((5, 7, 11), (2, 3))])
def test_one_logit_for_each_patch(channels, grid):
    assert Discriminator(channels)(random_pixels(2, 3, 16, 24)).shape == (2, 1, *grid)


def test_logits_of_a_picture_do_not_depend_on_other_pictures():
    network, pixels = Discriminator((5, 7)).eval(), random_pixels(4, 3, 16, 24)
    torch.testing.assert_close(network(pixels)[2:3], network(pixels[2:3]))


def test_spectral_norm_bounds_every_layer():
    torch.manual_seed(0)
    network = Discriminator((5, 7))
    layers = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(10)
        for _ in range(50):
            network(random_pixels(1, 3, 16, 16))
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) for layer in layers]
    assert norms == pytest.approx([1, 1, 1], rel=0.02)


# --- what the discriminator learns


def test_hinge_loss_by_hand():
    adversary = make()
    says(adversary, 3.0, 0.5, -2.0, -0.25)
    found = adversary.accumulate_gradients(random_pixels(2, 3, 16, 16), random_pixels(2, 3, 16, 16, seed=1))
    figures = {name: value.detach() for name, value in found.items()}
    assert float(figures["discriminator"]) == pytest.approx(((0 + 0.5) / 2 + (0 + 0.75) / 2) / 2)
    assert (float(figures["real_logit"]), float(figures["fake_logit"])) == (1.75, -1.125)


def test_the_discriminators_loss_gives_the_decoder_no_gradient():
    adversary, pixels = make(), random_pixels(2, 3, 16, 16).requires_grad_()
    adversary.accumulate_gradients(random_pixels(2, 3, 16, 16, seed=1), pixels)
    assert pixels.grad is None
    assert bool(gradients(adversary.discriminator).any())


def test_passes_of_a_step_add_up():
    real, fake = random_pixels(4, 3, 16, 16), random_pixels(4, 3, 16, 16, seed=1)
    whole, halves = make(), make(accumulation=2)
    for adversary in (whole, halves):
        adversary.discriminator.eval()  # or each pass would sharpen the spectral norm
    whole.accumulate_gradients(real, fake)
    for rows in (slice(0, 2), slice(2, 4)):
        halves.accumulate_gradients(real[rows], fake[rows])
    torch.testing.assert_close(gradients(halves.discriminator), gradients(whole.discriminator))


def test_the_discriminator_learns_to_separate_real_from_reconstructed():
    adversary = make()
    real = random_pixels(8, 3, 16, 16)
    fake = nn.functional.avg_pool2d(real, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    losses = []
    for _ in range(60):
        losses.append(float(adversary.accumulate_gradients(real, fake)["discriminator"].detach()))
        adversary.optimizer.step()
        adversary.optimizer.zero_grad()
    assert losses[-1] < 0.7 < 0.9 < losses[0]


def test_r1_is_the_squared_slope_at_real_pictures():
    slopes = torch.tensor([2.0, -3.0, 5.0])[None, :, None, None]
    found = []
    for r1 in (0.0, 0.4):
        adversary = make(r1=r1)
        scale = nn.Parameter(torch.tensor(1.0))
        adversary.network = lambda pixels, scale=scale: (scale * slopes * pixels).sum((1, 2, 3), keepdim=True)
        losses = []
        adversary.accelerator = SimpleNamespace(**{**vars(ALONE), "backward": losses.append})
        adversary.accumulate_gradients(random_pixels(2, 3, 4, 4), random_pixels(2, 3, 4, 4, seed=1))
        found.append((float(losses[0].detach()), float(torch.autograd.grad(losses[0], scale)[0])))
    squares = 16 * (4 + 9 + 25)
    assert found[1][0] - found[0][0] == pytest.approx(0.4 / 2 * squares, rel=1e-5)
    assert found[1][1] - found[0][1] == pytest.approx(0.4 * squares, rel=1e-5)  # the discriminator is moved by it


def test_lecam_penalises_distance_from_the_others_running_mean():
    losses = []
    adversary = make(lecam=0.3)
    adversary.accelerator = SimpleNamespace(**{**vars(ALONE), "backward": losses.append})
    says(adversary, 3.0, 0.5, -2.0, -0.25)
    adversary.mean_logits.copy_(torch.tensor([1.0, -1.0]))
    hinge = adversary.accumulate_gradients(random_pixels(2, 3, 4, 4), random_pixels(2, 3, 4, 4, seed=1))[
        "discriminator"
    ]
    real, fake = 0.99 * 1 + 0.01 * 1.75, 0.99 * -1 + 0.01 * -1.125
    torch.testing.assert_close(adversary.mean_logits, torch.tensor([real, fake]))
    expected = ((3 - fake) ** 2 + (0.5 - fake) ** 2) / 2 + ((real + 2) ** 2 + (real + 0.25) ** 2) / 2
    assert float((losses[0] - hinge).detach()) == pytest.approx(0.3 * expected, rel=1e-5)


# --- what the decoder learns


def decoder_and_result(adversary):
    """A decoder of two layers, what it gives, and a loss of it."""
    torch.manual_seed(1)
    first, last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)
    adversary.last_weight = last.weight
    decoded = last(first(random_pixels(2, 2, 16, 16)).tanh())
    result = Reconstruction(decoded, decoded, torch.zeros(2, 1, 1), torch.tensor(0.0))
    return nn.Sequential(first, last), result, (decoded - random_pixels(2, 3, 16, 16, seed=2)).square().mean()


@pytest.mark.parametrize("adaptive", [False, True])
def test_joined_gradients_are_those_of_both_losses(adaptive):
    adversary = make(adaptive=adaptive)
    adversary.discriminator.eval()
    decoder, result, loss = decoder_and_result(adversary)
    joined, weight = adversary.combined_loss(loss, result)
    joined.backward()
    assert all(value.grad is None for value in adversary.discriminator.parameters())
    found = gradients(decoder)

    decoder, result, loss = decoder_and_result(adversary)
    generator_loss = -adversary.discriminator(result.pixels).mean()
    norms = [
        torch.autograd.grad(term, adversary.last_weight, retain_graph=True)[0].norm() for term in (loss, generator_loss)
    ]
    assert float(weight) == pytest.approx(float(0.5 * norms[0] / norms[1]) if adaptive else 0.5, rel=1e-3)
    (loss + weight * generator_loss).backward()
    torch.testing.assert_close(found, gradients(decoder))


def test_the_adaptive_weight_is_bounded():
    adversary = make()
    _, result, loss = decoder_and_result(adversary)
    adversary.discriminator = lambda pixels: 1e-30 * pixels
    _, weight = adversary.combined_loss(1e9 * loss, result)
    assert float(weight) == pytest.approx(0.5e4)


# --- when


@pytest.mark.parametrize(
    ("steps", "start", "warmup", "first", "acts_from"),
    [(1000, 0.3, 100, 200, 300), (1000, 0.0, 100, 0, 100), (40, 0.5, 7, 13, 20), (10, 0.5, 0, 5, 5)],
)
def test_the_discriminator_is_trained_before_the_decoder_uses_it(steps, start, warmup, first, acts_from):
    adversary = make(steps=steps, start=start, discriminator_warmup=warmup)
    assert (adversary.first_step, adversary.generator_start) == (first, acts_from)
    other = make(7, start=start, discriminator_warmup=warmup)
    other.set_schedule(RunConfig(steps=steps))
    assert (other.first_step, other.generator_start) == (first, acts_from)


def test_the_decoder_is_not_touched_before_the_warmup_is_over(trained, tmp_path):
    logs = []
    for weight in (0.5, 5):
        home = trained.copy(tmp_path / str(weight), "image_tokenizer")
        home.run(
            "image_tokenizer",
            f"gan.weight={weight}",
            "gan.start=0.6",
            "gan.discriminator_warmup=2",
            "gan.channels=[5, 7]",
        )
        logs.append([line for line in home.log("image_tokenizer") if "loss" in line])
    for log in logs:
        assert ["discriminator" in line for line in log] == [False] * 4 + [True] * 6
        assert ["gan_weight" in line for line in log] == [False] * 6 + [True] * 4
    # The seventh step is the first to move the decoder, so the eighth is the first to show it
    same = [line["reconstruction"] == other["reconstruction"] for line, other in zip(*logs, strict=True)]
    assert same == [True] * 7 + [False] * 3
    assert logs[0][6]["gan_weight"] == pytest.approx(logs[1][6]["gan_weight"] / 10)
    assert logs[0][5]["discriminator"] != logs[0][4]["discriminator"]


def test_no_weight_means_no_adversary():
    assert make(weight=0.0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "expected gan.weight of 0 or more and gan.start from 0 to 1, got -1.0 and 0.3"),
        ({"start": 1.5}, "gan.start from 0 to 1, got 0.5 and 1.5"),
        ({"channels": ()}, r"expected gan.channels with at least one width, .* got \[\]; change them"),
        ({"channels": (5, 5, 5, 5, 5)}, r"at most as many as 16 pixels can be halved"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
