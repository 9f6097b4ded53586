from pathlib import Path

import pytest
from helpers.training import ROOT, STAGES

from dalle_mini_impl.config.presets import find_preset, load_presets, suited_presets
from dalle_mini_impl.train.whole.settings import load_settings, preset_settings
from dalle_mini_impl.util.errors import UserError

TABLE = load_presets()


def test_the_first_preset_has_no_limits_and_limits_only_rise():
    first, *others = TABLE.presets
    assert (first.least_minutes, first.least_pictures, first.least_side, first.least_steps) == (0, 0, 0, 0)
    limits = [preset.least_minutes for preset in TABLE.presets if preset.automatic]
    assert limits == sorted(set(limits))
    assert others


@pytest.mark.parametrize("preset", TABLE.presets, ids=lambda preset: preset.name)
@pytest.mark.parametrize("pictures", [1, 12, 200, 5000, 100_000])
def test_every_preset_has_valid_settings_for_every_number_of_pictures(preset, pictures):
    assert (ROOT / "configs" / preset.name).is_dir()
    configs = load_settings(preset, preset_settings(preset, pictures))
    assert list(configs) == STAGES + (["prior"] if preset.name == "emoji" else [])
    image = configs["image_tokenizer"]
    assert configs["scorer"].model.image_size == (64 if preset.name == "emoji" else image.model.image_size)
    assert image.data.store_size in (0, *range(image.model.image_size, 4 * image.model.image_size + 1))


def test_few_pictures_get_small_batches():
    few, many = (load_settings(TABLE.presets[0], preset_settings(TABLE.presets[0], n)) for n in (11, 2000))
    assert few["scorer"].run.batch_size < many["scorer"].run.batch_size
    assert few["image_tokenizer"].model.codebook_size < many["image_tokenizer"].model.codebook_size


def names(minutes, pictures, side):
    return [preset.name for preset in suited_presets(TABLE, minutes, pictures, side)]


def test_time_number_and_size_of_the_pictures_choose():
    assert names(15, 5000, 500) == ["small"]
    assert names(60, 5000, 500) == ["medium", "small"]
    assert names(480, 5000, 500) == ["large", "medium", "small"]
    assert "emoji" not in names(480, 5000, 500)  # it must be named
    assert names(480, 12, 500) == ["small"]
    assert names(480, 5000, 48) == ["small"]


def test_presets_are_found_by_name_and_by_folder(tmp_path, monkeypatch):
    assert find_preset(TABLE, "medium") == find_preset(TABLE, "configs/medium/") == TABLE.presets[1]
    (tmp_path / "mine").mkdir()
    own = find_preset(TABLE, str(tmp_path / "mine"))
    assert (own.name, own.shares) == (str(tmp_path / "mine"), TABLE.presets[0].shares)
    monkeypatch.chdir(tmp_path)
    assert find_preset(TABLE, "mine").name == "./mine"
    (Path("of") / "large").mkdir(parents=True)
    assert find_preset(TABLE, "of/large").shares == TABLE.presets[2].shares
    with pytest.raises(
        UserError, match="expected --preset small, medium, large, emoji or a folder of configs, got 'huge'"
    ):
        find_preset(TABLE, "huge")
