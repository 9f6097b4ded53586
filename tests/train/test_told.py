"""What the transformer is told in training only: augmented variants, and the order of the places of a picture."""

import numpy as np
import pytest
import torch
from helpers.models import randomise
from helpers.scenes import make_art
from helpers.training import BatchMaker, cache_of, config_of, interrupt, outcome

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.presets import PresetConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.model.attention import rotary_table
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import ROPE_BASE
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stream_batch import fill_scenes, make_batch, order_of
from dalle_mini_impl.train.whole.measure import measure_stage
from dalle_mini_impl.train.whole.settings import load_settings
from dalle_mini_impl.util.errors import UserError


def make_losses(patch=2, embed_dim=3, **told):
    """A random transformer with its loss, and ids of five pictures."""
    embed = {"embed_positions": 2, "embed_dim": embed_dim} if embed_dim else {}
    layout = StreamConfig(grid=(4, 4), patch=patch, image_vocab=23, text_length=5, text_vocab=17, **embed)
    shape = TransformerConfig(n_layer=2, n_head=2, n_embd=16, patch=patch)
    losses = StreamLoss(randomise(build_transformer(shape, layout), 3), Stream(layout), **told)
    ids = torch.randint(23, (5, 4, 4), generator=torch.Generator().manual_seed(0))
    return losses, losses.stream.join(losses.stream.prefix([[4, 5], [], [6], [7, 8, 9], [3]]), ids)


def batch(home, *settings, step=3, scenes=None):
    maker = BatchMaker(home, *settings)
    parts = (maker.cache, maker.captions, maker.tokenizer, maker.stream, maker.config)
    return maker, make_batch(*parts, step, slice(0, 12), scenes or SceneRows(12))


@pytest.fixture
def told(trained, tmp_path):
    """A copy of `trained` without a run of the transformer, whose cache has its first variants unchanged."""
    home = trained.copy(tmp_path / "home", "transformer")
    home.run("encode", "first_unchanged=true")
    return home


# --- augmentation


@pytest.mark.parametrize("source", [(), ("data.store=''",)])
def test_the_first_variant_is_unchanged_and_the_others_are_as_always(trained, tmp_path, source):
    home = trained.copy(tmp_path / "home", "transformer")
    caches = []
    for settings in (("variants=3",), ("variants=3", "first_unchanged=true"), ("variants=0",)):
        home.run("encode", *settings, *source)
        caches.append(cache_of(home, "train"))
        caches[-1] = (caches[-1].header.first_unchanged, np.array(caches[-1].image_ids))
    (_, augmented), (is_told, first), (_, unchanged) = caches
    assert is_told
    assert not caches[0][0]
    assert np.array_equal(first[:, 0], unchanged[:, 0])
    assert np.array_equal(first[:, 1:], augmented[:, 1:])
    assert not np.array_equal(augmented[:, 0], unchanged[:, 0])


def test_rows_are_told_what_they_are_and_nothing_else_changes(told):
    plain = [batch(told, "id_corruption=0", step=step)[1] for step in range(8)]
    maker, _ = batch(told)
    assert all(one.is_augmented is None for one in plain)
    share = [batch(told, "id_corruption=0", "augmented_share=0.6", step=step)[1] for step in range(8)]
    flags = torch.cat([one.is_augmented for one in share])
    assert 0.4 < flags.float().mean() < 0.8
    variants = torch.from_numpy(maker.cache.image_ids.astype(np.int64))
    first = maker.stream.prefix_length - 1
    for one, other in zip(share, plain, strict=True):
        assert torch.equal(one.targets[:, :first], other.targets[:, :first])
        hidden = [each.inputs[:, first + 1 :] == maker.stream.config.bos_id for each in (one, other)]
        assert torch.equal(*hidden)
        for target, is_augmented in zip(one.targets[:, first:], one.is_augmented, strict=True):
            ids = maker.stream.to_grid(target - maker.stream.image_offset)
            own = variants[:, 1:] if is_augmented else variants[:, :1]
            assert (own == ids).all(-1).all(-1).any()
    scenes = SceneRows(12, 6, make_art(), size=16)
    _, mixed = batch(told, "augmented_share=1", scenes=scenes)
    assert mixed.is_augmented.tolist() == [row not in scenes.split(slice(0, 12))[0] for row in range(12)]


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("embed_dim", [0, 3])
def test_augmented_pictures_have_another_bos_and_others_are_as_without(patch, embed_dim):
    losses, ids = make_losses(patch, embed_dim, tells_augmentation=True)
    embed = torch.randn(5, embed_dim) if embed_dim else None
    flags = torch.tensor([True, False, True, False, False])

    def image_loss(rows, **told):
        return losses(ids[rows, :-1], ids[rows, 1:], image_embed=None if embed is None else embed[rows], **told)[1]

    plain = image_loss(slice(None))
    assert torch.equal(image_loss(slice(None), is_augmented=flags), plain)  # zero at first
    with torch.no_grad():
        losses.augmented.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    both = image_loss(slice(None), is_augmented=flags)
    untold = image_loss(~flags)
    with torch.no_grad():
        losses.transformer.embed.weight[losses.stream.config.bos_id] += losses.augmented
    expected = (2 * image_loss(flags) + 3 * untold) / 5
    assert not torch.isclose(both, plain, rtol=1e-4)
    torch.testing.assert_close(both, expected)


def test_a_run_may_be_told_from_a_step_on(told, trained, monkeypatch, capsys):
    interrupt(told, "transformer", 6, monkeypatch)
    capsys.readouterr()
    told.run("transformer", "--resume", "augmented_share=0.5")
    assert "initial values and without moments: augmented" in capsys.readouterr().out
    parts = [read_part(one.folder / "model", "transformer") for one in (told, trained)]
    assert parts[0].tensors.keys() == parts[1].tensors.keys()
    assert parts[0].config == parts[1].config
    told.run("transformer", "--resume", "augmented_share=0.4", "run.steps=12")
    with pytest.raises(UserError, match=r"got augmented_share 0\.4 -> 0\.0; change"):
        told.run("transformer", "--resume", "run.steps=14")


def test_runs_that_are_told_resume_bit_for_bit(told, tmp_path, monkeypatch):
    settings = ("augmented_share=0.5", "random_order=[0.4, 0.9]")
    broken = told.copy(tmp_path / "broken")
    told.run("transformer", *settings)
    interrupt(broken, "transformer", 6, monkeypatch, *settings)
    with pytest.raises(UserError, match=r"got random_order \[0\.4, 0\.9\] -> \[0\.0, 0\.0\]; change"):
        broken.run("transformer", "--resume", settings[0])
    broken.run("transformer", "--resume", *settings)
    assert outcome(broken, "transformer") == outcome(told, "transformer")


# --- order


def test_orders_are_random_at_first_then_more_and_more_the_streams_own():
    config = TransformerRun(random_order=(0.25, 0.75))
    orders = [order_of(16, config, step) for step in range(1000)]
    assert all(torch.equal(order.sort().values, torch.arange(16)) for order in orders)
    is_random = [not torch.equal(order, torch.arange(16)) for order in orders]
    assert all(is_random[:250])
    assert not any(is_random[750:])
    early, late = np.mean(is_random[250:500]), np.mean(is_random[500:750])
    assert abs(early - 0.75) < 0.1
    assert abs(late - 0.25) < 0.1
    assert len({tuple(order.tolist()) for order in orders[:250]}) > 240
    assert order_of(16, TransformerRun(), 0) is None


def test_batches_have_the_same_ids_in_another_order(trained):
    for settings, step in (("random_order=[1, 1]", 3), ("random_order=[0, 0.01]", 9)):
        maker, plain = batch(trained, step=step)
        _, shuffled = batch(trained, settings, step=step)
        first, order = maker.stream.prefix_length, shuffled.order
        back = order.argsort()
        assert torch.equal(shuffled.targets[:, : first - 1], plain.targets[:, : first - 1])
        assert torch.equal(shuffled.targets[:, first - 1 :][:, back], plain.targets[:, first - 1 :])
        known = order[:-1]  # the last id is no input
        given = plain.inputs[:, first:][:, known.clamp(max=2)]
        assert torch.equal(shuffled.inputs[:, first:][:, known < 3], given[:, known < 3])


def test_scenes_are_encoded_in_the_order_of_their_step(trained):
    scenes = SceneRows(12, 6, make_art(), size=16)
    maker, made = batch(trained, "random_order=[1, 1]", "id_dropout=0", "id_corruption=0", scenes=scenes)
    ids = torch.tensor([[3, 1], [4, 5]]).expand(6, 2, 2)
    filled = fill_scenes(made, type("Encoder", (), {"encode": lambda self, pixels: ids})(), maker.stream)
    first = maker.stream.prefix_length - 1
    expected = torch.tensor([3, 1, 4, 5])[made.order] + maker.stream.image_offset
    assert (filled.targets[made.scene_rows, first:] == expected).all()
    assert (filled.inputs[made.scene_rows, first + 1 :] == expected[:-1]).all()


@pytest.mark.parametrize("patch", [1, 2])
def test_places_keep_their_positions_in_any_order(patch):
    """Compared with a transformer whose positions are themselves in that order."""
    losses, ids = make_losses(patch, tells_order=True)
    stream, first = losses.stream, losses.stream.prefix_length
    plain = losses(ids[:, :-1], ids[:, 1:])[1]
    order = torch.randperm(stream.places, generator=torch.Generator().manual_seed(4))
    shuffled = torch.cat([ids[:, :first], stream.reorder(ids[:, first:], order)], 1)
    loss = losses(shuffled[:, :-1], shuffled[:, 1:], order=order)[1]
    assert not torch.isclose(loss, plain, rtol=1e-4)
    other, _ = make_losses(patch)
    coordinates = torch.cat([stream.coordinates()[:first], stream.coordinates()[first:][order]])
    other.transformer.table = rotary_table(coordinates, other.transformer.head_dim, ROPE_BASE)
    torch.testing.assert_close(loss, other(shuffled[:, :-1], shuffled[:, 1:])[1])
    soft = torch.randint(23, (5, 16, 2)), torch.rand(5, 16, 2).softmax(-1)
    in_order = [stream.reorder(stream.to_order(part.transpose(1, 2).unflatten(2, (4, 4))), order) for part in soft]
    rows = [stream.to_grid(part).flatten(2).transpose(1, 2) for part in in_order]
    torch.testing.assert_close(
        losses(shuffled[:, :-1], shuffled[:, 1:], *soft, order=order)[1],
        other(shuffled[:, :-1], shuffled[:, 1:], *rows)[1],
    )
    with torch.no_grad():
        losses.next_place.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    own = torch.arange(stream.places)
    assert torch.equal(losses(ids[:, :-1], ids[:, 1:], order=own)[1], plain)  # as it draws: told nothing
    assert not torch.isclose(losses(shuffled[:, :-1], shuffled[:, 1:], order=order)[1], loss, rtol=1e-4)
    added = losses._added(None, order)[0]
    assert torch.equal(added[first - 1 :], losses.next_place[order])
    assert not added[: first - 1].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["random_order=[0.6, 0.5]"], r"expected random_order of two shares that do not fall, got 0\.6 and 0\.5"),
        (["random_order=[0.5, 0.5]", "run.minutes=1"], r"expected run\.steps with random_order, got run\.minutes=1"),
        (["random_order=[0.5, 0.5]", "model.attention_masks=[full, row]"], "for random_order, got attention masks row"),
        (["random_order=[0.5, 0.5]", "model.last_attention_mask=conv"], "for random_order, got attention masks conv"),
        (["random_order=[0.5, 0.5]", "model.block={token_shift: true}"], r"for random_order, got block\.token_shift"),
        (["augmented_share=0.5"], "expected a token cache whose first variants are unchanged for augmented_share"),
    ],
)
def test_settings_that_cannot_be_are_refused(home, overrides, message):
    with pytest.raises(UserError, match=message):
        home.run("transformer", *overrides)


def test_a_single_variant_cannot_be_told_apart(home):
    with pytest.raises(UserError, match="expected variants of 2 or more with first_unchanged, got 1"):
        home.run("encode", "variants=1", "first_unchanged=true")
    assert config_of(home, "encode").first_unchanged is False


def test_the_whole_training_measures_and_checks_what_is_told(told, tmp_path):
    config = config_of(told, "transformer", "augmented_share=0.5", "random_order=[0.5, 0.9]", "run.sample_every=0")
    assert measure_stage("transformer", config, 0.01, told.folder).step > 0  # by the clock
    for settings, message in (
        ({"transformer": ["augmented_share=0.5"]}, r"expected encode\.first_unchanged=true with .*0\.5, got false"),
        (
            {"encode": ["first_unchanged=true", "variants=1"]},
            r"expected encode\.variants of 2 or more .* got 1; set it",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_settings(PresetConfig(name="small"), settings)
