"""Scenes in the batches of the image tokenizer, the transformer and the scorer."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.emoji import make_emoji_set
from helpers.scenes import make_art
from helpers.training import BatchMaker, config_of, interrupt, outcome

from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.train import image_tokenizer, scorer, stream_batch
from dalle_mini_impl.train.shared.scene_rows import SceneRows, open_scenes
from dalle_mini_impl.train.stream_batch import fill_scenes, make_batch
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module")
def emoji_store(tmp_path_factory):
    """A picture store of 12 emoji by two vendors, 32 pixels wide."""
    folder = tmp_path_factory.mktemp("emoji")
    make_emoji_set(folder)
    store = str(folder.with_name("emoji-store"))
    config = DataConfig(source=str(folder), store=store, store_size=32, fit="crop")
    open_store(config, "train")
    return Path(config.store)


def scenes_of(size=32, batch_size=12, count=6, **settings):
    return SceneRows(batch_size, count, make_art(), "version", size, 5, **settings)


def options(store, share=0.5):
    return (f"scenes.store={store}", f"scenes.share={share}")


@pytest.mark.parametrize("count", [0, 1, 5, 6, 11])
def test_scenes_are_spread_evenly_and_every_other_row_is_a_picture(count):
    rows = scenes_of(count=count)
    scene_rows, pictures = rows.split(slice(0, 12))
    assert len(scene_rows) == count
    assert sorted([*scene_rows, *pictures]) == list(range(12))
    assert list(pictures.values()) == list(range(12 - count))
    halves = [rows.split(slice(0, 6)), rows.split(slice(6, 12))]
    assert halves[0][0] + halves[1][0] == scene_rows
    assert halves[0][1] | halves[1][1] == pictures
    assert abs(len(halves[0][0]) - len(halves[1][0])) <= 1


def test_a_scene_follows_from_step_and_row_and_languages_from_their_weights():
    rows = scenes_of(language_weights={"en": 3, "no": 0, "sl": 0, "et": 0, "nl": 0})
    first, again = ([rows.compose(step, row) for step in range(20) for row in range(12)] for _ in range(2))
    assert [(one.caption, one.image.tobytes()) for one in first] == [
        (one.caption, one.image.tobytes()) for one in again
    ]
    assert len({one.image.tobytes() for one in first}) > 230  # small scenes of squares; a few are equal
    assert {one.language for one in first} == {"en", "de"}
    assert 0.6 < sum(one.language == "en" for one in first) / 240 < 0.9


def test_every_second_scene_of_a_pair_differs_in_one_thing():
    rows = scenes_of(tasks=("counting",))
    scene_rows, _ = rows.split(slice(0, 12))
    scenes = [rows.compose_pair(7, row) for row in scene_rows]
    for one, other in zip(scenes[::2], scenes[1::2], strict=True):
        assert one.vendor == other.vendor
        assert one.plan.objects[0].concept == other.plan.objects[0].concept
        assert (one.plan.objects[0].count, one.plan.background) != (other.plan.objects[0].count, other.plan.background)


def test_the_image_tokenizer_sees_scenes_as_they_are(trained):
    config = config_of(trained, "image_tokenizer")
    store = open_store(config.data, "train")
    rows = scenes_of(size=store.frame[0])
    whole = image_tokenizer.batch_pixels(store, rows, 3, slice(0, 12), config)
    assert whole.shape == (12, 3, 16, 16)
    half = image_tokenizer.batch_pixels(store, rows, 3, slice(6, 12), config)
    assert torch.equal(torch.cat([whole[3:6], whole[9:]]), half)  # of six pictures and six scenes
    scene = torch.from_numpy(np.array(rows.compose(3, rows.split(slice(0, 12))[0][-1]).image)).permute(2, 0, 1)
    shrunk = scene.float().unflatten(1, (16, 2)).unflatten(3, (16, 2)).mean((2, 4)) / 127.5 - 1
    assert (whole[-1] - shrunk).abs().max() < 1e-5


class MeanShade:
    """An image tokenizer whose ids are the mean red of each cell of 8 × 8 pixels, in twelve steps."""

    def encode(self, pixels):
        red = pixels[:, 0] / 255 if pixels.dtype == torch.uint8 else (pixels[:, 0] + 1) / 2
        return (red.unflatten(1, (2, 8)).unflatten(3, (2, 8)).mean((2, 4)) * 11.99).long()


def test_the_transformer_learns_the_ids_of_scenes_from_their_captions(trained):
    maker = BatchMaker(trained, "caption_dropout=0", "bpe_dropout=0", "id_dropout=0.5", "id_corruption=0.3")
    rows, stream = scenes_of(size=16), maker.stream
    parts = (maker.cache, maker.captions, maker.tokenizer, stream, maker.config)
    kinds = set()
    for step in range(12):
        raw = make_batch(*parts, step, slice(0, 12), rows)
        assert raw.scene_rows.tolist() == rows.split(slice(0, 12))[0]
        batch = fill_scenes(raw, MeanShade(), stream)
        first = stream.prefix_length - 1
        for row in raw.scene_rows.tolist():
            scene = rows.compose(step, row)
            text_ids = maker.tokenizer.encode(scene.caption)[:11]
            assert batch.targets[row, : len(text_ids)].tolist() == text_ids
            pixels = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1)[None].float() / 127.5 - 1
            own = stream.to_order(MeanShade().encode(pixels))[0] + stream.image_offset
            assert torch.equal(batch.targets[row, first:], own)
            inputs = batch.inputs[row, first + 1 :]
            kinds |= {"own" if one == other else "hidden" if one == stream.config.bos_id else "other"
                      for one, other in zip(inputs, own[:-1], strict=True)}  # fmt: skip
            assert ((inputs == stream.config.bos_id) | (inputs >= stream.image_offset)).all()
    assert kinds == {"own", "hidden", "other"}
    halves = [
        fill_scenes(make_batch(*parts, 11, part, rows), MeanShade(), stream) for part in (slice(0, 6), slice(6, 12))
    ]
    assert torch.equal(torch.cat([half.inputs for half in halves]), batch.inputs)
    assert torch.equal(torch.cat([half.targets for half in halves]), batch.targets)


def test_what_is_changed_in_a_scene_does_not_follow_from_what_it_shows(trained, monkeypatch):
    maker, streams = BatchMaker(trained), []

    def record(ids, cache, share, random):
        streams.append(random.bit_generator.state["state"]["inc"])
        return ids

    monkeypatch.setattr(stream_batch, "corrupt", record)
    rows = scenes_of(size=16)
    make_batch(maker.cache, maker.captions, maker.tokenizer, maker.stream, maker.config, 3, slice(0, 12), rows)
    for row, stream in enumerate(streams):
        of_row = np.random.default_rng([maker.config.run.seed, 3, row]).bit_generator.state["state"]["inc"]
        assert (stream == of_row) == (row in rows.split(slice(0, 12))[1])


def test_the_scorer_sees_pairs_of_scenes_with_captions_in_several_languages(trained):
    config = config_of(trained, "scorer", "captions=3", "reconstructed_share=0", "bpe_dropout=0")
    store, tokenizer = open_store(config.data, "train"), load_text_tokenizer(trained.folder / "model")
    rows = scenes_of(size=store.frame[0])
    captions = CaptionSampler(store.entries, {})
    batch = scorer.make_batch(store, rows, captions, tokenizer, None, config, 3, slice(0, 12))
    assert batch.pixels.shape == (12, 3, 16, 16)
    scenes = [rows.compose_pair(3, row) for row in rows.split(slice(0, 12))[0]]
    texts = batch.text_ids.unflatten(0, (12, 3))[6:]
    for scene, ids in zip(scenes, texts[:, 0].tolist(), strict=True):
        assert ids == tokenizer.cut_or_pad(tokenizer.encode(scene.caption), 11, add_eos=True)
    assert len(set(map(tuple, texts[:, 1].tolist()))) > 3
    assert len(set(batch.concepts[6:].tolist())) == len({scene.plan.name for scene in scenes}) > 3


def test_a_single_thing_counts_as_its_concept_whatever_composed_it():
    rows = scenes_of(tasks=("single",))
    plans = [rows.compose(0, row).plan for row in range(12)]
    on_white = [plan for plan in plans if plan.background in ("", "white")]
    assert {plan.name for plan in on_white} <= set("abcdefgh")
    assert not {plan.name for plan in plans if plan not in on_white} & set("abcdefgh")


def test_runs_with_scenes_resume_bit_for_bit(home, emoji_store, tmp_path, monkeypatch):
    broken = home.copy(tmp_path / "broken")
    home.run("transformer", *options(emoji_store))
    interrupt(broken, "transformer", 6, monkeypatch, *options(emoji_store))
    with pytest.raises(UserError, match=r'got scenes\.store .* -> ""; change'):
        broken.run("transformer", "--resume")
    moved = shutil.copytree(emoji_store, tmp_path / "elsewhere" / emoji_store.name)
    broken.run("transformer", "--resume", *options(moved))
    assert outcome(broken, "transformer") == outcome(home, "transformer")
    assert load_settings(home.folder / "model").about.data[-1] == "scenes composed of emoji-store"


def test_image_tokenizer_and_scorer_train_with_scenes(trained, emoji_store, tmp_path):
    home = trained.copy(tmp_path / "home", "image_tokenizer", "scorer")
    for name in ("transformer", "scorer", "image_tokenizer"):
        (home.folder / "model" / f"{name}.safetensors").unlink(missing_ok=True)
    for part in ("image_tokenizer", "scorer"):
        home.run(part, *options(emoji_store, 0.4))
        assert (home.folder / "model" / f"{part}.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenes.share=0.01"], r"expected scenes\.share of which a batch of 12 has scenes and pictures, got 0\.01"),
        (["scenes.tasks=[one]"], r"expected scenes\.tasks of single, .*, got one; change it"),
        (["scenes.tasks=[]"], r"expected scenes\.tasks of single, .*, got none; change it"),
        (["language_weights={en: 0, de: 0, no: 0, sl: 0, et: 0, nl: 0}"], "one of scenes' languages, en, .*, got none"),
        (["image_targets=sampled"], "expected image_targets argmax beside scenes, got sampled"),
        (["scenes.store=nowhere"], "nowhere does not exist; expected a picture store or a source"),
    ],
)
def test_settings_that_cannot_be_are_refused(home, emoji_store, overrides, message):
    if "image_targets=sampled" in overrides:
        home.run("encode", "soft_ids=3")
    with pytest.raises(UserError, match=message):
        home.run("transformer", *options(emoji_store), *overrides)


def test_pictures_that_are_not_square_have_no_scenes(emoji_store):
    run, config = SimpleNamespace(batch_size=12, seed=0), SimpleNamespace(store=str(emoji_store), share=0.5)
    with pytest.raises(UserError, match="expected square pictures for scenes, got 16 × 24 pixels"):
        open_scenes(SimpleNamespace(**vars(config), tasks=("two",)), run, (16, 24))


def test_a_store_of_other_pictures_is_refused(home):
    with pytest.raises(UserError, match="expected the emoji set with transparency, got pictures"):
        home.run("transformer", f"scenes.store={home.folder}/store")
