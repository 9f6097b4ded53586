"""Embeddings drawn from a prior."""

import sys

import pytest
import torch

from dalle_mini_impl.config.sampling import SAMPLERS, PriorSamplingConfig
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.unclip.prior import Prior, denoise, draw_components
from dalle_mini_impl.util.errors import UserError

TEXTS = ["a red heart", "a blue cat with a hat", ""]


def generators(count):
    return [torch.Generator().manual_seed(number) for number in range(count)]


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_an_embedding_depends_on_its_own_caption_and_seed_alone(with_prior, scorer, kind):
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    prior = Prior.from_pretrained(with_prior(kind, guidance=1.7), scorer)
    assert prior.kind == kind
    together = prior.draw(TEXTS, [4, 5, 6])
    assert together.shape == (3, scorer.model.embed_dim)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for row in range(3):
        torch.testing.assert_close(prior.draw([TEXTS[row]], [4 + row])[0], together[row])
    others = prior.draw([TEXTS[0], *[TEXTS[1]] * 12], [7, *range(4, 16)])
    assert (others[0] - together[0]).abs().max() > 1e-3
    assert (others[1:] - prior.draw([TEXTS[0]] * 12, range(4, 16))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_the_nearest_of_several_draws_is_kept(with_prior, scorer, kind):
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    seeds = range(12)
    text = scorer.embed_texts(TEXTS[:1])[0]
    cosines = []
    for draws in (1, 2, 8):
        prior = Prior.from_pretrained(with_prior(kind, draws=draws), scorer)
        cosines.append(prior.draw(TEXTS[:1] * 12, seeds) @ text)
    assert (cosines[1] >= cosines[0] - 1e-6).all()
    assert 0 < (cosines[1] > cosines[0] + 1e-4).sum() < 12  # the first draws are the same
    assert cosines[2].mean() > cosines[1].mean()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_every_sampler_ends_at_what_a_perfect_network_predicts(sampler, steps):
    pytest.importorskip("diffusers")
    target = torch.randn(4, 10, generator=torch.Generator().manual_seed(9))

    class Perfect:
        embed_dim, pad_id = 10, 0

        def new_past(self):
            return None

        def __call__(self, noised, times, text_ids, text_embed, past):
            assert times.shape == (4,)
            assert ((times >= 0) & (times < 1000)).all()
            return target

        def unscale(self, scaled):
            return scaled

    settings = PriorSamplingConfig(sampler=sampler, steps=steps)
    found = denoise(Perfect(), torch.ones(4, 3), torch.zeros(4, 10), settings, generators(4))
    torch.testing.assert_close(found, target, atol=2e-2 if sampler == "dpmsolver++" else 1e-4, rtol=0)


def test_guidance_moves_away_from_the_prediction_without_caption():
    pytest.importorskip("diffusers")
    given, without = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])

    class Network:
        embed_dim, pad_id = 2, 7

        def new_past(self):
            return None

        def __call__(self, noised, times, text_ids, text_embed, past):
            is_empty = bool((text_ids == 7).all()) and not bool(text_embed.any())
            return without if is_empty else given

        def unscale(self, scaled):
            return scaled

    settings = PriorSamplingConfig(steps=2, guidance=3.0)
    found = denoise(Network(), torch.ones(1, 3), torch.ones(1, 2), settings, generators(1))
    torch.testing.assert_close(found, without + 3 * (given - without))


def test_dot_products_are_drawn_from_the_upper_half_and_components_one_after_another():
    calls = []

    class Network:
        components, buckets, pad_id = 4, 9, 0

        def new_past(self):
            return None

        def __call__(self, ids, dot_ids, text_ids, text_embed, past):
            calls.append((ids.shape[1], dot_ids))
            return torch.zeros(len(ids), ids.shape[1] + 1, 9)

        def embed(self, ids):
            return ids

    ids = draw_components(Network(), torch.ones(200, 3), torch.ones(200, 2), PriorSamplingConfig(), generators(200))
    assert [count for count, _ in calls] == [0, 1, 2, 3]
    assert set(calls[0][1].tolist()) == {4, 5, 6, 7, 8}
    assert all(torch.equal(dots, calls[0][1]) for _, dots in calls)
    assert set(ids.flatten().tolist()) == set(range(9))


def test_drawing_without_diffusers_names_the_extra(with_prior, scorer, monkeypatch):
    prior = Prior.from_pretrained(with_prior("diffusion"), scorer)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"diffusers is not installed; run: pip install diffusers .*'\.\[unclip\]'"):
        prior.draw(["a cat"], [0])


def test_ddim_draws_without_diffusers(with_prior, scorer, monkeypatch):
    prior = Prior.from_pretrained(with_prior("diffusion", sampler="ddim"), scorer)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    drawn = prior.draw(["a cat", "a cat"], [0, 1])
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(2))
    assert not torch.equal(drawn[0], drawn[1])


def test_other_scorers_and_missing_priors_are_refused(with_prior, tiny_model, scorer, other_scorer):
    folder = with_prior("ar")
    with pytest.raises(UserError, match=r"prior\.safetensors was trained with embeddings of scorer \w{16}, but those"):
        Prior.from_pretrained(folder, Scorer.from_pretrained(other_scorer))
    with pytest.raises(UserError, match=r"has no prior\.safetensors; train that part first"):
        Prior.from_pretrained(tiny_model, scorer)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"sampler": "euler"}, "expected sampler ddpm, ddim, dpmsolver.*, got 'euler'"),
        ({"steps": 1001}, "expected 1 to 1000 sampling.steps, got 1001"),
        ({"draws": 0}, "expected sampling.draws of at least 1, got 0"),
        ({"guidance": float("inf")}, "sampling: guidance: expected float, got inf"),
    ],
)
def test_settings_that_nothing_can_be_drawn_with_are_refused(with_prior, scorer, sampling, message):
    with pytest.raises(UserError, match=message):
        Prior.from_pretrained(with_prior("diffusion", **sampling), scorer)


def test_texts_and_seeds_must_be_as_many(with_prior, scorer):
    prior = Prior.from_pretrained(with_prior("ar"), scorer)
    with pytest.raises(UserError, match="expected one seed for each of some texts, got 2 texts and 1 seeds"):
        prior.draw(["a", "b"], [0])
