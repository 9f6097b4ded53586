import pytest
import yaml

from dalle_mini_impl.config.presets import load_presets
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.train.whole.settings import divide_settings, load_settings, without_defaults, write_config
from dalle_mini_impl.util.errors import UserError


def test_settings_go_to_the_stages_that_have_them():
    divided = divide_settings(
        [
            "data.validation=0.1",
            "transformer.run.steps=7",
            "image-tokenizer.edge=1",
            "language_weights.de=2",
            "run.seed=3",
        ]
    )
    assert divided == {
        "text_tokenizer": ["data.validation=0.1"],
        "image_tokenizer": ["data.validation=0.1", "edge=1", "run.seed=3"],
        "encode": ["data.validation=0.1"],
        "transformer": ["run.steps=7", "language_weights.de=2", "run.seed=3"],
        **{key: ["data.validation=0.1", "language_weights.de=2", "run.seed=3"] for key in ("scorer", "prior")},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.steps", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("run.stepz=3", "expected a setting of a stage, got 'run.stepz'; did you mean 'run.steps'"),
        ("encode.run.steps=3", "expected a setting of a stage, got 'encode.run.steps'"),
        ("scorer.wings=2", "dalle train STAGE --help lists them"),
        ("data.store=x", "which follows from SOURCE, --out and --minutes; leave it out"),
        ("scorer.text_tokenizer=x", "leave it out"),
        ("text_tokenizer.out=x", "leave it out"),
        ("transformer.run.minutes=2", "leave it out"),
    ],
)
def test_other_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        divide_settings([setting])


def test_written_configs_hold_what_differs_and_read_back(tmp_path):
    config = load(TransformerRun, "configs/small/transformer.yaml", ["prompts=['ä: \"b\"']", "model.block.norm=layer"])
    path = tmp_path / "transformer.yaml"
    write_config(path, "transformer", config)
    assert load(TransformerRun, path) == config
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        "# Stage 4 as dalle train all planned it. The same by hand:\n# dalle train transformer --config"
    )
    assert yaml.safe_load(text)["model"]["block"] == {"norm": "layer"}
    assert without_defaults(TransformerRun()) == {}


def test_a_grid_of_half_patches_is_refused_before_anything_is_trained():
    preset = next(preset for preset in load_presets().presets if preset.name == "small")
    assert load_settings(preset)["transformer"].model.patch == 2
    odd = divide_settings(["image_tokenizer.model.image_size=72"])
    with pytest.raises(UserError, match=r"expected a token grid of whole patches of 2 × 2 ids, got 9 × 9 ids"):
        load_settings(preset, odd)
    assert load_settings(preset, odd, divide_settings(["transformer.model.patch=1"]))
