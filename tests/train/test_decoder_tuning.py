"""Training the decoder of an image tokenizer alone: what stays, what the decoder sees, and what is refused."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import randomise
from helpers.scenes import make_art
from helpers.training import cache_of, config_of, identity, interrupt, outcome

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.model.build import build_transformer, load_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.next_ids import RowSettings, next_ids
from dalle_mini_impl.train.decoder_tuning import DecoderTuning, Drawer, IdChanges, open_tuning
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.shared.start import open_start
from dalle_mini_impl.util.errors import UserError


def settings(home, *others):
    """Overrides that tune the decoder of a home's model in place."""
    start = f"start_from={home.folder}/model"
    return (start, "tune.decoder_only=true", "tune.drawn_share=0.8", "tune.replaced_share=0.2", *others)


@pytest.fixture
def whole(trained, tmp_path):
    """A copy of `trained` in which the image tokenizer has not been run."""
    return trained.copy(tmp_path / "home")


def tuning_of(home, *others, drawer=None, tokenizer=None):
    config = config_of(home, "image_tokenizer", *settings(home, *others))
    tokenizer = tokenizer or load_image_tokenizer(home.folder / "model")[0]
    return DecoderTuning(config, tokenizer, open_store(config.data, "train"), drawer, {})


def drawer_of(home):
    transformer, layout = load_transformer(home.folder / "model")
    words = load_text_tokenizer(home.folder / "model")
    return Drawer(transformer, Stream(layout), words, SamplingConfig(temperature=0.8, top_k=7))


# --- what stays


def test_the_ids_of_every_picture_stay_and_the_other_parts_remain_valid(whole, trained, tmp_path):
    model = whole.folder / "model"
    whole.run("image_tokenizer", *settings(whole))
    old, new = (read_part(one.folder / "model", "image_tokenizer") for one in (trained, whole))
    assert new.identity != old.identity
    assert new.trained_with == {"start_from": old.identity, "image_ids": old.identity}
    assert new.image_ids == old.image_ids == old.identity
    changed = {name.split(".")[0] for name in old.tensors if not torch.equal(old.tensors[name], new.tensors[name])}
    assert changed == {"decoder"}
    store = open_store(config_of(trained, "image_tokenizer").data, "train")
    pixels = pixels_on_white(store.take(np.arange(len(store))), 16)
    ids = [load_image_tokenizer(one.folder / "model")[0].encode(pixels) for one in (trained, whole)]
    assert torch.equal(*ids)
    before = (whole.folder / "ids/train/image_ids.npy").read_bytes()
    load_transformer(model)
    assert DalleMini.from_pretrained(model, "cpu").generate("a red disc", candidates=2, keep=1, seed=1)[0].image
    lines = "\n".join(info_lines(checkpoint_info(model)))
    assert f"with another decoder only: the image ids are those of {old.identity}" in lines
    assert "cannot be used together" not in lines
    whole.run("transformer", "--resume", "run.steps=12")  # goes on beside the new decoder, with the old cache
    assert read_part(model, "transformer").trained_with["image_tokenizer"] == old.identity
    whole.run("encode")
    assert (whole.folder / "ids/train/image_ids.npy").read_bytes() == before
    assert cache_of(trained, "train").header.image_tokenizer == old.identity
    whole.run("scorer", "reconstructed_share=0.5", "run.steps=2")
    whole.run("image_tokenizer", *settings(whole, "tune.drawn_share=0", "run.steps=2"))  # and once more
    assert read_part(model, "image_tokenizer").image_ids == old.identity
    assert not any("mismatched" in part for part in checkpoint_info(model).values() if isinstance(part, dict))


def test_an_image_tokenizer_with_other_ids_still_replaces_none_that_is_needed(whole):
    whole.run("image_tokenizer", *settings(whole, "run.steps=2"))
    with pytest.raises(UserError, match=r"without parts that need its image_tokenizer .*, got transformer and scorer"):
        whole.run("image_tokenizer", f"start_from={whole.folder}/model", "run.steps=2")


def test_a_run_resumes_bit_for_bit(whole, trained, tmp_path, monkeypatch):
    broken = whole.copy(tmp_path / "broken")
    whole.run("image_tokenizer", *settings(trained))
    interrupt(broken, "image_tokenizer", 6, monkeypatch, *settings(trained))
    with pytest.raises(UserError, match=r"got tune\.decoder_only true -> false"):
        broken.run("image_tokenizer", "--resume", settings(trained)[0])
    broken.run("image_tokenizer", "--resume", *settings(trained))
    assert outcome(broken, "image_tokenizer") == outcome(whole, "image_tokenizer")
    parts = [read_part(one.folder / "model", "image_tokenizer") for one in (whole, broken)]
    assert parts[0].trained_with == parts[1].trained_with


# --- what the decoder sees


def changes_of(shares, place, value, prefix=None):
    numbers = torch.cat([torch.tensor([shares]).expand(len(place), -1), place.flatten(1), value.flatten(1)], 1)
    return IdChanges(torch.empty(len(place), 0) if prefix is None else prefix, numbers)


def test_ids_are_replaced_by_near_ones_up_to_the_share(whole):
    tuning = tuning_of(whole, "tune.replaced_share=0.5", "tune.neighbours=3")
    tokenizer, random = tuning.tokenizer, torch.Generator().manual_seed(0)
    pixels = torch.rand(40, 3, 16, 16, generator=random) * 2 - 1
    ids = tokenizer.encode(pixels)
    place, value = torch.rand(2, 40, 2, 2, generator=random)
    changed = tuning.changed_ids(pixels, changes_of((0.8, 0.0), place, value))
    assert torch.equal(changed != ids, place < 0.4)
    table = tokenizer.table()
    seen = set()
    for own, other in zip(ids[place < 0.4].tolist(), changed[place < 0.4].tolist(), strict=True):
        order = (table - table[own]).square().sum(1).argsort().tolist()
        seen.add([one for one in order if one != own].index(other))
    assert seen == {0, 1, 2}


def test_ids_are_drawn_from_what_the_transformer_expects_after_the_pictures_own(whole):
    """Compared with one pass per cell over nothing but what stands before it, in the order of a stream of patches."""
    tokenizer = load_image_tokenizer(whole.folder / "model")[0]
    layout = StreamConfig(grid=(4, 4), patch=2, image_vocab=tokenizer.codebook_size, text_length=5, text_vocab=17)
    shape = TransformerConfig(n_layer=2, n_head=2, n_embd=16, patch=2)
    transformer, stream = randomise(build_transformer(shape, layout), 3), Stream(layout)
    sampling = SamplingConfig(temperature=0.9, top_k=6)
    tuning = tuning_of(whole, drawer=Drawer(transformer, stream, None, sampling), tokenizer=tokenizer)
    random = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, 32, 32, generator=random) * 2 - 1
    ids = tokenizer.encode(pixels)
    place, value = torch.rand(2, 3, 4, 4, generator=random)
    prefix = stream.prefix([[4, 5], [], [6]])
    changed = tuning.changed_ids(pixels, changes_of((0.0, 0.5), place, value, prefix))
    assert torch.equal(changed[place >= 0.4], ids[place >= 0.4])
    joined, uniforms = stream.join(prefix, ids), stream.to_order(value)
    drawn = []
    with torch.no_grad():
        for cell in range(16):
            hidden = transformer(joined[:, : stream.prefix_length + cell])[:, -1]
            logits = transformer.logits(hidden, stream.image_range)
            drawn.append(next_ids(logits, uniforms[:, cell], RowSettings.of([sampling] * 3)))
    drawn = stream.to_grid(torch.stack(drawn, 1))
    assert torch.equal(changed[place < 0.4], drawn[place < 0.4])
    assert (changed != ids).any()


def test_changes_follow_from_the_row_and_captions_from_its_picture(whole, monkeypatch):
    tuning = tuning_of(whole, drawer=drawer_of(whole))
    scenes = SceneRows(12)
    every = tuning.make_changes(3, slice(0, 12), scenes, [])
    halves = [tuning.make_changes(3, rows, scenes, []) for rows in (slice(0, 6), slice(6, 12))]
    assert all(torch.equal(one, torch.cat(parts)) for one, parts in zip(every, zip(*halves, strict=True), strict=True))
    assert not torch.equal(tuning.make_changes(4, slice(0, 12), scenes, []).numbers, every.numbers)
    words = tuning.drawer.text_tokenizer
    known = {words.decode(words.encode(caption.text)) for entry in tuning.entries for caption in entry.captions}
    shown = tuning.drawer.stream.split(torch.cat([every.prefix, every.prefix[:, :4]], 1))[0]
    captions = [words.decode(ids) for ids in shown]
    assert len(set(captions)) > 6
    assert all(any(caption.startswith(text) for caption in known) for text in captions)  # long ones are cut


def test_scenes_have_their_own_captions_and_come_last(whole):
    tuning = tuning_of(whole, drawer=drawer_of(whole))
    art = make_art()
    scenes = SceneRows(12, 4, art, size=16)
    composed = [scenes.compose(3, row) for row in scenes.split(slice(0, 12))[0]]
    prefix = tuning.make_changes(3, slice(0, 12), scenes, composed).prefix
    words, stream = tuning.drawer.text_tokenizer, tuning.drawer.stream
    expected = stream.prefix([words.encode(scene.caption)[:11] for scene in composed])
    assert torch.equal(prefix[8:], expected)


def test_pictures_without_captions_are_drawn_without(whole):
    tuning = tuning_of(whole, drawer=drawer_of(whole))
    tuning.entries = [SimpleNamespace(captions=())] * len(tuning.entries)
    prefix = tuning.make_changes(0, slice(0, 12), SceneRows(12), []).prefix
    assert torch.equal(prefix, tuning.drawer.stream.prefix([[]] * 12))


def test_the_decoder_learns_to_give_the_picture_from_changed_ids(whole):
    config = config_of(whole, "image_tokenizer")
    store = open_store(config.data, "train")
    pixels = pixels_on_white(store.take(np.arange(len(store))), 16)
    changes = tuning_of(whole, drawer=drawer_of(whole)).make_changes(0, slice(0, 12), SceneRows(12), [])
    changes = IdChanges(changes.prefix, changes.numbers.clone())
    changes.numbers[:, 0:2] = torch.tensor([0.0, 1.0])
    before = load_image_tokenizer(whole.folder / "model")[0]
    whole.run("image_tokenizer", *settings(whole, "run.steps=60", "run.validate_every=0", "run.sample_every=0"))
    after = load_image_tokenizer(whole.folder / "model")[0]
    ids = tuning_of(whole, drawer=drawer_of(whole), tokenizer=before).changed_ids(pixels[:12], changes)
    errors = [float((one.decode(ids) - pixels[:12]).square().mean()) for one in (before, after)]
    assert errors[1] < 0.8 * errors[0]


# --- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.decoder_only=false"], r"expected tune\.decoder_only=true with .*, got 0\.2 and 0\.8 without it"),
        (["start_from=''"], r"expected start_from with tune\.decoder_only, got none"),
        (["tune.drawn_share=0.9"], r"of at most 1 together, got 0\.2 and 0\.9; lower one"),
        (["model.image_size=32"], r"expected a transformer of the 4 × 4 ids of .*, got one of 2 × 2 ids"),
        (["tune.transformer=nowhere"], "nowhere"),
        (
            ["tune.transformer=one", "tune.drawn_share=0"],
            r"tune\.drawn_share above 0 with tune\.transformer=one, got 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(whole, overrides, message):
    with pytest.raises(UserError, match=message):
        whole.run("image_tokenizer", *settings(whole), "data.store_size=32", *overrides)


def test_a_transformer_of_other_ids_is_refused(whole, tmp_path):
    other = whole.copy(tmp_path / "other", "image_tokenizer")
    other.run("image_tokenizer", "run.steps=1", "run.seed=5")
    shutil.rmtree(other.folder / "ids")
    other.run("encode")
    other.run("transformer", "run.steps=1")
    config = config_of(whole, "image_tokenizer", *settings(whole, f"tune.transformer={other.folder}/model"))
    tokenizer = load_image_tokenizer(whole.folder / "model")[0]
    with pytest.raises(UserError, match=f"got one of 2 × 2 ids of {identity(other, 'image_tokenizer')} in"):
        open_tuning(config, open_start(config, False), tokenizer, open_store(config.data, "train"), "cpu")
