import math

import pytest
import reference
import torch
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.image_tokenizer.quantizers import VQ, FiniteScalar, TrainedVQ, build_quantizer

# Eight directions in the plane, 45 degrees apart
COMPASS = torch.tensor([[math.cos(n * math.pi / 4), math.sin(n * math.pi / 4)] for n in range(8)])


def with_codebook(codebook, **settings):
    """A VQ that has the given entries, as if it had learned them."""
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
def test_length_has_no_say(length):
    vq = with_codebook(COMPASS).eval()
    assert vq(at(3.0, 40.0, 181.0, length=length))[1].tolist() == [[0, 1, 4]]


def test_the_reference_agrees():
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
    (ours,) = torch.autograd.grad((quantized * weight).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * weight).sum(), z)
    torch.testing.assert_close(ours, expected)
    assert float(ours.norm()) > 0.1


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


def test_entries_move_towards_what_they_stand_for():
    vq = with_codebook(COMPASS).train()
    for _ in range(400):
        vq(at(*[number * 45.0 + 10 for number in range(8)]))
    cosines = F.cosine_similarity(vq.inner.codebook, at(*[number * 45.0 + 10 for number in range(8)])[0])
    assert float(cosines.min()) > 0.999


def test_an_entry_that_nobody_uses_is_restarted():
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


def test_half_precision_picks_the_same_entries():
    vq, z = with_codebook(random_vectors(61, 5)).eval(), random_vectors(3, 37, 5)
    _, exact, _ = vq(z)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, ids, loss = vq(z)
    assert torch.equal(ids, exact)
    assert quantized.dtype == loss.dtype == torch.float32
    # already rounded vectors are compared in full precision too
    assert torch.equal(vq(z.bfloat16())[1], vq(z.bfloat16().float())[1])


# --- FSQ

LEVELS = (7, 5, 3)


def test_fsq_has_every_id_and_no_other():
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
    # Vectors lie evenly in [-1, 1]; a tanh comes before the rounding, so its inverse leads back to each
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


def test_fsq_gradient_is_that_of_the_bounded_value():
    z = random_vectors(3, 7, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(FiniteScalar(LEVELS)(z)[0].sum(), z)
    half = torch.tensor([(level - 1) * 1.001 / 2 / (level // 2) for level in LEVELS])
    torch.testing.assert_close(gradient, (1 - torch.tanh(z) ** 2).detach() * half, atol=1e-5, rtol=0)


def test_fsq_stays_in_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        quantized, _, loss = FiniteScalar(LEVELS)(random_vectors(3, 7, 3).bfloat16())
    assert quantized.dtype == loss.dtype == torch.float32


# --- building


def test_quantizers_are_built_by_name():
    vq = build_quantizer("vq", 61, 5, (8, 8), 0.3)
    assert isinstance(vq, VQ)
    assert vq.codebook_size == 61
    assert vq.inner.commitment_weight == 0.3
    assert isinstance(build_quantizer("fsq", 105, 3, LEVELS, 0.3), FiniteScalar)


@pytest.mark.parametrize(("codebook_size", "embed_dim"), [(104, 3), (105, 4)])
def test_fsq_levels_must_give_the_numbers(codebook_size, embed_dim):
    with pytest.raises(UserError, match=r"fsq_levels \[7, 5, 3\] give 105 ids of width 3, but codebook_size is"):
        build_quantizer("fsq", codebook_size, embed_dim, LEVELS, 0.3)


def test_a_trained_codebook_needs_no_library():
    torch.manual_seed(0)
    vq = VQ(61, 5)
    for seed in range(3):
        vq.train()(random_vectors(3, 97, 5, seed=seed))
    trained = build_quantizer("vq", 61, 5, (8, 8), None)
    assert isinstance(trained, TrainedVQ)
    trained.load_state_dict(vq.eval().state_dict())
    z = random_vectors(3, 37, 5, seed=9)
    quantized, ids, loss = trained(z)
    theirs = vq(z)
    assert torch.equal(ids, theirs[1])
    assert len(ids.unique()) > 20
    torch.testing.assert_close(quantized, theirs[0])
    torch.testing.assert_close(trained.lookup(ids), vq.lookup(ids))
    assert loss == 0


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(UserError, match="unknown quantizer 'lfq'; expected vq or fsq"):
        build_quantizer("lfq", 61, 5, (), 0.3)
