import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from dalle_mini_impl.config.data import AugmentConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, load, read_yaml, to_dict
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Outer:
    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    languages: dict[str, float] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    out: str = ""
    compile: bool = False


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_only_what_differs(tmp_path):
    path = write(tmp_path, "model: {image_size: 40}\nprompts: [ein rotes Herz, 心形]\nlanguages: {de: 3}\n")
    config = load(Outer, path)
    assert config.model == ImageTokenizerConfig(image_size=40)
    assert config.prompts == ("ein rotes Herz", "心形")
    assert config.languages == {"de": 3.0}
    assert config.sampling == SamplingConfig()


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_all_defaults(tmp_path, text):
    assert load(Outer, write(tmp_path, text)) == Outer()


def test_overrides_win_and_reach_into_sections_that_the_file_lacks(tmp_path):
    path = write(tmp_path, "model:\n  factor: 4\n")
    overrides = ["model.factor=16", "sampling.top_k=5", "out=a=b", "compile=true", "model.channels=[3, 5]"]
    config = load(Outer, path, overrides)
    assert (config.model.factor, config.sampling.top_k, config.out) == (16, 5, "a=b")
    assert config.compile is True
    assert config.model.channels == (3, 5)


def test_numbers_without_a_dot_are_numbers(tmp_path):
    # YAML 1.1 reads 1e-3 as text
    config = load(Outer, write(tmp_path, "sampling: {temperature: 1e-3, guidance: 2}"))
    assert config.sampling.temperature == 0.001
    assert config.sampling.guidance == 2.0
    assert isinstance(config.sampling.guidance, float)


def test_what_is_written_can_be_read(tmp_path):
    config = Outer(model=ImageTokenizerConfig(channels=(7, 11), factor=16), languages={"no": 3.5}, prompts=("é",))
    plain = to_dict(config)
    assert plain["model"]["channels"] == [7, 11]
    assert load(Outer, write(tmp_path, yaml.safe_dump(plain))) == config


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingConfig().top_k = 3  # type: ignore[misc]


def test_grid_is_size_over_factor():
    assert ImageTokenizerConfig(image_size=56, factor=8).grid == (7, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {}", "unknown key 'modle'; did you mean 'model'"),
        ("model: {imagesize: 3}", "model: unknown key 'imagesize'; did you mean 'image_size'"),
        ("zzz: 1", "unknown key 'zzz'; known keys are model"),
        ("model: {factor: eight}", "model: factor: expected int, got 'eight'"),
        ("model: {factor: 8.0}", "factor: expected int, got 8.0"),
        ("model: {factor: true}", "factor: expected int, got True"),
        ("model: {factor: null}", "factor: expected int, got None"),
        ("sampling: {temperature: true}", "temperature: expected float, got True"),
        ("sampling: {temperature: warm}", "temperature: expected float, got 'warm'"),
        ("compile: 1", "compile: expected bool, got 1"),
        ("out: 5", "out: expected str, got 5"),
        ("prompts: a cat", "prompts: expected tuple"),
        ("prompts: [1]", "prompts: expected str, got 1"),
        ("languages: [en]", "languages: expected dict"),
        ("languages: {en: much}", "languages.en: expected float, got 'much'"),
        ("model: 3", "model: expected keys and values, got 3"),
        ("- model", "expected keys and values, got ['model']"),
        ("model: [", "is not YAML"),
        ("run: {steps: 5}\nmodel: {}\nrun: {seed: 1}", "key 'run' is there twice"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load(Outer, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("grid", [[3], [3, 5, 7]])
def test_a_pair_has_two_values(grid):
    with pytest.raises(UserError, match="grid: expected 2 values"):
        from_dict(StreamConfig, {"text_length": 3, "text_vocab": 5, "grid": grid, "image_vocab": 7})


def test_pairs_keep_their_types():
    assert from_dict(AugmentConfig, {"scale": [1, 2]}).scale == (1.0, 2.0)
    with pytest.raises(UserError, match=r"grid: expected int, got 3\.5"):
        from_dict(StreamConfig, {"text_length": 3, "text_vocab": 5, "grid": [3.5, 5], "image_vocab": 7})


@pytest.mark.parametrize("override", ["model.factor", "=3", ""])
def test_an_override_needs_key_and_value(tmp_path, override):
    with pytest.raises(UserError, match="expected key=value"):
        load(Outer, write(tmp_path, ""), [override])


def test_an_override_goes_through_the_same_checks(tmp_path):
    path = write(tmp_path, "out: here")
    with pytest.raises(UserError, match="unknown key 'sted'"):
        load(Outer, path, ["model.sted=3"])
    with pytest.raises(UserError, match="'out' is a single value"):
        load(Outer, path, ["out.there=3"])


def test_a_language_code_that_old_yaml_takes_for_a_boolean_stays_a_word(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("{no: 4, yes: 2, on: true, off: False}")
    assert read_yaml(path.read_text()) == {"no": 4, "yes": 2, "on": True, "off": False}
    assert load(Outer, write(tmp_path, "languages: {no: 4}"), ["languages.en=2"]).languages == {"no": 4.0, "en": 2.0}


def test_an_override_that_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(UserError, match="prompts"):
        load(Outer, write(tmp_path, ""), ["prompts=["])


def test_an_override_of_a_list_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected keys and values"):
        load(Outer, write(tmp_path, "- model"), ["out=x"])


def test_missing_file():
    with pytest.raises(UserError, match=r"cannot read config nowhere\.yaml: No such file"):
        load(Outer, "nowhere.yaml")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("out: grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml"):
        load(Outer, path)


def test_required_keys_are_named():
    with pytest.raises(UserError, match="grid"):
        from_dict(StreamConfig, {"text_length": 3, "text_vocab": 5, "image_vocab": 7})


# --- hostile texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1, 1]\nb: [*a, *a]", "aliases are not supported"),
        ("&a [*a]", "aliases are not supported"),
        ("a: &a {x: 1}\nb: {<<: *a}", "aliases are not supported"),
        ("[" * 5000 + "]" * 5000, "nested more than 20 levels deep"),
        ("".join(" " * level + "a:\n" for level in range(60)), "nested more than 20 levels deep"),
        ("a: 1\nb: 2\na: 3", "key 'a' is there twice"),
        ("a: 2001-13-45", "a value that cannot be read"),
        ("a: " + "9" * 5000, "a value that cannot be read"),
        ("? [1]\n: 2", "a list or mapping as a key"),
        ("!!python/object/apply:os.mkdir [hacked]", "could not determine a constructor"),
        ("!!int {}", "expected a scalar node"),
        ("!!timestamp x", "a value that cannot be read"),
        ("# " + "x" * 300_000, "expected up to 262,144"),
    ],
)
def test_yaml_that_is_large_deep_or_ambiguous_is_refused_in_one_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(yaml.YAMLError, match=reason):
        read_yaml(text)
    Path("config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load(TransformerConfig, "config.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_many_keys_take_time_linear_in_their_number():
    text = "".join(f"a{number}: 1\n" for number in range(20_000))
    assert len(read_yaml(text)) == 20_000


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "1e999"])
def test_a_setting_that_is_no_finite_number_is_refused(value):
    with pytest.raises(UserError, match=r"temperature: expected float, got '?-?(nan|inf|1e999)"):
        from_dict(SamplingConfig, read_yaml(f"temperature: {value}"))


@pytest.mark.parametrize("key", ["top_k", "temperature"])
def test_a_number_that_no_machine_can_count_is_refused(key):
    with pytest.raises(
        UserError, match=rf"{key}: expected a number of at most 9223372036854775807, got one with 31 dig"
    ):
        from_dict(SamplingConfig, {key: 10**30})


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UserError, match="top_k: expected int, got 'xxx") as caught:
        from_dict(SamplingConfig, {"top_k": "x" * 100_000})
    assert len(str(caught.value)) < 300


def test_a_device_or_a_pipe_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "link.yaml"):
        with pytest.raises(
            UserError, match=rf"expected config, got .*{name}, which is a (device or socket|pipe); give"
        ):
            load(TransformerConfig, tmp_path / name)
    with pytest.raises(UserError, match="which is a folder"):
        load(TransformerConfig, tmp_path)
