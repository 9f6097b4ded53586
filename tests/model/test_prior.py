"""The networks of the priors, and the quantisation of embeddings."""

import pytest
import torch
from helpers.models import randomise
from torch.nn import functional as F

from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.prior import principal_components, quantile_buckets
from dalle_mini_impl.util.errors import UserError

PAD = 0
SHAPE = {"n_layer": 2, "n_head": 3, "n_embd": 18, "text_length": 7}
IDS = torch.tensor([[5, 9, 3, PAD, PAD, PAD, PAD], [4, 6, 8, 7, 2, 3, PAD], [PAD] * 7])
TEXT = F.normalize(torch.randn(3, 10, generator=torch.Generator().manual_seed(1)), dim=-1)


def make_prior(kind="diffusion", **settings):
    config = PriorConfig(kind=kind, **{**SHAPE, "components": 4, "buckets": 5, **settings})
    return randomise(build_prior(config, embed_dim=10, text_vocab=11, pad_id=PAD), 3).eval()


def embeddings(count, seed=2, width=10):
    """Embeddings whose components vary less and less."""
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.6 ** torch.arange(width)
    return F.normalize(values + torch.arange(width) / 9, dim=-1)


def predict(prior, rows, ids=IDS):
    noised = embeddings(3)
    if prior.__class__.__name__ == "DiffusionPrior":
        return prior(noised[rows], torch.tensor([3, 500, 999])[rows], ids[rows], TEXT[rows])
    return prior(torch.tensor([[1, 2], [3, 4], [0, 1]])[rows], torch.tensor([1, 5, 0])[rows], ids[rows], TEXT[rows])


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_a_row_depends_on_its_own_caption_alone_whatever_padding_the_others_need(kind):
    prior = make_prior(kind)
    together = predict(prior, [0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[[row]], predict(prior, [row]))
    assert together.isfinite().all()


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_every_input_counts(kind):
    prior = make_prior(kind)
    before = predict(prior, [0])
    for part in ("tokens", "project_text", "project_noised", "time", "query", "dots", "values"):
        if hasattr(prior, part):
            changed = make_prior(kind)
            value = getattr(changed, part)
            with torch.no_grad():
                for weights in [value] if part == "query" else value.parameters():
                    weights.mul_(-1.5)
            assert (predict(changed, [0]) - before).abs().max() > 1e-4, part


def test_embeddings_vary_as_much_as_in_the_paper_and_come_back():
    prior = build_prior(PriorConfig(**SHAPE), embed_dim=1024, text_vocab=11, pad_id=PAD)
    embed = F.normalize(torch.randn(5, 1024), dim=-1)
    torch.testing.assert_close(prior.scale(embed), embed * 17.2)
    torch.testing.assert_close(prior.unscale(prior.scale(embed)), embed)


def test_components_are_in_the_order_of_their_variance_and_the_same_for_mirrored_vectors():
    embed = embeddings(200)
    mean, basis = principal_components(embed)
    variances = ((embed - mean) @ basis.T).var(0)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(basis @ basis.T, torch.eye(10), atol=1e-5, rtol=0)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_buckets_are_equally_frequent_and_stand_for_their_mean():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) ** 3
    edges, centres = quantile_buckets(values, 8)
    ids = torch.searchsorted(edges, values)
    assert torch.bincount(ids).tolist() == [125] * 8
    for bucket in range(8):
        torch.testing.assert_close(centres[bucket], values[ids == bucket].mean())


def test_more_buckets_than_values_leave_the_empty_ones_between_their_neighbours():
    edges, centres = quantile_buckets(torch.tensor([1.0, 2.0, 4.0]), 16)
    assert (edges.diff() >= 0).all()
    assert (centres.diff() >= 0).all()
    assert (centres[0], centres[-1]) == (1, 4)


def test_more_components_and_buckets_give_embeddings_back_more_exactly():
    embed = embeddings(300)
    cosines = []
    for components, buckets in ((2, 4), (5, 16), (10, 64)):
        prior = make_prior("ar", components=components, buckets=buckets)
        prior.fit(embed, embed)
        ids = prior.quantise(embed)
        assert ids.shape == (300, components)
        assert 0 <= ids.min() < ids.max() == buckets - 1
        cosines.append(float((prior.embed(ids) * embed).sum(1).mean()))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.999


def test_buckets_are_exact_in_mixed_precision():
    prior, embed = make_prior("ar", components=8, buckets=64), embeddings(500)
    prior.fit(embed, embed.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = prior.quantise(embed)
    assert torch.equal(found, prior.quantise(embed))


def test_half_of_the_dot_products_are_in_the_upper_half_of_the_buckets():
    prior = make_prior("ar", buckets=6)
    embed, text = embeddings(120), embeddings(120, seed=5)
    prior.fit(embed, text)
    dots = (embed * text).sum(1)
    upper = prior.dot_ids(embed, text) >= 3
    assert upper.sum() == 60
    assert dots[upper].min() > dots[~upper].max()


def test_a_component_is_predicted_from_those_before_it():
    prior = make_prior("ar")
    first = prior(torch.tensor([[1, 2, 3]]), torch.tensor([2]), IDS[:1], TEXT[:1])
    other = prior(torch.tensor([[1, 2, 0]]), torch.tensor([2]), IDS[:1], TEXT[:1])
    assert first.shape == (1, 4, 5)
    torch.testing.assert_close(first[:, :3], other[:, :3])
    assert (first[:, 3] - other[:, 3]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gan"}, "expected kind diffusion or ar, got 'gan'"),
        ({"n_head": 4}, "expected an even n_embd that is a multiple of n_head 4, got 18"),
        ({"n_head": 3, "n_embd": 15}, "expected an even n_embd that is a multiple of n_head 3, got 15"),
        ({"kind": "ar", "components": 11}, "expected at most 10 components, the width .* got 11"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_prior(**{"kind": "diffusion", **settings})


def test_what_does_not_depend_on_noise_and_time_is_computed_once():
    prior = make_prior()
    past, calls = prior.new_past(), []
    expected = [predict(prior, [0, 1, 2])]
    prior.trunk.blocks[0].register_forward_pre_hook(lambda block, given: calls.append(given[0].shape[1]))
    for times in ([3, 500, 999], [7, 0, 200], [3, 500, 999]):
        noised = embeddings(3, seed=2 + times[0] // 7)
        found = prior(noised, torch.tensor(times), IDS, TEXT, past)
        torch.testing.assert_close(found, prior(noised, torch.tensor(times), IDS, TEXT))
        expected.append(found)
    torch.testing.assert_close(expected[0], expected[1])
    assert not torch.allclose(expected[1], expected[2])
    assert calls == [
        7,
        3,
        10,
        3,
        10,
        3,
        10,
    ]  # caption and text embedding; time, noised embedding and query; all of them


def test_components_one_after_another_have_the_logits_of_all_together():
    prior = make_prior("ar")
    ids, dots = torch.tensor([[1, 2, 4], [3, 4, 0], [0, 1, 2]]), torch.tensor([1, 5, 0])
    together = prior(ids, dots, IDS, TEXT)
    past, calls = prior.new_past(), []
    prior.trunk.blocks[0].register_forward_pre_hook(lambda block, given: calls.append(given[0].shape[1]))
    parts = [prior(ids[:, :count], dots, IDS, TEXT, past) for count in range(4)]
    assert [part.shape for part in parts] == [(3, 1, 5)] * 4
    torch.testing.assert_close(torch.cat(parts, 1), together)
    assert calls == [6 + 2, 1, 1, 1]  # the longest caption, text embedding and dot product; then each component
    two = prior.new_past()
    torch.testing.assert_close(prior(ids[:, :2], dots, IDS, TEXT, two), together[:, :3])
    torch.testing.assert_close(prior(ids, dots, IDS, TEXT, two), together[:, 3:])
