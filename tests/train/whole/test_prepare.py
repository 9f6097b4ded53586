import math
import re
from dataclasses import replace

import pytest

from dalle_mini_impl.config.presets import find_preset, load_presets
from dalle_mini_impl.train.whole.folder import Request, RunFolder
from dalle_mini_impl.train.whole.pictures import FirstLook, PictureFacts
from dalle_mini_impl.train.whole.prepare import Composer, choose_data_settings, presets_for
from dalle_mini_impl.util.errors import UserError

TABLE = load_presets()


def composer(tmp_path, *settings, minutes=15.0, **options):
    request = Request(source="pictures", minutes=minutes, settings=settings, **options)
    return Composer(RunFolder(tmp_path / "out"), request, TABLE, {})


def look(total, seconds=0.01, side=300.0):
    return FirstLook(count=500, total=total, seconds=seconds, side=side, lines=())


def facts(train, **changes):
    values = {"held_out": 5, "without_caption": 0, "characters": 30, "captions": train, "languages": {"de": train}}
    return PictureFacts(train=train, **{**values, **changes})


def test_large_sets_are_thinned_so_that_reading_leaves_time(tmp_path):
    chosen = choose_data_settings(composer(tmp_path), look(100_000))
    assert chosen["every"] == math.ceil(100_000 / (TABLE.reading * 900 / 0.01))
    assert "every" not in choose_data_settings(composer(tmp_path), look(5000))
    assert "every" not in choose_data_settings(composer(tmp_path, minutes=0.01), look(400))


def test_what_is_held_out_is_bounded(tmp_path):
    assert choose_data_settings(composer(tmp_path), look(200))["validation"] == TABLE.validation
    many = choose_data_settings(composer(tmp_path, minutes=480.0), look(100_000))
    assert many["validation"] * 100_000 == pytest.approx(TABLE.validation_pictures, rel=0.01)


def test_stored_pictures_fit_the_largest_preset(tmp_path):
    assert choose_data_settings(composer(tmp_path), look(1000))["store_size"] == 192
    assert choose_data_settings(composer(tmp_path, minutes=60.0), look(1000))["store_size"] == 256
    sizes = ("image_tokenizer.model.height=64", "image_tokenizer.model.width=96")
    for minutes in (15.0, 60.0):
        sized = composer(tmp_path, *sizes, minutes=minutes)
        chosen = choose_data_settings(sized, look(1000))
        assert (chosen["store_height"], chosen["store_width"]) == (128, 192)
        configs = replace(sized, data=chosen).compose(presets_for(sized.request, TABLE, 1000, 300.0)[0])
        assert configs["text_tokenizer"].data.store_frame == configs["scorer"].data.store_frame == (128, 192)


def test_the_user_may_give_the_size_of_stored_pictures(tmp_path):
    sizes = ("image_tokenizer.model.height=64", "image_tokenizer.model.width=96")
    own = composer(tmp_path, *sizes, "data.store_height=256", "data.store_width=384", minutes=60.0)
    chosen = choose_data_settings(own, look(1000))
    assert (chosen["store_height"], chosen["store_width"]) == (256, 384)


def test_the_vocabulary_holds_the_characters(tmp_path):
    preset = TABLE.presets[0]
    few = composer(tmp_path).compose(preset, facts(500))
    many = composer(tmp_path).compose(preset, facts(500, characters=4000))
    assert few["text_tokenizer"].vocab_size < many["text_tokenizer"].vocab_size
    assert many["text_tokenizer"].vocab_size >= 260 + 4000
    assert many["scorer"].validation_language == "de"


def test_batches_can_be_divided_among_processes(tmp_path):
    configs = composer(tmp_path, "scorer.run.batch_size=20").compose(TABLE.presets[0], facts(12), 3)
    assert [configs[name].run.batch_size for name in ("image_tokenizer", "transformer", "scorer")] == [9, 18, 20]


def test_one_precision_for_all(tmp_path):
    with pytest.raises(UserError, match=r"expected one precision for all stages, got auto and fp32; set both"):
        composer(tmp_path, "run.precision=fp32").compose(TABLE.presets[0])


def test_image_embeddings_have_to_be_stored(tmp_path):
    message = r"expected encode\.image_embed=true with transformer\.image_embed\.positions 4, got false; set both"
    with pytest.raises(UserError, match=message):
        composer(tmp_path, "transformer.image_embed.positions=4").compose(TABLE.presets[0])


def test_scenes_are_composed_of_the_runs_own_pictures_unless_others_are_named(tmp_path):
    preset = find_preset(TABLE, "emoji")
    own = composer(tmp_path, "scorer.scenes.store=mine").compose(preset, facts(500))
    used = {stage: own[stage].scenes.store for stage in ("image_tokenizer", "transformer", "scorer", "prior")}
    store = str(tmp_path / "out" / "store")
    assert used == {"image_tokenizer": store, "transformer": store, "scorer": "mine", "prior": store}
    without = composer(tmp_path).compose(TABLE.presets[0], facts(500))
    assert not without["image_tokenizer"].scenes.store


def test_settings_of_a_prior_need_a_preset_with_one(tmp_path):
    message = r"expected settings of text_tokenizer, .*, scorer, which are trained here, got prior\.sampling\.steps=5;"
    for setting in ("prior.sampling.steps=5", "prior.run.steps=5"):
        with pytest.raises(UserError, match=message.replace(r"prior\.sampling\.steps=5", re.escape(setting))):
            composer(tmp_path, setting).compose(TABLE.presets[0])


def test_paths_with_special_characters_reach_the_configs(tmp_path):
    folder = tmp_path / 'a: "b" #c'
    request = Request(source=str(folder / "pictures: {x}"), minutes=1.0)
    configs = Composer(RunFolder(folder), request, TABLE, {}).compose(TABLE.presets[0])
    assert configs["encode"].data.source == str(folder / "pictures: {x}")
    assert configs["scorer"].run.model_dir == str(folder / "model")
