import math

import pytest
import torch
from helpers import reference
from torch.nn import functional as F

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.model.quantizers.frozen import FrozenFiniteScalar, FrozenSimVQ, FrozenVQ
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.model.quantizers.learned import VQ, FiniteScalar, SimVQ, build_quantizer, encoder_width
from dalle_mini_impl.model.quantizers.lfq import LookupFree, entropies
from dalle_mini_impl.util.errors import UserError

# Eight unit vectors, 45 degrees apart.
COMPASS = torch.tensor([[math.cos(n * math.pi / 4), math.sin(n * math.pi / 4)] for n in range(8)])


def with_codebook(codebook, **settings):
    """A VQ with the given entries."""
    vq = VQ(*codebook.shape, **settings)
    state = vq.state_dict()
    codebook = F.normalize(codebook, dim=-1)
    state["inner._codebook.embed"] = codebook[None].clone()
    state["inner._codebook.embed_avg"] = codebook[None].clone()
    state["inner._codebook.initted"] = torch.tensor(True)
    vq.load_state_dict(state)
    return vq


def at(*degrees, length=1.0):
    angles = torch.tensor(degrees) * math.pi / 180
    return length * torch.stack([angles.cos(), angles.sin()], -1)[None]


def random_vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- VQ


def test_the_nearest_entry_is_the_one_at_the_smallest_angle():
    vq = with_codebook(COMPASS).eval()
    quantized, ids, loss = vq(at(3.0, 40.0, 50.0, 181.0, 359.0, -80.0))
    assert ids.tolist() == [[0, 1, 1, 4, 0, 6]]
    assert ids.dtype == torch.int64
    torch.testing.assert_close(quantized[0], COMPASS[[0, 1, 1, 4, 0, 6]])
    assert loss.shape == ()


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_the_length_of_z_is_irrelevant(length):
    vq = with_codebook(COMPASS).eval()
    assert vq(at(3.0, 40.0, 181.0, length=length))[1].tolist() == [[0, 1, 4]]


def test_ids_equal_the_slow_reference():
    codebook = random_vectors(61, 5, seed=1)
    vq, z = with_codebook(codebook).eval(), random_vectors(3, 37, 5)
    _, ids, _ = vq(z)
    expected = [[reference.nearest(v.tolist(), codebook.tolist()) for v in row] for row in z]
    assert ids.tolist() == expected


def test_vq_ids_to_vectors_to_ids():
    vq = with_codebook(random_vectors(61, 5)).eval()
    ids = torch.randperm(61, generator=torch.Generator().manual_seed(0))[:55].reshape(5, 11)
    vectors = vq.lookup(ids)
    assert vectors.shape == (5, 11, 5)
    quantized, again, _ = vq(vectors)
    assert torch.equal(again, ids)
    torch.testing.assert_close(quantized, vectors)


def test_vq_quantizes_to_what_it_looks_up():
    for vq in (with_codebook(COMPASS).eval(), with_codebook(COMPASS).train()):
        codebook = vq.inner.codebook.clone()
        quantized, ids, _ = vq(random_vectors(3, 7, 2))
        torch.testing.assert_close(quantized, codebook[ids])


def test_the_gradient_goes_straight_through():
    vq, z = with_codebook(COMPASS).train(), random_vectors(3, 7, 2).requires_grad_()
    weight = random_vectors(3, 7, 2, seed=1)
    quantized, _, _ = vq(z)
    (gradient,) = torch.autograd.grad((quantized * weight).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * weight).sum(), z)
    torch.testing.assert_close(gradient, expected)
    assert float(gradient.norm()) > 0.1


def test_the_commitment_loss_pulls_z_towards_its_entry():
    vq, z = with_codebook(COMPASS, commitment=0.7).train(), at(10.0, 100.0).requires_grad_()
    _, ids, loss = vq(z)
    assert ids.tolist() == [[0, 2]]
    expected = 0.7 * float((z - COMPASS[[0, 2]]).square().mean().detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, z)
    moved = F.normalize(z - 0.1 * gradient, dim=-1)
    assert bool(((moved * COMPASS[[0, 2]]).sum(-1) > (z * COMPASS[[0, 2]]).sum(-1)).all())


def test_evaluation_changes_nothing():
    vq = with_codebook(COMPASS).eval()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(random_vectors(3, 7, 2))
    vq.lookup(torch.tensor([[1, 2]]))
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_entries_move_towards_their_vectors():
    vq = with_codebook(COMPASS).train()
    for _ in range(400):
        vq(at(*[number * 45.0 + 10 for number in range(8)]))
    cosines = F.cosine_similarity(vq.inner.codebook, at(*[number * 45.0 + 10 for number in range(8)])[0])
    assert float(cosines.min()) > 0.999


def test_unused_entries_are_replaced():
    torch.manual_seed(0)
    vq = with_codebook(COMPASS).train()
    north_east = at(*torch.linspace(10, 80, 29).tolist())
    assert set(vq(north_east)[1].flatten().tolist()) == {0, 1, 2}
    for _ in range(100):
        vq(north_east)
    angles = torch.atan2(vq.inner.codebook[:, 1], vq.inner.codebook[:, 0]) * 180 / math.pi
    assert bool(((angles > 5) & (angles < 85)).all())
    assert len(vq.eval()(north_east)[1].unique()) >= 6


def test_the_first_batch_fills_the_codebook():
    torch.manual_seed(0)
    vq = VQ(13, 5).train()
    z = random_vectors(7, 29, 5)
    vq(z)
    torch.testing.assert_close(vq.inner.codebook.norm(dim=-1), torch.ones(13))
    assert len(vq.eval()(z)[1].unique()) > 9


def test_autocast_changes_no_entry():
    vq, z = with_codebook(random_vectors(61, 5)).eval(), random_vectors(3, 37, 5)
    _, exact, _ = vq(z)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, ids, loss = vq(z)
    assert torch.equal(ids, exact)
    assert quantized.dtype == loss.dtype == torch.float32
    # Vectors in bf16 are compared in fp32 as well.
    assert torch.equal(vq(z.bfloat16())[1], vq(z.bfloat16().float())[1])


# --- FSQ

LEVELS = (7, 5, 3)


def test_fsq_uses_every_id_and_no_other():
    fsq = FiniteScalar(LEVELS)
    assert fsq.codebook_size == 105
    quantized, ids, loss = fsq(3 * random_vectors(11, 997, 3))
    assert quantized.shape == (11, 997, 3)
    assert ids.shape == (11, 997)
    assert ids.dtype == torch.int64
    assert sorted(ids.unique().tolist()) == list(range(105))
    assert float(loss) == 0
    assert loss.shape == ()


def test_fsq_ids_to_vectors_to_ids():
    fsq = FiniteScalar(LEVELS)
    ids = torch.arange(105).reshape(5, 21)
    vectors = fsq.lookup(ids)
    assert vectors.shape == (5, 21, 3)
    assert len(vectors.flatten(0, 1).unique(dim=0)) == 105
    # Vectors are spaced evenly in [-1, 1]; the quantizer applies tanh before rounding, so atanh leads back to each.
    z = torch.atanh(vectors * 0.999)
    quantized, again, _ = fsq(z)
    assert torch.equal(again, ids)
    torch.testing.assert_close(quantized, vectors)


@pytest.mark.parametrize("levels", [(8, 8, 4, 4), (7, 5, 3), (8, 5)])
def test_fsq_quantizes_to_what_it_looks_up(levels):
    fsq = FiniteScalar(levels)
    quantized, ids, _ = fsq(2 * random_vectors(3, 101, len(levels)))
    torch.testing.assert_close(fsq.lookup(ids), quantized)
    for number, level in enumerate(levels):
        assert len(quantized[..., number].unique()) == level


def test_fsq_gradient_equals_that_of_the_bounded_value():
    z = random_vectors(3, 7, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(FiniteScalar(LEVELS)(z)[0].sum(), z)
    half = torch.tensor([(level - 1) * 1.001 / 2 / (level // 2) for level in LEVELS])
    torch.testing.assert_close(gradient, (1 - torch.tanh(z) ** 2).detach() * half, atol=1e-5, rtol=0)


def test_fsq_stays_in_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        quantized, _, loss = FiniteScalar(LEVELS)(random_vectors(3, 7, 3).bfloat16())
    assert quantized.dtype == loss.dtype == torch.float32


# --- SimVQ


def simvq_with(codebook, transform, commitment=0.25):
    sim = SimVQ(*codebook.shape, commitment)
    sim.load_state_dict({"inner.frozen_codebook": codebook, "inner.code_transform.weight": transform})
    return sim


QUARTER_TURN = torch.tensor([[0.0, -2.0], [2.0, 0.0]])
"""A rotation by 90 degrees and a scaling by 2."""


def test_simvq_finds_the_nearest_entry_of_the_transformed_codebook():
    sim = simvq_with(COMPASS, QUARTER_TURN).eval()
    quantized, ids, loss = sim(at(90.0, 140.0, 271.0, length=2.1))
    assert ids.tolist() == [[0, 1, 4]]
    torch.testing.assert_close(quantized, at(90.0, 135.0, 270.0, length=2.0))
    torch.testing.assert_close(sim.lookup(ids), quantized)
    assert loss.shape == ()


def test_simvq_ids_to_vectors_to_ids():
    sim = SimVQ(61, 5, 0.25).eval()
    ids = torch.randperm(61, generator=torch.Generator().manual_seed(0))[:55].reshape(5, 11)
    vectors = sim.lookup(ids)
    assert vectors.shape == (5, 11, 5)
    assert torch.equal(sim(vectors)[1], ids)


def test_simvq_gradient_goes_straight_through_and_its_loss_moves_the_transform():
    sim, z = simvq_with(COMPASS, QUARTER_TURN, commitment=0.5).train(), at(92.0, length=2.5).requires_grad_()
    quantized, ids, _ = sim(z)
    (gradient,) = torch.autograd.grad((quantized * torch.tensor([3.0, 7.0])).sum(), z)
    torch.testing.assert_close(gradient, torch.tensor([[[3.0, 7.0]]]))
    distance = float((z - at(90.0, length=2.0)).square().mean().detach())
    assert ids.tolist() == [[0]]
    assert float(sim(z)[2].detach()) == pytest.approx(1.5 * distance, rel=1e-5)
    sim(z)[2].backward()
    assert bool(sim.inner.code_transform.weight.grad.any())
    assert [name for name, _ in sim.named_parameters()] == ["inner.code_transform.weight"]


# --- LFQ


def test_an_lfq_id_is_made_of_signs():
    lfq = LookupFree(3, 0.25, (0.1, 0.1)).eval()
    quantized, ids, loss = lfq(torch.tensor([[[-0.1, -5, -2], [-3, 0.2, 7], [0.01, -1, -1], [4, 4, 0.5]]]))
    assert ids.tolist() == [[0, 3, 4, 7]]
    assert ids.dtype == torch.int64
    assert quantized.tolist() == [[[-1, -1, -1], [-1, 1, 1], [1, -1, -1], [1, 1, 1]]]
    assert loss == 0


def test_lfq_ids_to_vectors_to_ids():
    lfq = LookupFree(7, 0.25, (0.1, 0.1)).eval()
    ids = torch.arange(128).reshape(4, 32)
    vectors = lfq.lookup(ids)
    assert vectors.shape == (4, 32, 7)
    assert len(vectors.flatten(0, 1).unique(dim=0)) == 128
    assert torch.equal(lfq(vectors)[1], ids)


def test_lfq_entropies_by_hand():
    # One bit: half of the vectors are 1 with certainty, half are 0 or 1 with equal probability; on average 3 to 1.
    single, varied = entropies(torch.tensor([[100.0], [0.0]]), sharpness=1.0)
    assert float(single) == pytest.approx(math.log(2) / 2)
    assert float(varied) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    single, varied = entropies(torch.tensor([[9.0, 9.0, -9.0], [-9, 9, 9], [9, -9, 9], [-9, -9, -9]]), sharpness=1.0)
    assert float(single) == pytest.approx(0, abs=1e-6)
    assert float(varied) == pytest.approx(math.log(4))


@pytest.mark.parametrize("dim", [1, 4, 7])
def test_lfq_equals_the_library(dim):
    from vector_quantize_pytorch import LFQ

    library = LFQ(
        dim=dim, codebook_size=2**dim, entropy_loss_weight=0.3, diversity_gamma=0.7, commitment_loss_weight=0.2
    ).train()
    quantizer = LookupFree(dim, 0.2, (0.3, 0.3 * 0.7), sharpness=0.6).train()
    z = random_vectors(3, 37, dim).requires_grad_()
    expected, got = library(z, inv_temperature=0.6), quantizer(z)
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0])
    # The library clamps probabilities to at least 1e-5.
    torch.testing.assert_close(got[2], expected[2], rtol=1e-3, atol=1e-5)
    weight = random_vectors(3, 37, dim, seed=1)
    gradients = [torch.autograd.grad((out[0] * weight).mean() + out[2], z)[0] for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    ids = torch.arange(2**dim)[None]
    torch.testing.assert_close(quantizer.lookup(ids), library.indices_to_codes(ids))


# --- Gumbel


def gumbel_with(codebook):
    gumbel = Gumbel(*codebook.shape)
    gumbel.load_state_dict({"codebook": codebook})
    return gumbel


def test_gumbel_in_evaluation_mode_is_the_largest_logit_without_noise():
    gumbel = gumbel_with(COMPASS).eval()
    logits = random_vectors(3, 37, 8)
    quantized, ids, loss = gumbel(logits)
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(quantized, COMPASS[ids])
    assert torch.equal(gumbel(logits)[0], quantized)
    assert loss == 0


def test_gumbel_ids_to_vectors():
    ids = torch.arange(8).reshape(2, 4)
    gumbel = gumbel_with(COMPASS).eval()
    torch.testing.assert_close(gumbel.lookup(ids), COMPASS.reshape(2, 4, 2))
    assert torch.equal(gumbel(F.one_hot(ids, 8).float())[1], ids)


def test_gumbel_samples_from_the_logits_at_low_temperature():
    torch.manual_seed(0)
    gumbel = gumbel_with(torch.eye(3)).train()
    gumbel.temperature.fill_(1e-4)
    probabilities = torch.tensor([0.2, 0.7, 0.1])
    mixed, ids, _ = (value.detach() for value in gumbel(probabilities.log().expand(1, 20011, 3)))
    assert ids.unique().tolist() == [1]
    torch.testing.assert_close(mixed.mean(1)[0], probabilities, atol=0.01, rtol=0)
    assert float(mixed.max(-1).values.mean()) > 0.999  # nearly one-hot


def test_gumbel_mixes_at_high_temperature():
    torch.manual_seed(0)
    gumbel = gumbel_with(torch.eye(3)).train()
    gumbel.temperature.fill_(50)
    mixed = gumbel(random_vectors(3, 37, 3))[0].detach()
    torch.testing.assert_close(mixed.sum(-1), torch.ones(3, 37))
    assert 0.25 < float(mixed.min()) < float(mixed.max()) < 0.5


def test_gumbel_loss_is_the_divergence_from_uniform():
    gumbel = gumbel_with(COMPASS).train()
    gumbel.kl_weight.fill_(0.3)
    assert float(gumbel(torch.full((1, 2, 8), 5.0))[2]) == pytest.approx(0, abs=1e-6)
    certain = torch.full((1, 2, 8), -1e4)
    certain[..., 3] = 0
    assert float(gumbel(certain)[2]) == pytest.approx(0.3 * math.log(8))


def test_gumbel_gives_gradients_to_logits_and_entries():
    gumbel, logits = gumbel_with(COMPASS).train(), random_vectors(3, 7, 8).requires_grad_()
    (gumbel(logits)[0] * random_vectors(3, 7, 2, seed=1)).sum().backward()
    assert bool((logits.grad != 0).all())
    assert bool((gumbel.codebook.grad != 0).all())


# --- all


FITTING = {
    "vq": {},
    "simvq": {},
    "gumbel": {},
    "fsq": {"fsq_levels": LEVELS, "codebook_size": 105, "embed_dim": 3},
    "lfq": {"codebook_size": 64, "embed_dim": 6},
}


def config_for(name, **changes):
    shape = {"codebook_size": 61, "embed_dim": 5, **FITTING[name], **changes}
    return ImageTokenizerConfig(quantizer=name, **shape)


def build(name, commitment=0.3, **changes):
    return build_quantizer(config_for(name, **changes), commitment, (0.2, 0.4))


@pytest.mark.parametrize("name", FITTING)
def test_trained_weights_work_without_the_library(name):
    torch.manual_seed(0)
    learned, width = build(name), encoder_width(config_for(name))
    for seed in range(3):
        learned.train()(random_vectors(3, 97, width, seed=seed))
    trained = build(name, None)
    trained.load_state_dict(learned.eval().state_dict())
    z = random_vectors(3, 137, width, seed=9)
    quantized, ids, loss = trained.eval()(z)
    expected = learned(z)
    assert torch.equal(ids, expected[1])
    assert ids.dtype == torch.int64
    assert len(ids.unique()) > 20
    torch.testing.assert_close(quantized, expected[0])
    torch.testing.assert_close(trained.lookup(ids), learned.lookup(ids))
    torch.testing.assert_close(trained.lookup(ids), quantized)
    assert loss == 0


@pytest.mark.parametrize("name", FITTING)
def test_autocast_changes_no_id_of_any_quantizer(name):
    torch.manual_seed(0)
    quantizer, z = build(name).train(), random_vectors(3, 137, encoder_width(config_for(name))).bfloat16()
    quantizer(z)
    expected = quantizer.eval()(z.float())[1]
    for mode in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            quantized, _, loss = quantizer.train(mode)(z)
        assert quantized.dtype == loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build_filled(name, quantizer)(z)[1], expected)


def build_filled(name, quantizer):
    trained = build(name, None)
    trained.load_state_dict(quantizer.state_dict())
    return trained.eval()


# --- building


def test_quantizers_are_built_by_name():
    kinds = {"vq": VQ, "simvq": SimVQ, "fsq": FiniteScalar, "lfq": LookupFree, "gumbel": Gumbel}
    trained = {**kinds, "vq": FrozenVQ, "simvq": FrozenSimVQ, "fsq": FrozenFiniteScalar}
    for name in FITTING:
        assert type(build(name)) is kinds[name]
        assert type(build(name, None)) is trained[name]
        assert build(name).codebook_size == build(name, None).codebook_size == config_for(name).codebook_size
    assert build("vq").inner.commitment_weight == 0.3
    assert build("simvq").inner.input_to_quantize_commit_loss_weight == 0.3
    assert (build("lfq").commitment, build("lfq").entropy) == (0.3, (0.2, 0.4))
    assert [encoder_width(config_for(name)) for name in FITTING] == [5, 5, 61, 3, 6]


@pytest.mark.parametrize(("codebook_size", "embed_dim"), [(104, 3), (105, 4)])
def test_fsq_levels_must_fit_codebook_size_and_embed_dim(codebook_size, embed_dim):
    with pytest.raises(UserError, match=r"expected codebook_size 105 and embed_dim 3 with fsq_levels \[7, 5, 3\]"):
        build("fsq", codebook_size=codebook_size, embed_dim=embed_dim)


def test_fsq_levels_must_be_three_or_more():
    with pytest.raises(UserError, match=r"expected fsq_levels of at least 3, got \[5, 2\]"):
        build("fsq", fsq_levels=(5, 2), codebook_size=10, embed_dim=2)


@pytest.mark.parametrize(("codebook_size", "embed_dim"), [(61, 6), (64, 5), (64, 7)])
def test_lfq_sizes_must_agree(codebook_size, embed_dim):
    with pytest.raises(UserError, match=f"with lfq, got codebook_size {codebook_size} and embed_dim {embed_dim}; make"):
        build("lfq", codebook_size=codebook_size, embed_dim=embed_dim)


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(UserError, match="expected quantizer vq, fsq, lfq, simvq, gumbel, got 'rq'"):
        build_quantizer(ImageTokenizerConfig(quantizer="rq"), 0.3, (0.1, 0.1))
