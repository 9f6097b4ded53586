"""`dalle info`."""

import json
import shutil

from click.testing import CliRunner
from helpers.commands import one_line
from helpers.models import IMAGE_TOKENIZER, make_image_tokenizer

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.yaml_io import to_dict


def run_info(*arguments):
    result = CliRunner().invoke(dalle, ["info", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_info_describes_the_parts(tiny_model):
    info = json.loads(run_info(tiny_model, "--json", "-"))
    assert info["text_tokenizer"]["vocab_size"] == 367
    assert info["transformer"]["trained_with"]["image_tokenizer"] == info["image_tokenizer"]["identity"]
    assert set(info) > {"model", "checkpoint", "sampling", "scorer"}
    for name in ("image_tokenizer", "transformer", "scorer"):
        tensors = read_part(tiny_model, name).tensors.values()
        assert info[name]["parameters"] == sum(tensor.numel() for tensor in tensors)
        assert "numbers" not in info[name]
    assert info["transformer"]["identity"] in run_info(tiny_model)


def test_info_describes_an_incomplete_checkpoint(tiny_model, tmp_path):
    shutil.copy(tiny_model / "image_tokenizer.safetensors", tmp_path)
    assert set(json.loads(run_info(tmp_path, "--json", "-"))) == {"model", "image_tokenizer"}


def test_a_json_file_is_written_beside_the_text(tiny_model, tmp_path):
    printed = run_info(tiny_model, "--json", tmp_path / "info.json")
    assert printed == run_info(tiny_model) + f"{tmp_path / 'info.json'}\n"
    assert json.loads((tmp_path / "info.json").read_text()) == json.loads(run_info(tiny_model, "--json", "-"))


def test_missing_empty_and_damaged_checkpoints_are_refused(tiny_model, refused, tmp_path):
    one_line(refused("info", "nothing"))
    assert "has no part of a model" in one_line(refused("info", tmp_path))
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "scorer.safetensors").write_bytes(b"damaged")
    assert "scorer.safetensors is damaged" in one_line(refused("info", folder))


def test_parts_that_do_not_belong_together_are_marked(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "image_tokenizer.safetensors").unlink()
    new = save_part(folder, "image_tokenizer", make_image_tokenizer(seed=11), to_dict(IMAGE_TOKENIZER), {})
    info = json.loads(run_info(folder, "--json", "-"))
    assert info["transformer"]["mismatched"] == ["image_tokenizer"]
    assert "mismatched" not in info["scorer"]
    old = info["transformer"]["trained_with"]["image_tokenizer"]
    (line,) = [line for line in run_info(folder).splitlines() if "not the one here" in line]
    assert f"image tokenizer {old}, not the one here: the two cannot be used together" in line
    assert f"identity {new}" in run_info(folder)
    assert "not the one here" not in run_info(tiny_model)
