"""Old names of config keys: read from files with a warning, from checkpoints without one."""

import dataclasses
import warnings

import pytest

from dalle_mini_impl.config import model, renamed
from dalle_mini_impl.config.model import BlockConfig, ImageTokenizerConfig, ImportedNetworkConfig, TransformerConfig
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
CASES = pytest.mark.parametrize(
    ("text", "expected"),
    [(OLD_TRANSFORMER, NEW_TRANSFORMER), (OLD_IMAGE_TOKENIZER, NEW_IMAGE_TOKENIZER)],
    ids=["transformer", "image_tokenizer"],
)


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@CASES
def test_old_names_in_a_file_are_read_with_one_warning_each(tmp_path, text, expected):
    path = write(tmp_path, text)
    with pytest.warns(UserWarning, match="was renamed to") as caught:
        assert load(type(expected), path) == expected
    messages = [str(warning.message) for warning in caught]
    old_names = {
        old
        for kind in renamed.KEYS.values()
        for old in kind
        if any(f"{old!r} was renamed" in line for line in messages)
    }
    assert len(messages) == len(set(messages))
    if expected is NEW_TRANSFORMER:
        assert old_names == {*renamed.KEYS["TransformerConfig"], *renamed.KEYS["BlockConfig"]}
        assert f"{path}: 'masks_from' was renamed to 'mask_origin'; write 'mask_origin'" in messages
        assert f"{path}: block: 'shift' was renamed to 'token_shift'; write 'token_shift'" in messages
    else:
        assert old_names == {"foreign"}
        assert f"{path}: network 'ours' was renamed to 'vqvae'; write 'vqvae'" in messages


@CASES
def test_old_names_in_a_checkpoint_are_read_without_a_warning(text, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_dict(type(expected), read_yaml(text)) == expected


def test_old_names_in_overrides_are_read_with_a_warning(tmp_path):
    path = write(tmp_path, "n_layer: 3")
    with pytest.warns(UserWarning, match="'kernel' was renamed to 'mask_kernel'"):
        assert load(TransformerConfig, path, ["kernel=7"]).mask_kernel == 7


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


@pytest.mark.parametrize("kind", [kind for kind in renamed.KEYS if hasattr(model, kind)])
def test_the_table_leads_from_keys_that_are_gone_to_keys_that_exist(kind):
    names = {field.name for field in dataclasses.fields(getattr(model, kind))}
    assert not names & set(renamed.KEYS[kind])
    assert names >= set(renamed.KEYS[kind].values())
