"""Old names of config keys: read from files with a warning, from checkpoints without one."""

import dataclasses
import warnings

import pytest

from dalle_mini_impl.config import model, renamed, training
from dalle_mini_impl.config.model import BlockConfig, ImageTokenizerConfig, ImportedNetworkConfig, TransformerConfig
from dalle_mini_impl.config.training import PlateauConfig, TransformerRun
from dalle_mini_impl.config.yaml_io import from_dict, load, read_yaml
from dalle_mini_impl.util.errors import UserError

OLD_TRANSFORMER = """
n_layer: 3
attention: [row, column]
last_attention: conv
kernel: 5
masks_from: target
stable: true
block: {turn_values: true, shift: true}
"""
NEW_TRANSFORMER = TransformerConfig(
    n_layer=3,
    attention_masks=("row", "column"),
    last_attention_mask="conv",
    mask_kernel=5,
    mask_origin="target",
    divide_by_max=True,
    block=BlockConfig(rotate_values=True, token_shift=True),
)
OLD_IMAGE_TOKENIZER = """
network: ours
foreign: {stem: 64}
"""
NEW_IMAGE_TOKENIZER = ImageTokenizerConfig(network="vqvae", imported=ImportedNetworkConfig(stem=64))
OLD_RUN = """
languages: {no: 3}
plateau: {least_gain: 0.5}
model: {kernel: 5}
"""
NEW_RUN = TransformerRun(
    language_weights={"no": 3.0}, plateau=PlateauConfig(min_gain=0.5), model=TransformerConfig(mask_kernel=5)
)


def renamed_to(old, new):
    return f"{old!r} was renamed to {new!r}; write {new!r}"


CASES = pytest.mark.parametrize(
    ("text", "expected", "warned"),
    [
        (
            OLD_TRANSFORMER,
            NEW_TRANSFORMER,
            [
                *(renamed_to(*names) for names in renamed.KEYS["TransformerConfig"].items()),
                *(f"block: {renamed_to(*names)}" for names in renamed.KEYS["BlockConfig"].items()),
            ],
        ),
        (
            OLD_IMAGE_TOKENIZER,
            NEW_IMAGE_TOKENIZER,
            [renamed_to("foreign", "imported"), f"network {renamed_to('ours', 'vqvae')}"],
        ),
        (
            OLD_RUN,
            NEW_RUN,
            [
                renamed_to("languages", "language_weights"),
                f"plateau: {renamed_to('least_gain', 'min_gain')}",
                f"model: {renamed_to('kernel', 'mask_kernel')}",
            ],
        ),
    ],
    ids=["transformer", "image_tokenizer", "run"],
)


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@CASES
def test_old_names_in_a_file_are_read_with_one_warning_each(tmp_path, text, expected, warned):
    path = write(tmp_path, text)
    with pytest.warns(UserWarning, match="was renamed to") as caught:
        assert load(type(expected), path) == expected
    messages = [str(warning.message) for warning in caught]
    assert sorted(messages) == sorted(f"{path}: {message}" for message in warned)


@CASES
def test_old_names_in_a_checkpoint_are_read_without_a_warning(text, expected, warned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_dict(type(expected), read_yaml(text)) == expected


def test_old_names_in_overrides_are_read_with_a_warning(tmp_path):
    path = write(tmp_path, "n_layer: 3")
    with pytest.warns(UserWarning, match="'kernel' was renamed to 'mask_kernel'"):
        assert load(TransformerConfig, path, ["kernel=7"]).mask_kernel == 7


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("plateau: {least_gain: 0.5}", "plateau.min_gain=0.25"),
        ("plateau: {min_gain: 0.5}", "plateau.least_gain=0.25"),
        ("plateau: {least_gain: 0.5}", "plateau.least_gain=0.25"),
        ("plateau: {least_gain: 0.5}", "plateau={least_gain: 0.25}"),
        ("", "plateau.least_gain=0.25"),
    ],
)
def test_an_override_wins_whichever_of_the_names_each_has(tmp_path, text, override):
    path = write(tmp_path, text)
    with pytest.warns(UserWarning, match="'least_gain' was renamed to 'min_gain'") as caught:
        assert load(TransformerRun, path, [override]).plateau == PlateauConfig(min_gain=0.25)
    assert all(str(path) in str(one.message) or f"override {override!r}" in str(one.message) for one in caught)


def test_new_names_are_read_without_a_warning(tmp_path):
    path = write(tmp_path, "attention_masks: [row]\nblock: {token_shift: true}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load(TransformerConfig, path)
    assert (config.attention_masks, config.block.token_shift) == (("row",), True)


def test_both_names_at_once_are_refused(tmp_path):
    path = write(tmp_path, "kernel: 5\nmask_kernel: 7\n")
    with pytest.raises(UserError, match="'kernel' is the old name of 'mask_kernel', and both are given"):
        load(TransformerConfig, path)


@pytest.mark.parametrize("kind", renamed.KEYS)
def test_the_table_leads_from_keys_that_are_gone_to_keys_that_exist(kind):
    names = {field.name for field in dataclasses.fields(getattr(training, kind, None) or getattr(model, kind))}
    assert not names & set(renamed.KEYS[kind])
    assert names >= set(renamed.KEYS[kind].values())
