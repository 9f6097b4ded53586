"""The steps of the samplers."""

import itertools

import pytest
import torch

from dalle_mini_impl.config.sampling import DIFFUSION_STEPS, SAMPLERS
from dalle_mini_impl.unclip.schedule import add_noise, make_scheduler, remove_noise

pytest.importorskip("diffusers")

PREDICTIONS = ("sample", "v_prediction", "epsilon")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_times_are_spread_over_the_whole_process(sampler, prediction):
    for steps in (1, 2, 61, 103, 223, 300, 501, 600, 700, 989, 998, 999, DIFFUSION_STEPS):
        times = make_scheduler(sampler, prediction, steps).timesteps.tolist()
        distance = DIFFUSION_STEPS / steps
        assert len(times) == steps or sampler == "dpmsolver++"  # which leaves out those without signal
        assert times == sorted(set(times), reverse=True)
        assert 0 <= times[-1] <= distance
        assert times[0] >= min(DIFFUSION_STEPS - distance - 1, 987)
        gaps = {first - second for first, second in itertools.pairwise(times)}
        assert all(abs(gap - distance) <= 1 for gap in gaps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [122, 300, 600, 700])
def test_a_perfect_network_draws_numbers_as_spread_as_those_it_knows(sampler, prediction, steps):
    """Of normal numbers with a deviation of 1/2 the best prediction is known; with many steps it draws such numbers."""
    generator = torch.Generator().manual_seed(0)
    scheduler = make_scheduler(sampler, prediction, steps)
    x = torch.randn(1, 4000, generator=generator)
    for time in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[time].double()
        noise, variance = 1 - signal, signal / 4 + 1 - signal
        known, added = signal.sqrt() / 4 / variance * x, noise.sqrt() / variance * x
        found = {"sample": known, "epsilon": added, "v_prediction": signal.sqrt() * added - noise.sqrt() * known}
        x = scheduler.step(found[prediction].float(), time, x, generator=generator).prev_sample
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 61, 300, DIFFUSION_STEPS])
def test_ddim_without_the_library_draws_what_the_library_draws(steps):
    start = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(8, 8, generator=torch.Generator().manual_seed(2)) / 8

    def predict(x, times):
        return (x @ weights + times[:, None] / 1000).tanh()

    scheduler, x = make_scheduler("ddim", "sample", steps), start
    for time in scheduler.timesteps:
        x = scheduler.step(predict(x, time.expand(3)), time, x).prev_sample
    torch.testing.assert_close(remove_noise(predict, start, steps), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_noise_is_added_as_by_the_library(sampler):
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, DIFFUSION_STEPS, 5, generator=generator)
    times = torch.arange(DIFFUSION_STEPS)
    expected = make_scheduler(sampler).add_noise(clean, noise, times)
    torch.testing.assert_close(add_noise(clean, noise, times), expected, atol=1e-5, rtol=1e-4)
    pictures = add_noise(clean[:4].view(4, 5, 1, 1), noise[:4].view(4, 5, 1, 1), times[:4])
    torch.testing.assert_close(pictures.view(4, 5), add_noise(clean[:4], noise[:4], times[:4]))
