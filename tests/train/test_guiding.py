"""What a scorer is trained on so that it can guide painting."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.contrastive import make_batch, make_clip
from helpers.scenes import make_art
from helpers.training import config_of, interrupt, outcome
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.config.guiding import GuidingConfig
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.painting.cuts import Cuts
from dalle_mini_impl.painting.painter import Painter, PaintSettings
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train import guiding, scorer
from dalle_mini_impl.train.guiding import Guiding, Paintings, Pairs, attacked, blended, random_cuts, shuffled
from dalle_mini_impl.train.losses.contrastive import chance_level, contrastive_loss
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.util.errors import UserError

ALL = (
    "guiding.cut_share=0.5",
    "guiding.attack=0.05",
    "guiding.attack_steps=2",
    "guiding.spoiled=6",
    "guiding.paintings=3",
    "guiding.painting_steps=4",
)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def pairs_of(count=6, side=14):
    pixels, text_ids, groups = make_batch()
    return Pairs(F.interpolate(pixels, (side, side))[:count], text_ids[:count], groups[:count])


def config_with(home, *overrides):
    return config_of(home, "scorer", *overrides)


def guiding_of(accelerator, home, *overrides):
    """The extension of batches by the settings, with the trained scorer and image tokenizer, and two captions."""
    clip = Scorer.from_pretrained(home.folder / "model").model
    tokenizer, _ = load_image_tokenizer(home.folder / "model")
    config = config_with(home, "captions=2", *overrides)
    return Guiding(accelerator, config, clip, Ema(clip, 0.9), tokenizer), config


def batch_of(home, config, step=0, rows=slice(0, 12), scenes=None):
    store, tokenizer = open_store(config.data, "train"), load_text_tokenizer(home.folder / "model")
    parts = (store, scenes or SceneRows(12), CaptionSampler(store.entries, {}), tokenizer, None)
    return scorer.make_batch(*parts, config, step, rows)


def test_an_attack_is_short_and_raises_the_loss_more_than_chance(accelerator):
    clip, batch = make_clip(), pairs_of()

    def loss(pixels):
        with torch.no_grad():
            image, text, *scalars = clip(pixels, batch.text_ids)
            return float(contrastive_loss(image, text, *scalars, batch.groups))

    def length(pixels):
        return (pixels - batch.pixels).square().mean((1, 2, 3)).sqrt()

    noise = 0.05 * torch.randn(batch.pixels.shape, generator=torch.Generator().manual_seed(0))
    once, often = (attacked(accelerator, clip, batch, GuidingConfig(attack=0.05, attack_steps=n)) for n in (1, 3))
    for pixels in (once, often):
        assert 0.03 < length(pixels).min() <= length(pixels).max() <= 0.0501
        assert pixels.abs().max() <= 1
    assert loss(often) > loss(once) > loss((batch.pixels + noise).clamp(-1, 1)) > 0
    assert loss(once) > 1.02 * loss(batch.pixels)


def tiles_of(picture):
    """The 16 tiles of a picture (3, 16, 16)."""
    return picture.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1)


def test_shuffled_tiles_and_blends_are_made_of_the_pictures():
    one = pairs_of(1, 16).pixels[0]
    mixed = shuffled(one, torch.Generator().manual_seed(1))
    assert not torch.equal(mixed, one)
    assert torch.equal(mixed.flatten().sort().values, one.flatten().sort().values)
    tiles = [{tuple(tile.flatten().tolist()) for tile in tiles_of(picture)} for picture in (one, mixed)]
    assert tiles[0] == tiles[1]
    assert len(tiles[0]) == 16
    both = blended(torch.full((3, 16, 16), 0.9), torch.full((3, 16, 16), -0.9), torch.Generator().manual_seed(2))
    assert abs(float(both.mean())) <= 0.3 * 0.9
    assert 0 < float(both.std()) <= 0.21


def test_pictures_are_cut_in_their_share_and_scenes_never(trained, accelerator):
    config = config_with(trained, "guiding.cut_share=0.4", "captions=2")
    scenes = SceneRows(12, 6, make_art(), "version", open_store(config.data, "train").frame[0], 5)
    batches = [batch_of(trained, config, step, scenes=scenes) for step in range(30)]
    rows = torch.stack([batch.cut_rows for batch in batches])
    assert (rows[:, 6:] == -1).all()
    assert 0.25 < (rows[:, :6] >= 0).float().mean() < 0.55
    pictures = list(scenes.split(slice(0, 12))[1])
    assert set(rows[:, :6][rows[:, :6] >= 0].tolist()) == set(pictures)
    extend, _ = guiding_of(accelerator, trained, "guiding.cut_share=0.4")
    batch = batches[0]
    whole = Pairs(batch.pixels, batch.text_ids, batch.concepts)
    extended = extend.extend(0, 0, whole, batch.cut_rows)
    same = (extended.pixels == batch.pixels).flatten(1).all(1)
    assert torch.equal(same, batch.cut_rows < 0)
    assert extended.text_ids is batch.text_ids


def test_other_pictures_are_cut_as_often(trained, accelerator):
    extend, config = guiding_of(accelerator, trained, "guiding.cut_share=1", "guiding.spoiled=6")
    plain, _ = guiding_of(accelerator, trained, "guiding.spoiled=6")
    batch = batch_of(trained, config)
    pairs = Pairs(batch.pixels, batch.text_ids, batch.concepts)
    cut, whole = (one.extend(5, 0, pairs, batch.cut_rows).pixels[12:] for one in (extend, plain))
    assert len(cut) == len(whole) == 6
    assert not (cut == whole).flatten(1).all(1).any()


def test_paintings_bring_their_true_pictures_and_captions_and_come_last(trained, accelerator):
    extend, config = guiding_of(accelerator, trained, "guiding.paintings=3", "guiding.spoiled=2")
    batch = batch_of(trained, config)
    pairs = Pairs(batch.pixels, batch.text_ids, batch.concepts)
    first = extend.extend(0, 0, pairs, batch.cut_rows)
    for step in range(1, 8):  # a few steps change an id
        other = batch_of(trained, config, step)
        second = extend.extend(step, 0, Pairs(other.pixels, other.text_ids, other.concepts), other.cut_rows)
    assert extend.unmatched == 5
    for extended in (first, second):
        assert len(extended.pixels) == 12 + 3 + 5
        assert len(extended.text_ids) == 2 * (12 + 3)
        assert len(extended.groups) == 12 + 3
    rows = [[int(index) for index in range(12) if torch.equal(batch.pixels[index], one)] for one in first.pixels[12:15]]
    assert [row[0] // 4 for row in rows] == [0, 1, 2]  # each from its own part of the batch
    for place, (row, *_) in enumerate(rows):
        assert torch.equal(first.text_ids[2 * (12 + place) :][:2], batch.text_ids[2 * row :][:2])
        assert first.groups[12 + place] == batch.concepts[row]
    assert torch.equal(second.pixels[12:15], first.pixels[12:15])  # they stay while they are painted for
    assert not torch.equal(second.pixels[-3:], first.pixels[-3:])


def test_paintings_begin_anew_after_their_steps_one_after_the_other(trained, accelerator):
    extend, config = guiding_of(accelerator, trained, "guiding.paintings=4", "guiding.painting_steps=8")
    ages = []
    for step in range(20):
        batch = batch_of(trained, config, step)
        extend.extend(step, 0, Pairs(batch.pixels, batch.text_ids, batch.concepts), batch.cut_rows)
        ages.append(extend.paintings.age.tolist())
    assert [max(column) for column in zip(*ages, strict=True)] == [8] * 4
    begun = [[step for step, row in enumerate(ages) if row[place] == 1 and step] for place in range(4)]
    assert begun == [[8, 16], [6, 14], [4, 12], [2, 10, 18]]


def test_paintings_whose_captions_do_not_fit_any_more_begin_anew(trained, accelerator):
    extend, config = guiding_of(accelerator, trained, "guiding.paintings=2", "guiding.painting_steps=8")
    extend.paintings.age[:] = 3  # as of a state with another number of captions, which leaves `text_ids` as they are
    extend.paintings.text_ids[1, :, 0] = 1
    batch = batch_of(trained, config, 1)
    extend.paintings.renew(1, slice(0, 2), Pairs(batch.pixels, batch.text_ids, batch.concepts))
    assert extend.paintings.age.tolist() == [0, 3]
    assert extend.paintings.text_ids[0].any(1).all()


def test_the_chance_level_counts_what_is_added(trained):
    config = config_with(trained, "guiding.spoiled=6", "guiding.paintings=3")
    level = chance_level(15, config.model.sigmoid, 9)
    warning = scorer.chance_warning(config, level)
    assert f"chance level for 15 pairs and 9 pictures without captions ({level:.3f})" in warning
    assert scorer.chance_warning(config, chance_level(12, config.model.sigmoid)) == ""


def test_a_painting_is_painted_as_the_painter_paints(trained, accelerator, monkeypatch):
    accelerator.state._mixed_precision = "no"
    model = Scorer.from_pretrained(trained.folder / "model")
    tokenizer, _ = load_image_tokenizer(trained.folder / "model")
    config = config_with(trained, "guiding.paintings=1", "guiding.painting_steps=6", "guiding.painting_cuts=1")
    paintings = Paintings(config.guiding, config.run, tokenizer, range(1), 16, 1, 11)
    text_ids = model.text_tokenizer.encode_batch(["a red disc"], 11, add_eos=True)
    paintings.renew(0, slice(0, 1), Pairs(torch.zeros(1, 3, 16, 16), text_ids, torch.zeros(1, dtype=torch.int64)))
    start = (paintings.z[0].permute(1, 2, 0) @ paintings.table.T).argmax(-1)
    start = torch.cdist(paintings.z[0].flatten(1).T, paintings.table).argmin(1).view(start.shape)
    whole = Cuts(count=1, shares=(1, 1), rotation=0, jitter=0, noise=0)
    monkeypatch.setattr(guiding, "Cuts", lambda count: whole)
    painter = Painter(tokenizer, {"": model}, "a red disc", PaintSettings(steps=6, cuts=whole), start)
    shown = []
    for step in range(6):
        shown.append(paintings.advance(accelerator, model.model, Ema(model.model, 0), step, slice(0, 1)))
    for _ in painter:
        pass
    torch.testing.assert_close(paintings.z, painter._z.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(shown[0], shown[-1])


def test_paintings_fit_their_captions_better_with_every_step(trained, accelerator):
    extend, config = guiding_of(accelerator, trained, "guiding.paintings=12", "guiding.painting_steps=40")
    clip, paintings = extend.clip, extend.paintings
    batch = batch_of(trained, config)
    paintings.renew(0, slice(0, 12), Pairs(batch.pixels, batch.text_ids, batch.concepts))
    fits = []
    for step in range(40):
        pixels = paintings.advance(accelerator, clip, extend.ema, step, slice(0, 12))
        with torch.no_grad():
            image, text, *_ = clip(pixels, paintings.text_ids[:, 0])
        fits.append(float(F.cosine_similarity(image, text).mean()))
    assert sum(fits[-5:]) > 1.2 * sum(fits[:5]) > 0


def test_random_cuts_follow_from_the_generator():
    picture = pairs_of(1).pixels
    first, again, other = (random_cuts(picture, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, 3, 14, 14)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_guiding_scorer_resumes_bit_for_bit(trained, tmp_path, monkeypatch):
    whole, broken = (trained.copy(tmp_path / name, "scorer") for name in ("whole", "broken"))
    (broken.folder / "model" / "scorer.safetensors").unlink()
    whole.run("scorer", *ALL)
    interrupt(broken, "scorer", 7, monkeypatch, *ALL)
    broken.run("scorer", "--resume", *ALL)
    assert outcome(broken, "scorer") == outcome(whole, "scorer")
    assert outcome(whole, "scorer") != outcome(trained, "scorer")


def test_guiding_can_be_switched_on_in_a_run_that_has_begun(trained, tmp_path, monkeypatch, capsys):
    home = trained.copy(tmp_path / "home", "scorer")
    plain = ("reconstructed_share=0",)  # so that the state knows of no image tokenizer
    interrupt(home, "scorer", 5, monkeypatch, *plain)
    home.run("scorer", "--resume", *plain, *ALL)
    assert "guiding.paintings 0 -> 3" in capsys.readouterr().out
    interrupt(home, "scorer", 9, monkeypatch, *plain, *ALL)
    home.run("scorer", "--resume", *plain, *ALL, "guiding.paintings=6")  # those of the state are begun anew
    assert home.log("scorer")[-1]["step"] == 9


def test_passes_add_what_one_pass_adds(trained, tmp_path):
    settings = ("guiding.cut_share=0.5", "guiding.spoiled=6", "guiding.paintings=3", "guiding.painting_steps=4")
    one, three = (trained.copy(tmp_path / name, "scorer") for name in ("one", "three"))
    one.run("scorer", *settings, "run.steps=3")
    three.run("scorer", *settings, "run.steps=3", "run.accumulation=3")
    losses = [[line["loss"] for line in home.log("scorer") if "loss" in line] for home in (one, three)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("guiding.spoiled=7",), r"expected guiding\.spoiled of at most 6 in multiples of 1, .*, got 7; change it"),
        (("guiding.paintings=13",), r"expected guiding\.paintings of at most 12 in multiples of 1, .*, got 13"),
        (("guiding.spoiled=4", "run.accumulation=3"), r"expected guiding\.spoiled of at most 6 in multiples of 3"),
    ],
)
def test_settings_that_do_not_fit_the_batch_are_refused(trained, tmp_path, settings, message):
    home = trained.copy(tmp_path / "home", "scorer")
    with pytest.raises(UserError, match=message):
        home.run("scorer", *settings)
