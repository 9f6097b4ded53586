"""Image ids that are drawn from the image tokenizer's distribution, and losses against it."""

import math

import numpy as np
import pytest
import torch
from helpers.models import IMAGE_TOKENIZER, make_image_tokenizer, make_transformer
from helpers.training import BatchMaker, cache_of, config_of, interrupt, outcome
from torch.nn import functional as F

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import CacheHeader, TokenCache
from dalle_mini_impl.model.foreign.quantizers import Logits, Nearest
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.model.quantizers.frozen import FrozenFiniteScalar, FrozenSimVQ, FrozenVQ
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.model.quantizers.lfq import LookupFree
from dalle_mini_impl.train.losses.image_targets import sample_ids, soft_cross_entropy
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.util.errors import UserError

SOFT = ("soft_ids=5", "soft_temperature=0.3")


def distribution(seed=0, places=(3, 5), count=7, ids=61):
    random = np.random.default_rng(seed)
    likely = np.stack([random.permutation(ids)[:count] for _ in range(math.prod(places))])
    return likely.reshape(*places, count), random.dirichlet(np.ones(count), places).astype(np.float32)


# --- drawing


def test_ids_are_drawn_as_often_as_they_are_likely():
    likely, shares = distribution()
    random, count = np.random.default_rng(1), 4001
    drawn = np.stack([sample_ids(likely, shares, random) for _ in range(count)])
    often = (drawn[..., None] == likely).mean(0)
    assert often.sum(-1) == pytest.approx(np.ones((3, 5)))
    assert np.abs(often - shares).max() < 4 * math.sqrt(0.25 / count)


def test_certain_ids_are_always_drawn_and_impossible_ones_never():
    likely = np.array([[[9, 4, 2], [3, 8, 1]]])
    shares = np.array([[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]], dtype=np.float32)
    random = np.random.default_rng(2)
    drawn = np.stack([sample_ids(likely, shares, random) for _ in range(200)])[:, 0]
    assert set(drawn[:, 0]) == {4}
    assert set(drawn[:, 1]) == {1, 3}


# --- loss


def tensors(seed=0):
    likely, shares = distribution(seed)
    logits = torch.randn(3, 5, 61, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits, torch.from_numpy(likely), torch.from_numpy(shares).double()


def test_the_soft_loss_by_hand():
    logits, likely, shares = tensors()
    total = 0.0
    for row in range(3):
        for column in range(5):
            scores = logits[row, column].tolist()
            norm = math.log(sum(math.exp(score) for score in scores))
            total += sum(
                float(share) * (norm - scores[int(one)])
                for one, share in zip(likely[row, column], shares[row, column], strict=True)
            )
    assert float(soft_cross_entropy(logits, likely, shares)) == pytest.approx(total / 15, rel=1e-6)


def test_the_soft_loss_is_the_expected_loss_of_sampled_ids():
    logits, likely, shares = tensors(3)
    costs = torch.stack(
        [F.cross_entropy(logits.flatten(0, 1), likely[..., n].flatten(), reduction="none") for n in range(7)], -1
    )
    expected = (costs * shares.flatten(0, 1)).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, likely, shares), expected, rtol=1e-6, atol=0)


def test_the_gradient_of_the_soft_loss_is_prediction_less_distribution():
    logits, likely, shares = tensors(5)
    logits.requires_grad_()
    soft_cross_entropy(logits, likely, shares).backward()
    wanted = torch.zeros(3, 5, 61, dtype=torch.float64).scatter_(-1, likely, shares)
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - wanted) / 15, atol=1e-7, rtol=0)


def test_the_soft_loss_of_one_certain_id_is_cross_entropy():
    model, stream = make_transformer()
    image_ids = torch.randint(0, 61, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    ids = stream.join(stream.prefix([[3, 5], [7]]), image_ids)
    other_ids = torch.full((2, 15, 1), 17)
    likely = torch.cat([image_ids.flatten(1)[..., None], other_ids], -1)
    shares = torch.tensor([1.0, 0.0]).expand(2, 15, 2)
    loss = StreamLoss(model, stream)
    with torch.inference_mode():
        hard, soft = loss(ids[:, :-1], ids[:, 1:]), loss(ids[:, :-1], ids[:, 1:], likely, shares)
        assert list(map(float, soft)) == pytest.approx(list(map(float, hard)), rel=1e-6)
        half = loss(ids[:, :-1], ids[:, 1:], likely, torch.tensor([0.5, 0.5]).expand(2, 15, 2))
    assert half[0] == hard[0]
    assert float(half[1]) != pytest.approx(float(hard[1]), rel=1e-3)


# --- the distribution


def randomised(quantizer):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            if value.is_floating_point() and name != "temperature":
                value.copy_(torch.randn(value.shape, generator=generator))
    return quantizer.eval()


def squared_distances(quantizer, z):
    return (z[:, None] - quantizer.lookup(torch.arange(quantizer.codebook_size))).square().sum(-1)


def test_scores_are_minus_squared_distances():
    z = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    for quantizer in (randomised(FrozenSimVQ(37, 5)), randomised(Nearest(37, 5, cosine=False))):
        torch.testing.assert_close(quantizer.scores(z), -squared_distances(quantizer, z), rtol=1e-4, atol=1e-4)


def test_scores_of_vectors_that_are_compared_by_angle():
    z = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    vq = randomised(FrozenVQ(37, 5))
    vq.inner._codebook.embed.copy_(F.normalize(vq.inner._codebook.embed, dim=-1))
    expected = -squared_distances(vq, F.normalize(z, dim=-1))
    torch.testing.assert_close(vq.scores(z) - 2, expected)
    nearest = randomised(Nearest(37, 5, cosine=True))
    torch.testing.assert_close(nearest.scores(z), -squared_distances(nearest, F.normalize(z, dim=-1)))


def test_scores_of_rounded_numbers():
    # Levels are -2 … 2 and -2 … 1; zeros lie at the middle one.
    quantizer = FrozenFiniteScalar((5, 4))
    scores = quantizer.scores(torch.zeros(1, 2))[0]
    expected = [-float((n % 5 - 2) ** 2 + (n // 5 - 2) ** 2) for n in range(20)]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


def test_scores_of_signs_are_the_probabilities_that_they_were_learned_with():
    z = torch.tensor([[0.3, -0.2, 0.7]])
    found = LookupFree(3, 0.25, (0.1, 0.1)).scores(z).softmax(-1)[0]
    first, second, third = torch.sigmoid(4 * z[0]).tolist()
    assert float(found[0b101]) == pytest.approx(first * (1 - second) * third)
    assert float(found[0b010]) == pytest.approx((1 - first) * second * (1 - third))


def test_scores_of_logits_are_the_logits():
    z = torch.randn(3, 37)
    assert torch.equal(Gumbel(37, 5).scores(z), z)
    quantizer = randomised(Logits(5, 37, torch.nn.Embedding(37, 7)))
    z = torch.randn(3, 5)
    torch.testing.assert_close(quantizer.scores(z), quantizer.proj(z[..., None, None])[..., 0, 0])


QUANTIZERS = {
    "vq": {},
    "simvq": {"quantizer": "simvq"},
    "fsq": {"quantizer": "fsq", "fsq_levels": (3, 4, 5), "codebook_size": 60, "embed_dim": 3},
    "lfq": {"quantizer": "lfq", "codebook_size": 64, "embed_dim": 6},
    "gumbel": {"quantizer": "gumbel"},
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_likeliest_id_is_the_one_that_encoding_chooses(name, monkeypatch):
    config = ImageTokenizerConfig(**{**vars(IMAGE_TOKENIZER), **QUANTIZERS[name]})
    tokenizer = ImageTokenizer(config, commitment=None)
    tokenizer.load_state_dict(make_image_tokenizer(config).state_dict())
    tokenizer.eval()
    pixels = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids, likely, shares = tokenizer.encode_soft(pixels, 7, 10.0)
    assert likely.shape == shares.shape == (2, 3, 5, 7)
    assert torch.equal(ids, tokenizer.encode(pixels))
    assert torch.equal(likely[..., 0], ids)
    assert (shares.diff(dim=-1) <= 0).all()
    assert 0 < float(shares.sum(-1).min()) <= float(shares.sum(-1).max()) < 1
    whole = tokenizer.encode_soft(pixels, config.codebook_size, 10.0)[2]
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 3, 5))
    assert torch.equal(whole[..., :7], shares)
    flatter = tokenizer.encode_soft(pixels, 7, 100.0)[2]
    assert (flatter[..., 0] < shares[..., 0]).all()
    monkeypatch.setattr("dalle_mini_impl.model.image_tokenizer.CELLS_AT_A_TIME", 11)  # 30 cells in three parts
    torch.testing.assert_close(tokenizer.encode_soft(pixels, 7, 10.0), (ids, likely, shares))


# --- the cache


@pytest.fixture(scope="module")
def soft(trained, tmp_path_factory):
    """The trained home, whose cache also has the likeliest ids."""
    home = trained.copy(tmp_path_factory.mktemp("soft") / "home", "ids", "transformer")
    home.run("encode", *SOFT)
    return home


def test_a_soft_cache_has_the_same_ids_and_more(trained, soft):
    tokenizer, _ = load_image_tokenizer(soft.folder / "model")
    for split in ("train", "validation"):
        old, new = cache_of(trained, split), cache_of(soft, split)
        assert (old.image_ids == new.image_ids).all()
        assert old.likely_ids is old.probabilities is None
        assert new.likely_ids.shape == new.probabilities.shape == (*new.image_ids.shape, 5)
        assert (new.likely_ids.dtype, new.probabilities.dtype) == (np.uint16, np.float16)
        assert isinstance(new.likely_ids.base, np.memmap)
        assert isinstance(new.probabilities.base, np.memmap)
        assert (new.likely_ids[..., 0] == new.image_ids).all()
    store = open_store(config_of(soft, "encode").data, "validation")
    _, likely, shares = tokenizer.encode_soft(pixels_on_white(store.take(np.arange(3)), 16), 5, 0.3)
    assert (new.likely_ids[:3, 0] == likely.numpy()).all()
    np.testing.assert_allclose(new.probabilities[:3, 0], shares.numpy(), rtol=1e-3, atol=1e-6)


def test_encoding_reports_the_probabilities_of_the_ids(soft, tmp_path, capsys):
    home = soft.copy(tmp_path / "home", "ids")
    home.run("encode", *SOFT)
    shares = cache_of(home, "train").probabilities.astype(np.float64)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"of 5 ids stored for each cell, the likeliest has a probability of {shares[..., 0].mean():.3f} on average, "
        f"all together {shares.sum(-1).mean():.3f}"
    )


def test_probabilities_sum_to_one(soft):
    cache = cache_of(soft, "train")
    assert not np.allclose(cache.probabilities.sum(-1, dtype=np.float32), 1)
    likely, shares = cache.distribution(4, 2)
    assert (likely == cache.likely_ids[4, 2]).all()
    assert likely.dtype == np.int64
    assert shares.sum(-1) == pytest.approx(np.ones((2, 2)), abs=1e-6)
    ratio = shares[..., 1] / shares[..., 0]
    stored = cache.probabilities[4, 2].astype(np.float32)
    assert ratio == pytest.approx(stored[..., 1] / stored[..., 0], rel=1e-6)


def test_a_cache_of_chosen_ids_alone_has_no_distribution():
    cache = TokenCache(CacheHeader("x", 13, (2, 2)), np.zeros((2, 1, 2, 2), np.uint16), [None, None])
    with pytest.raises(UserError, match=r"has only the chosen ids, .* encode again with soft_ids=16"):
        cache.distribution(0, 0)


def test_a_cache_without_all_of_its_files_is_damaged(soft, tmp_path):
    home = soft.copy(tmp_path / "home")
    (home.folder / "ids" / "train" / "shares.npy").unlink()
    with pytest.raises(UserError, match="is damaged"):
        cache_of(home, "train")


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("encode", "soft_ids=14", "soft_ids is 14; expected 0 to 13, the image tokenizer's ids"),
        ("encode", "soft_ids=-1", "expected soft_ids of at least 0, got -1; change it"),
        ("encode", "soft_temperature=0", "expected soft_temperature of more than 0, got 0.0; change it"),
        ("transformer", "image_targets=hard", "image_targets is 'hard'; expected argmax, sampled, soft"),
        ("transformer", "image_targets=soft", "the token cache has only the chosen ids"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_lost(trained, tmp_path, stage, override, message):
    home = trained.copy(tmp_path / "home")
    with pytest.raises(UserError, match=message):
        home.run(stage, override)
    assert outcome(home, "transformer") == outcome(trained, "transformer")
    assert (home.folder / "transformer" / "state.pt").is_file()


# --- batches

PLAIN = ("id_corruption=0", "id_dropout=0", "caption_dropout=0", "bpe_dropout=0.3")


def batches(home, targets, *overrides):
    drawn = BatchMaker(home, f"image_targets={targets}", *overrides)
    return drawn, [drawn.make(step) for step in range(200)]


def test_a_soft_cache_changes_nothing_for_chosen_ids(trained, soft):
    for one, other in zip(batches(trained, "argmax")[1], batches(soft, "argmax")[1], strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("targets", ["sampled", "soft"])
def test_sampled_targets_change_image_ids_only(soft, targets):
    _, chosen = batches(soft, "argmax", *PLAIN)
    _, drawn = batches(soft, targets, *PLAIN)
    chosen_ids, drawn_ids = (torch.cat([batch[1] for batch in some]) for some in (chosen, drawn))
    assert torch.equal(chosen_ids[:, :11], drawn_ids[:, :11])
    assert 0.1 < float((chosen_ids != drawn_ids)[:, 11:].float().mean()) < 0.9
    for inputs, wanted, *_ in drawn:  # what is seen is what was to be foreseen one place before
        assert torch.equal(inputs[:, 1:], wanted[:, :-1])


def test_ids_of_batches_are_drawn_as_often_as_they_are_likely(soft):
    drawer, drawn = batches(soft, "sampled", *PLAIN, "run.batch_size=31")
    _, distributions = batches(soft, "soft", *PLAIN, "run.batch_size=31")
    often = torch.zeros(5)
    for (_, wanted), (_, _, likely, shares) in zip(drawn, distributions, strict=True):
        ids = wanted[:, 11:, None] - drawer.stream.image_offset
        often += ((ids == likely).float() - shares).sum((0, 1))
    count = 200 * 31 * 4
    assert float(often.abs().max()) / count < 4 * math.sqrt(0.25 / count)


def test_soft_batches_bring_the_distributions_of_their_pictures(soft):
    drawer, drawn = batches(soft, "soft", *PLAIN)
    cache = drawer.cache
    known = {
        cache.likely_ids[row, variant].tobytes(): cache.distribution(row, variant)[1]
        for row in range(len(cache))
        for variant in range(3)
    }
    for _, _, likely, shares in drawn[:5]:
        assert likely.shape == shares.shape == (12, 4, 5)
        for ids, found in zip(likely, shares, strict=True):
            expected = known[ids.numpy().astype(np.uint16).tobytes()]
            assert found.numpy() == pytest.approx(expected.reshape(4, 5), abs=0.3)
            assert found.sum(-1) == pytest.approx(torch.ones(4), abs=1e-6)


def test_rows_of_a_soft_batch_equal_those_of_the_whole_batch(soft):
    drawer = BatchMaker(soft, "image_targets=soft")
    whole = drawer.make()
    for rows in (slice(0, 5), slice(5, 12)):
        for part, all_rows in zip(drawer.make(rows=rows), whole, strict=True):
            assert torch.equal(part, all_rows[rows])


# --- runs


@pytest.mark.parametrize("targets", ["sampled", "soft"])
def test_runs_resume_bit_for_bit(soft, tmp_path, monkeypatch, targets):
    settings = (f"image_targets={targets}", "run.sample_every=0")
    whole, broken = (soft.copy(tmp_path / name) for name in ("whole", "broken"))
    for home in (whole, broken):
        (home.folder / "model" / "transformer.safetensors").unlink()
    whole.run("transformer", *settings)
    interrupt(broken, "transformer", 6, monkeypatch, *settings)
    broken.run("transformer", "--resume", *settings)
    assert outcome(broken, "transformer") == outcome(whole, "transformer")
    losses = [line["image"] for line in whole.log("transformer") if "image" in line]
    assert losses[0] == pytest.approx(math.log(13), rel=1e-4)
    assert losses[-1] < losses[0]


def test_a_run_on_chosen_ids_is_the_same_with_a_soft_cache(trained, soft, tmp_path):
    home = soft.copy(tmp_path / "home")
    home.run("transformer")
    assert outcome(home, "transformer") == outcome(trained, "transformer")
