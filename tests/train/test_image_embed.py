"""Image embeddings in training: stored with the ids, in the batches, in the model, and added to a run without them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.emoji import make_emoji_set
from helpers.scenes import make_art
from helpers.training import BatchMaker, cache_of, config_of, identity, interrupt, outcome, run_sharded, run_stage

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.training import (
    ImageEmbedConfig,
    LoraConfig,
    OptimizerConfig,
    RunConfig,
    TransformerRun,
)
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.model.build import build_transformer, load_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train.encode import NOT_AUGMENTED, variant_pixels
from dalle_mini_impl.train.lora import add_adapters
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.optimizers import build_optimizers
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stream_batch import fill_embeddings, make_batch
from dalle_mini_impl.util.errors import UserError

POSITIONS = "image_embed.positions=2"
D = 7
"""Width of the embeddings of the small scorer."""


@pytest.fixture(scope="module")
def embedded(trained, tmp_path_factory):
    """`trained` without a transformer, whose token cache has embeddings. Tests that change anything work in a copy."""
    home = trained.copy(tmp_path_factory.mktemp("embedded") / "home", "transformer")
    (home.folder / "model" / "transformer.safetensors").unlink()
    home.run("encode", "image_embed=true")
    return home


# --- stored with the ids


def test_the_cache_has_the_embedding_of_each_variant(trained, embedded):
    plain, cache = cache_of(trained, "train"), cache_of(embedded, "train")
    assert np.array_equal(plain.image_ids, cache.image_ids)
    assert cache.header.scorer == identity(embedded, "scorer")
    assert cache.image_embed.shape == (len(cache), 3, D)
    config = config_of(embedded, "encode")
    scorer = Scorer.from_pretrained(embedded.folder / "model")
    rows = np.arange(5)
    for split, variant in (("train", 2), ("validation", 0)):
        store = open_store(config.data, split)
        pixels = variant_pixels(store, rows, variant if split == "train" else NOT_AUGMENTED, config, (16, 16))
        stored = torch.from_numpy(cache_of(embedded, split).image_embed[:5, variant]).float()
        torch.testing.assert_close(stored, scorer.embed_pixels(pixels).detach(), atol=1e-3, rtol=0)


def test_a_source_without_a_store_is_embedded_alike(embedded, tmp_path):
    home = embedded.copy(tmp_path / "home")
    plain = ("image_embed=true", "variants=0")
    caches = []
    for name, settings in (("stored", ()), ("straight", ("data.store=''",))):
        home.run("encode", *plain, *settings, f"out={home.folder / name}")
        caches.append(np.load(home.folder / name / "train/image_embed.npy"))
    assert caches[0].shape == (len(cache_of(embedded, "train")), 1, D)
    order = [np.lexsort(cache[:, 0].T) for cache in caches]
    np.testing.assert_allclose(caches[0][order[0]], caches[1][order[1]], atol=2e-3)


def test_damaged_embeddings_are_refused(embedded, tmp_path):
    home = embedded.copy(tmp_path / "home")
    path = home.folder / "ids/train/image_embed.npy"
    stored = np.load(path)
    for broken in (stored[:-1], stored.astype(np.float32), np.full_like(stored, np.nan)):
        np.save(path, broken)
        with pytest.raises(UserError, match="is damaged or has no train split"):
            cache_of(home, "train")


# --- in the batches


def batches(home, *settings, steps=12, scenes=None):
    """Some batches, with settings."""
    maker = BatchMaker(home, POSITIONS, *settings)
    stream = Stream(StreamConfig(**{**vars(maker.stream.config), "embed_positions": 2, "embed_dim": D}))
    parts = (maker.cache, maker.captions, maker.tokenizer, stream, maker.config)
    scenes = scenes or SceneRows(maker.config.run.batch_size)
    return maker, [make_batch(*parts, step, slice(0, 12), scenes) for step in range(steps)]


@pytest.fixture
def ready(trained, embedded, tmp_path):
    """`embedded` with the transformer of `trained`, whose layout the batches take."""
    home = embedded.copy(tmp_path / "home")
    source = trained.folder / "model" / "transformer.safetensors"
    (home.folder / "model" / "transformer.safetensors").write_bytes(source.read_bytes())
    return home


def test_rows_have_the_embedding_of_their_own_picture_and_are_otherwise_as_without(ready):
    maker, told = batches(ready, "image_embed.dropout=0.4")
    plain = [maker.make(step) for step in range(12)]
    embeds = torch.cat([batch.image_embed for batch in told])
    share = float((embeds == 0).all(1).float().mean())
    assert 0.25 < share < 0.55
    stored = torch.from_numpy(maker.cache.image_embed).float().flatten(0, 1)
    ids = torch.from_numpy(maker.cache.image_ids.astype(np.int64)).flatten(0, 1)
    for batch, (inputs, targets) in zip(told, plain, strict=True):
        assert torch.equal(batch.inputs[:, 2:], inputs)
        assert torch.equal(batch.targets[:, 2:], targets)
        assert (batch.inputs[:, :2] == torch.tensor([0, 1]) + maker.stream.vocab_size).all()
        for embed, target in zip(batch.image_embed, targets, strict=True):
            if embed.any():
                own = (stored == embed).all(1)
                assert own.any()
                first = maker.stream.prefix_length - 1
                drawn = maker.stream.to_grid(target[first:] - maker.stream.image_offset)
                assert (ids[own] == drawn).flatten(1).all(1).any()


def test_captions_and_embeddings_are_dropped_independently(ready):
    settings = ("image_embed.dropout=0.5", "caption_dropout=0.5")
    maker, told = batches(ready, *settings, steps=40)
    first = maker.config.image_embed.positions + 1
    empty = torch.cat([batch.inputs[:, first] >= maker.tokenizer.vocab_size for batch in told])
    dropped = torch.cat([(batch.image_embed == 0).all(1) for batch in told])
    for one in (empty, dropped):
        assert 0.4 < one.float().mean() < 0.6
    assert 0.15 < (empty & dropped).float().mean() < 0.35


def test_other_pictures_of_the_concept_are_taken_where_there_are_some(ready, monkeypatch):
    settings = ("image_embed.dropout=0", "image_embed.other_share=1")
    maker, told = batches(ready, *settings, steps=1)
    assert torch.equal(told[0].image_embed, batches(ready, settings[0], steps=1)[1][0].image_embed)  # all are alone
    cache = type(maker.cache)
    monkeypatch.setattr(cache, "same_concept", lambda self, index: np.array([index, (index + 1) % len(self)]))
    _, told = batches(ready, *settings, steps=6)
    _, own = batches(ready, settings[0], steps=6)
    stored = torch.from_numpy(maker.cache.image_embed).float()
    for one, other in zip(
        torch.cat([b.image_embed for b in own]), torch.cat([b.image_embed for b in told]), strict=True
    ):
        index = int((stored == one).all(2).any(1).nonzero()[0])
        assert (stored[(index + 1) % len(stored)] == other).all(1).any()


class MeanShade:
    """A scorer whose embeddings are the mean shades of the four quarters of a picture, and what these leave."""

    def embed_pixels(self, pixels):
        quarters = (pixels + 2).mean(1).unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4)).flatten(1)
        return torch.nn.functional.pad(quarters, (0, D - 4))


@pytest.mark.parametrize("other", [0, 1])
def test_scenes_are_embedded_in_the_step(ready, other):
    scenes = SceneRows(12, 6, make_art(), "version", 16, 5)
    settings = ("image_embed.dropout=0.3", f"image_embed.other_share={other}")
    _, told = batches(ready, *settings, scenes=scenes)
    seen = different = 0
    for step, raw in enumerate(told):
        assert not raw.image_embed[raw.embed_rows].any()
        batch = fill_embeddings(raw, MeanShade())
        for row in raw.scene_rows.tolist():
            scene = scenes.compose(step, row)
            pixels = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1)[None] / 127.5 - 1
            own = MeanShade().embed_pixels(pixels)[0]
            if batch.image_embed[row].any():
                seen += 1
                different += not torch.allclose(batch.image_embed[row], own)
    assert 0.5 < seen / (12 * 6) < 0.9
    assert (different > 0) == (other > 0)


def test_the_art_of_another_vendor_draws_the_same_scene(trained):
    scenes = SceneRows(12, 6, make_art(), "version", 32, 5)
    scene = next(one for one in (scenes.compose(step, 1) for step in range(50)) if one.plan.task == "single")
    random = np.random.default_rng(0)
    assert scenes.drawn_by_another(scene, random).tobytes() != scene.image.tobytes()
    alone = SceneRows(12, 6, make_art_of_one(), "version", 32, 5)
    scene = alone.compose(0, 1)
    assert alone.drawn_by_another(scene, random) is scene.image


def make_art_of_one():
    from helpers.scenes import SHADES, entry

    return make_art(*[entry(name, "x") for name in SHADES])


# --- in the model


@pytest.fixture(scope="module")
def told(embedded, tmp_path_factory):
    """A home with a transformer that was trained with image embeddings."""
    home = embedded.copy(tmp_path_factory.mktemp("told") / "home")
    home.run("transformer", POSITIONS)
    return home


def test_a_transformer_records_the_scorer_and_draws_by_embeddings(told):
    part = read_part(told.folder / "model", "transformer")
    assert part.trained_with["scorer"] == identity(told, "scorer")
    assert (part.config["stream"]["embed_positions"], part.config["stream"]["embed_dim"]) == (2, D)
    assert part.tensors["image_prefix.project.weight"].abs().max() > 0
    figures = [line for line in told.log("transformer") if "validation_embed" in line]
    assert len(figures) == 2
    assert figures[-1]["validation_embed"] != figures[-1]["validation_image"]
    dalle = DalleMini.from_pretrained(told.folder / "model", "cpu")
    embed = torch.from_numpy(cache_of(told, "validation").image_embed[0, 0].astype(np.float32))
    assert len(dalle.generate("", 4, 2, image_embed=embed)) == 2


def test_another_scorer_is_refused(told, trained, tmp_path):
    home = told.copy(tmp_path / "home", "scorer")
    with pytest.raises(UserError, match=r"without parts that need its scorer .*, got transformer; move them away"):
        home.run("scorer", "run.seed=1")
    part = home.folder / "model" / "scorer.safetensors"
    transformer = home.folder / "model" / "transformer.safetensors"
    content = transformer.read_bytes()
    transformer.unlink()
    part.unlink()
    home.run("scorer", "run.seed=1")
    transformer.write_bytes(content)
    with pytest.raises(
        UserError, match=r"was trained with scorer .*, but .* was given; use the scorer it was trained wi"
    ):
        load_transformer(home.folder / "model")
    with pytest.raises(UserError, match=r"expected image embeddings of scorer .*, which the model has, got those of"):
        home.run("transformer", POSITIONS)
    part.unlink()
    load_transformer(home.folder / "model")
    with pytest.raises(UserError, match=r"has no scorer.safetensors; train that part first"):
        home.run("transformer", POSITIONS)


def test_a_cache_without_embeddings_is_refused(home):
    with pytest.raises(
        UserError, match=r"expected a token cache with image embeddings .*; encode again with image_embed"
    ):
        home.run("transformer", POSITIONS)


def test_embeddings_of_others_need_concepts(embedded, tmp_path):
    home = embedded.copy(tmp_path / "home")
    with pytest.raises(UserError, match=r"expected pictures with the same detail concept in .*, got none; set it to 0"):
        home.run("transformer", POSITIONS, "image_embed.other_share=0.5")


@pytest.mark.parametrize("settings", [(), ("run.precision=bf16", "run.accumulation=2")])
def test_a_run_with_scenes_resumes_bit_for_bit(embedded, tmp_path, monkeypatch, settings):
    (tmp_path / "emoji").mkdir()
    make_emoji_set(tmp_path / "emoji")
    scenes = (f"scenes.store={tmp_path}/emoji-store", "scenes.share=0.5")
    data = config_of(embedded, "encode", f"data.source={tmp_path}/emoji", f"data.store={tmp_path}/emoji-store").data
    open_store(data, "train")
    settings = (POSITIONS, "image_embed.dropout=0.3", *scenes, *settings)
    whole, broken = (embedded.copy(tmp_path / name) for name in ("whole", "broken"))
    whole.run("transformer", *settings)
    interrupt(broken, "transformer", 6, monkeypatch, *settings)
    broken.run("transformer", "--resume", *settings)
    assert outcome(broken, "transformer") == outcome(whole, "transformer")


def test_training_starts_from_a_transformer_without_and_with_embeddings(embedded, told, trained, tmp_path, capsys):
    before = read_part(told.folder / "model", "transformer").tensors
    for source, line in ((trained, "image embeddings learned anew"), (told, "image embeddings kept")):
        home = embedded.copy(tmp_path / line.split()[-1])
        once = ("run.steps=1", "optimizer.learning_rate=0", "optimizer.muon_learning_rate=0", "run.ema=0")
        home.run("transformer", POSITIONS, f"start_from={source.folder}/model", *once)
        assert line in capsys.readouterr().out
        old = read_part(source.folder / "model", "transformer").tensors
        new = read_part(home.folder / "model", "transformer").tensors
        rows = len(old["embed.weight"])
        assert torch.equal(new["embed.weight"][:rows], old["embed.weight"])
        assert torch.equal(new["blocks.1.attention.qkv.weight"], old["blocks.1.attention.qkv.weight"])
        if source is told:
            assert torch.equal(new["image_prefix.project.weight"], before["image_prefix.project.weight"])
        else:
            assert len(new["embed.weight"]) == rows + 2
            assert not new["image_prefix.project.weight"].any()
    home = embedded.copy(tmp_path / "without")
    home.run("transformer", f"start_from={told.folder}/model", *once)
    assert "image embeddings" not in capsys.readouterr().out
    new = read_part(home.folder / "model", "transformer").tensors
    assert torch.equal(new["embed.weight"], before["embed.weight"][:-2])


def test_adapters_leave_what_embeddings_need_to_be_learned():
    pytest.importorskip("peft")
    one = build(3)
    add_adapters(one.losses, TransformerRun(start_from="another", lora=LoraConfig(rank=2)))
    learned = {name for name, weight in one.losses.named_parameters() if weight.requires_grad}
    assert {"transformer.image_prefix.project.weight", "transformer.embed.weight"} <= learned
    assert "transformer.blocks.0.attention.qkv.base_layer.weight" not in learned


# --- added to a run without them


def build(positions, position="rope", patch=2, seed=0, text_length=5, augmented_share=0.0, **changes):
    """All that a state holds, of a small run with so many positions."""
    torch.manual_seed(seed)
    layout = StreamConfig(
        text_length=text_length, text_vocab=17, grid=(2, 4), image_vocab=11, bos_id=1, patch=patch,
        embed_positions=positions, embed_dim=D if positions else 0,
    )  # fmt: skip
    config = TransformerConfig(
        **{"n_layer": 2, "n_head": 2, "n_embd": 16, "position": position, "patch": patch, **changes}
    )
    losses = StreamLoss(build_transformer(config, layout), Stream(layout), augmented_share > 0)
    optimizers = build_optimizers(losses, OptimizerConfig(muon_learning_rate=0.02, muon_every=1))
    embed = ImageEmbedConfig(positions=positions)
    run = TransformerRun(model=config, image_embed=embed, augmented_share=augmented_share)
    record = make_record(run, {"image_tokenizer": "a", **({"scorer": "b"} if positions else {})})
    return SimpleNamespace(losses=losses, optimizers=optimizers, ema=Ema(losses, 0.9), record=record)


def train_steps(one, steps=3, embeds=None, is_augmented=None):
    """Steps on random ids, the same for every model."""
    generator = torch.Generator().manual_seed(5)
    stream = one.losses.stream
    for step in range(steps):
        ids = torch.randint(11, (4, 2, 4), generator=generator)
        ids = stream.join(stream.prefix([[3, 4], [], [5], [6, 7, 8]]), ids)
        sum(one.losses(ids[:, :-1], ids[:, 1:], image_embed=embeds, is_augmented=is_augmented)).backward()
        for optimizer in one.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        one.ema.update(one.losses, step)


def accelerator():
    return SimpleNamespace(
        is_main_process=True, process_index=0, device=torch.device("cpu"), scaler=None,
        unwrap_model=lambda model: model, wait_for_everyone=lambda: None, reduce=lambda value, kind: value,
        gather_for_metrics=lambda own, use_gather_object: own,
    )  # fmt: skip


def save(one, folder):
    run = RunConfig(state_dir=str(folder))
    save_state(accelerator(), run, 2, one.losses, one.optimizers, one.ema, one.record)


def load(one, folder):
    run = RunConfig(state_dir=str(folder))
    return load_state(accelerator(), run, one.losses, one.optimizers, one.ema, one.record)


def moments_of(one):
    """Moments by weight and name."""
    names = {parameter: name for name, parameter in one.losses.named_parameters()}
    return {
        f"{names[parameter]} {name}": value
        for optimizer in one.optimizers
        for parameter, moments in optimizer.state.items()
        for name, value in moments.items()
    }


@pytest.mark.parametrize("position", ["rope", "learned", "absolute"])
@pytest.mark.parametrize("patch", [1, 2])
def test_positions_are_added_to_a_state_without_them(tmp_path, capsys, position, patch):
    old = build(0, position, patch)
    train_steps(old)
    save(old, tmp_path)
    new, fresh = build(3, position, patch, seed=9), build(3, position, patch, seed=9)
    assert load(new, tmp_path) == 3
    output = capsys.readouterr().out
    grown = {"embed.weight", "head.weight"}
    grown |= {name for name in old.losses.transformer.state_dict() if name.startswith("positions.")}
    tables = (
        (old.losses.state_dict(), new.losses.state_dict(), fresh.losses.state_dict()),
        (old.ema.state, new.ema.state, fresh.ema.state),
        (moments_of(old), moments_of(new), None),
    )
    for before, after, first in tables:
        for name, value in before.items():
            assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value), name
            weight, _, moment = name.removeprefix("transformer.").partition(" ")
            if weight in grown and value.ndim:
                assert len(after[name]) == len(value) + 3
                rest = after[name][len(value) :]
                assert torch.equal(rest, torch.zeros_like(rest) if moment else first[name][len(value) :])
            else:
                assert after[name].shape == value.shape
        added = after.keys() - before.keys()
        assert added == ({"transformer.image_prefix.project.weight"} if first is not None else set())
        for name in added:
            assert torch.equal(after[name], first[name])
    for name in grown:
        assert f"3 rows of transformer.{name}" in output
    assert "new in the model, with initial values and without moments: " in output
    assert "transformer.image_prefix.project.weight" in output
    assert "image_embed.positions 0 -> 3" in output
    train_steps(new, embeds=new.losses.stream.embeddings([[1.0] * D] * 4))
    save(new, tmp_path)
    again = build(3, position, patch, seed=9)
    assert load(again, tmp_path) == 3
    assert all(torch.equal(value, again.losses.state_dict()[name]) for name, value in new.losses.state_dict().items())


@pytest.mark.parametrize(("positions", "share"), [(3, 0.0), (0, 0.5)])
def test_embeddings_and_augmentation_are_added_to_a_run_with_the_other(tmp_path, capsys, positions, share):
    old = build(positions, augmented_share=share)
    told = torch.tensor([True, False, True, False]) if share else None
    train_steps(old, embeds=old.losses.stream.embeddings([[1.0] * D] * 4) if positions else None, is_augmented=told)
    save(old, tmp_path)
    new = build(3, seed=9, augmented_share=0.5)
    assert load(new, tmp_path) == 3
    added = {"augmented"} if positions else {"transformer.image_prefix.project.weight"}
    assert new.losses.state_dict().keys() - old.losses.state_dict().keys() == added
    assert all(name in capsys.readouterr().out for name in added)
    before, after = moments_of(old), moments_of(new)
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name][: len(value)] if value.ndim else after[name], value) for name, value in before.items()
    )


def test_only_positions_may_be_added(tmp_path):
    for old, new, message in (
        (build(0), build(3, n_layer=3), "expected the settings .* got model.n_layer 2 -> 3"),
        (build(0), build(3, patch=1), "got model.patch 2 -> 1"),
        (build(0), build(3, text_length=6), "is the state of another model or optimizer"),
        (build(3), build(2), "got image_embed.positions 3 -> 2"),
        (build(3), build(0), "got image_embed.positions 3 -> 0"),
    ):
        train_steps(old)
        save(old, tmp_path)
        with pytest.raises(UserError, match=message):
            load(new, tmp_path)
    other = build(0)
    other.record.parts["image_tokenizer"] = "other"
    save(other, tmp_path)
    with pytest.raises(UserError, match=r"expected image_tokenizer other, with which .* was trained, got a"):
        load(build(3), tmp_path)


def test_positions_are_not_added_to_a_sharded_state(embedded, tmp_path):
    home = embedded.copy(tmp_path / "home")
    run_sharded(run_stage, "transformer", home.arguments("transformer", "run.steps=2"))
    with pytest.raises(
        UserError, match=r"expected a state that is not sharded to add image_embed\.positions to, .* resume without"
    ):
        home.run("transformer", "--resume", POSITIONS)


def test_a_run_goes_on_with_embeddings(embedded, tmp_path, monkeypatch, capsys):
    home = embedded.copy(tmp_path / "home")
    interrupt(home, "transformer", 6, monkeypatch)
    home.run("transformer", "--resume", POSITIONS)
    output = capsys.readouterr().out
    assert "2 rows of transformer.embed.weight" in output
    assert [line["step"] for line in home.log("transformer") if "image" in line] == list(range(10))
    part = read_part(home.folder / "model", "transformer")
    assert part.config["stream"]["embed_positions"] == 2
    assert part.tensors["image_prefix.project.weight"].abs().max() > 0
