"""Part files of checkpoints: content, identity, damage, and which parts fit together."""

import copy
import errno
import json
import os
import pickle
import shutil

import pytest
import torch
from helpers.models import CAPTIONS, IMAGE_TOKENIZER, TRANSFORMER, make_image_tokenizer, make_transformer
from safetensors.torch import load_file, save_file

from dalle_mini_impl.checkpoint import parts as checkpoint
from dalle_mini_impl.checkpoint.find import find_checkpoint, load_text_tokenizer
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE, add_text_tokenizer
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import train_text_tokenizer
from dalle_mini_impl.util.errors import UserError

PARTS = {
    "image_tokenizer": load_image_tokenizer,
    "transformer": load_transformer,
    "scorer": Scorer.from_pretrained,
}


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def write_part_with(path, tensors=None, **header):
    """Rewrite a part file, as early versions did, with other tensors or header entries (None removes one)."""
    part = checkpoint.read_part(path.parent, path.stem)
    if tensors is not None:
        header.setdefault("identity", checkpoint.weights_identity(tensors))
    old = {"config": json.dumps(part.config), "identity": part.identity, "trained_with": json.dumps(part.trained_with)}
    metadata = {name: value for name, value in {**old, **header}.items() if value is not None}
    save_file(tensors if tensors is not None else part.tensors, path, metadata=metadata)


# --- parts


def test_loaded_weights_are_float32_rounded_to_bfloat16(tmp_path):
    tokenizer = make_image_tokenizer()
    checkpoint.save_part(tmp_path, "image_tokenizer", tokenizer, to_dict(IMAGE_TOKENIZER), {})
    loaded, _ = load_image_tokenizer(tmp_path)
    assert not loaded.training
    state = loaded.state_dict()
    for name, value in tokenizer.state_dict().items():
        if value.is_floating_point():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], value.bfloat16().float()), name
        else:
            assert torch.equal(state[name], value), name


def test_loading_and_saving_again_gives_the_same_part(folder, tmp_path):
    transformer, stream = load_transformer(folder)
    part = checkpoint.read_part(folder, "transformer")
    config = {"stream": to_dict(stream), "transformer": to_dict(TRANSFORMER)}
    identity = checkpoint.save_part(tmp_path / "resaved", "transformer", transformer, config, part.trained_with)
    resaved = checkpoint.read_part(tmp_path / "resaved", "transformer")
    assert identity == resaved.identity == part.identity
    assert (resaved.config, resaved.trained_with) == (part.config, part.trained_with)
    assert resaved.tensors.keys() == part.tensors.keys()
    assert all(torch.equal(value, part.tensors[name]) for name, value in resaved.tensors.items())


def test_saving_does_not_change_the_module(tmp_path):
    transformer, _ = make_transformer()
    before = copy.deepcopy(transformer.state_dict())
    checkpoint.save_part(tmp_path, "transformer", transformer, {}, {})
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())


def test_part_holds_its_config_and_the_identities_it_was_trained_with(folder):
    part = checkpoint.read_part(folder, "transformer")
    assert part.config["transformer"] == to_dict(TRANSFORMER)
    assert part.config["stream"]["grid"] == [3, 5]
    assert part.trained_with == {
        "text_tokenizer": load_text_tokenizer(folder).identity,
        "image_tokenizer": checkpoint.read_part(folder, "image_tokenizer").identity,
    }


def test_identity_depends_on_the_weights_alone(tmp_path):
    def identity(module, config):
        return checkpoint.save_part(tmp_path, "transformer", module, config, {})

    first = identity(make_transformer()[0], {"a": 1})
    assert identity(make_transformer()[0], {"a": 2}) == first
    changed = make_transformer()[0]
    with torch.no_grad():
        changed.blocks[1].mlp.down.weight[3, 5] += 1
    assert identity(changed, {"a": 1}) != first
    assert identity(torch.nn.Linear(3, 5), {}) != identity(torch.nn.Linear(3, 5), {})
    same = torch.nn.ParameterDict({"a": torch.ones(2, 3)}), torch.nn.ParameterDict({"a": torch.ones(3, 2)})
    assert identity(same[0], {}) != identity(same[1], {})
    assert identity(same[0], {}) != identity(torch.nn.ParameterDict({"b": torch.ones(2, 3)}), {})


def test_part_files_hold_two_bytes_per_weight(folder):
    weights = sum(value.numel() for value in load_file(folder / "transformer.safetensors").values())
    assert (folder / "transformer.safetensors").stat().st_size < 2 * weights + 5000


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_refused_by_name(folder, part):
    (folder / f"{part}.safetensors").unlink()
    with pytest.raises(UserError, match=rf"has no {part}\.safetensors"):
        PARTS[part](folder)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("fraction", [0, 0.003, 0.5, 0.999])
def test_truncated_part_is_refused(folder, part, fraction):
    path = folder / f"{part}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match=rf"{part}\.safetensors is damaged"):
        PARTS[part](folder)


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("save", [torch.save, pickle.dump], ids=["torch", "pickle"])
def test_no_pickle_is_read(folder, tmp_path, part, save):
    with (folder / f"{part}.safetensors").open("wb") as file:
        save(Bomb(tmp_path / "exploded"), file)
    with pytest.raises(UserError, match=rf"{part}\.safetensors is damaged"):
        PARTS[part](folder)
    with pytest.raises(UserError):
        checkpoint.fingerprint(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("missing", ["config", "identity", "trained_with"])
def test_file_without_a_header_entry_is_refused(folder, missing):
    write_part_with(folder / "image_tokenizer.safetensors", **{missing: None})
    with pytest.raises(UserError, match=r"image_tokenizer\.safetensors is damaged or was not written by"):
        load_image_tokenizer(folder)


def test_file_without_header_is_refused(folder):
    save_file({"weight": torch.ones(3)}, folder / "scorer.safetensors")
    with pytest.raises(UserError, match=r"scorer\.safetensors is damaged or was not written by"):
        Scorer.from_pretrained(folder)
    with pytest.raises(UserError, match=r"scorer\.safetensors"):
        checkpoint.fingerprint(folder)


@pytest.mark.parametrize("config", ["{}", "[]", '{"stream": {}, "transformer": {}}', "{half"])
def test_wrong_config_in_the_header_is_refused(folder, config):
    write_part_with(folder / "transformer.safetensors", config=config)
    with pytest.raises(UserError, match=r"transformer\.safetensors"):
        load_transformer(folder)


def test_weights_that_do_not_fit_their_config_are_refused(folder):
    part = checkpoint.read_part(folder, "image_tokenizer")
    write_part_with(folder / "image_tokenizer.safetensors", config=json.dumps({**part.config, "embed_dim": 7}))
    with pytest.raises(UserError, match="does not fit its own config") as caught:
        load_image_tokenizer(folder)
    assert "\n" not in str(caught.value)
    tensors = dict(part.tensors)
    tensors.popitem()
    write_part_with(folder / "image_tokenizer.safetensors", tensors, config=json.dumps(part.config))
    with pytest.raises(UserError, match="does not fit its own config"):
        load_image_tokenizer(folder)


# --- damage


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_not_those_that_were_written_are_refused(folder, part):
    path = folder / f"{part}.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{part}\.safetensors is damaged .*\(its weights are not those that were wri"):
        PARTS[part](folder)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"n_layer", b"n_lager", "its header is not the one that was written"),
        (b'"identity":"', b'"identify":"', "expected the header entries config, identity, trained_with, got"),
        (b'"digest":', b'"divest":', "expected the header entries config, identity, trained_with, got"),
    ],
)
def test_header_that_is_not_the_one_that_was_written_is_refused(folder, old, new, reason):
    path = folder / "transformer.safetensors"
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    for weights in (True, False):
        with pytest.raises(UserError, match=rf"transformer\.safetensors is damaged .*({reason})"):
            checkpoint.read_part(folder, "transformer", weights=weights)


def test_part_of_an_early_version_has_no_digest(folder):
    path = folder / "transformer.safetensors"
    before = checkpoint.read_part(folder, "transformer")
    write_part_with(path)
    assert b"digest" not in path.read_bytes()
    after = checkpoint.read_part(folder, "transformer")
    assert (before.identity, before.config, before.trained_with) == (after.identity, after.config, after.trained_with)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_numbers_are_neither_written_nor_read(folder, value):
    path = folder / "scorer.safetensors"
    before = path.read_bytes()
    tensors = checkpoint.read_part(folder, "scorer").tensors
    name = sorted(tensors)[3]
    tensors[name].flatten()[-1] = value
    with pytest.raises(UserError, match=rf"expected finite weights for scorer, got infinite ones or NaN in {name}"):
        checkpoint.save_tensors(folder, "scorer", tensors, {}, {})
    assert path.read_bytes() == before
    write_part_with(path, tensors)
    with pytest.raises(UserError, match=rf"scorer\.safetensors is damaged .*\(NaN or infinity in {name}\)"):
        Scorer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("transformer", {"n_layer": 1_000_000}),
        ("transformer", {"n_embd": 2**30}),
        ("transformer", {"n_head": 0}),
        ("transformer", {"n_layer": -1}),
        ("transformer", {"block": {"hidden": 2**40}}),
        ("image_tokenizer", {"encoder_blocks": 1_000_000}),
        ("image_tokenizer", {"codebook_size": 2**40}),
        ("image_tokenizer", {"channels": [32] * 10_000}),
        ("image_tokenizer", {"factor": 0}),
        ("scorer", {"text_layers": 1_000_000}),
        ("scorer", {"image_size": 2**31}),
        ("scorer", {"patch_size": 0}),
    ],
)
def test_config_of_a_larger_network_is_refused_before_it_is_built(folder, part, changes):
    config = checkpoint.read_part(folder, part).config
    config = (
        {**config, "transformer": {**config["transformer"], **changes}}
        if part == "transformer"
        else {**config, **changes}
    )
    write_part_with(folder / f"{part}.safetensors", config=json.dumps(config))
    with pytest.raises(UserError, match=rf"{part}\.safetensors does not fit its own config: ") as caught:
        PARTS[part](folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"bos_id": 367}, {"pad_id": 2**40}, {"text_length": 0}, {"grid": [0, 5]}, {"image_vocab": -1}]
)
def test_stream_that_no_model_can_have_is_refused(folder, changes):
    config = checkpoint.read_part(folder, "transformer").config
    config["stream"] |= changes
    write_part_with(folder / "transformer.safetensors", config=json.dumps(config))
    message = r"transformer\.safetensors does not fit its own config: expected (a stream whose|bos_id and pad_id below)"
    with pytest.raises(UserError, match=message):
        load_transformer(folder)


def test_part_that_is_no_regular_file_is_refused(folder):
    path = folder / "scorer.safetensors"
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
        path.unlink()
        replace(path)
        with pytest.raises(
            UserError, match=r"expected part, got .*scorer\.safetensors, which is a (device|folder|pipe)"
        ):
            checkpoint.read_part(folder, "scorer")


def test_denied_access_is_not_taken_for_damage(folder, monkeypatch):
    def deny(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(
        UserError, match=r"cannot read part .*scorer\.safetensors: permission denied; change its access"
    ):
        checkpoint.read_part(folder, "scorer")


def test_part_has_the_access_rights_of_any_new_file(folder):
    (folder / "other").touch()
    checkpoint.save_part(folder, "transformer", make_transformer(seed=5)[0], {}, {})
    assert (folder / "transformer.safetensors").stat().st_mode == (folder / "other").stat().st_mode


# --- written whole or not at all


def test_failure_while_saving_leaves_the_old_part(folder, monkeypatch):
    before = (folder / "transformer.safetensors").read_bytes()
    names = sorted(path.name for path in folder.iterdir())

    def half(tensors, path, metadata):
        path.write_bytes(before[:1000])
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(UserError, match="disk full"):
        checkpoint.save_part(folder, "transformer", make_transformer(seed=5)[0], {}, {})
    assert (folder / "transformer.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == names
    load_transformer(folder)


def test_part_is_replaced_in_one_step(folder, monkeypatch):
    save = checkpoint.save_file
    path = folder / "transformer.safetensors"
    before = path.read_bytes()

    def watch(tensors, temporary, metadata):
        save(tensors, temporary, metadata=metadata)
        assert path.read_bytes() == before

    monkeypatch.setattr(checkpoint, "save_file", watch)
    checkpoint.save_part(folder, "transformer", make_transformer(seed=5)[0], {}, {})
    assert path.read_bytes() != before


# --- what belongs together


def replace_text_tokenizer(folder):
    return train_text_tokenizer(CAPTIONS[::-1], folder / "text_tokenizer.model", 353)


@pytest.mark.parametrize("part", ["transformer", "scorer"])
def test_part_of_another_text_tokenizer_is_refused_naming_both(folder, part):
    old = load_text_tokenizer(folder).identity
    new = replace_text_tokenizer(folder).identity
    with pytest.raises(UserError) as caught:
        PARTS[part](folder)
    for word in (f"{part}.safetensors", "text_tokenizer", old, new):
        assert word in str(caught.value)


def test_transformer_of_another_image_tokenizer_is_refused_naming_both(folder):
    old = checkpoint.read_part(folder, "image_tokenizer").identity
    (folder / "image_tokenizer.safetensors").unlink()
    new = checkpoint.save_part(folder, "image_tokenizer", make_image_tokenizer(seed=11), to_dict(IMAGE_TOKENIZER), {})
    with pytest.raises(UserError) as caught:
        load_transformer(folder)
    for word in ("transformer.safetensors", "image_tokenizer", old, new):
        assert word in str(caught.value)
    Scorer.from_pretrained(folder)  # does not depend on the image tokenizer


def test_folder_refuses_a_different_text_tokenizer(folder, tmp_path):
    old = load_text_tokenizer(folder)
    other = train_text_tokenizer(CAPTIONS[::-1], tmp_path / "other.model", 353)
    with pytest.raises(UserError) as caught:
        add_text_tokenizer(folder, tmp_path / "other.model")
    assert old.identity in str(caught.value)
    assert other.identity in str(caught.value)
    assert load_text_tokenizer(folder).identity == old.identity


def test_the_same_text_tokenizer_may_be_added_again(folder):
    path = folder / "text_tokenizer.model"
    before = path.read_bytes()
    assert add_text_tokenizer(folder, path).vocab_size == 367
    assert path.read_bytes() == before


def test_damaged_text_tokenizer_is_not_added(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"bad")
    with pytest.raises(UserError, match=r"bad\.model"):
        add_text_tokenizer(tmp_path / "model", tmp_path / "bad.model")
    assert not (tmp_path / "model" / "text_tokenizer.model").exists()


def test_fingerprint_covers_every_part(folder):
    first = checkpoint.fingerprint(folder)
    assert checkpoint.fingerprint(folder) == first
    checkpoint.save_part(folder, "scorer", torch.nn.Linear(3, 5), {}, {})
    second = checkpoint.fingerprint(folder)
    (folder / "scorer.safetensors").unlink()
    third = checkpoint.fingerprint(folder)
    replace_text_tokenizer(folder)
    assert len({first, second, third, checkpoint.fingerprint(folder)}) == 4


# --- names


def test_checkpoint_is_found_by_folder_or_shipped_name(folder, tmp_path, monkeypatch):
    shipped = tmp_path / "pretrained"
    shutil.copytree(folder, shipped / "heart")
    monkeypatch.setattr("dalle_mini_impl.checkpoint.find.SHIPPED_MODELS", shipped)
    assert find_checkpoint(folder) == folder
    assert find_checkpoint(str(folder)) == folder
    assert find_checkpoint("heart") == shipped / "heart"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "heart")
    assert find_checkpoint("heart") == shipped / "heart"  # the shipped name wins over a folder of that name
    assert find_checkpoint("./heart").resolve() == tmp_path / "heart"


@pytest.mark.parametrize("name", ["hart", "nowhere/at/all", "../pretrained/heart", "heart/transformer.safetensors"])
def test_unknown_model_is_refused_naming_the_shipped_ones(folder, tmp_path, monkeypatch, name):
    shutil.copytree(folder, tmp_path / "pretrained" / "heart")
    monkeypatch.setattr("dalle_mini_impl.checkpoint.find.SHIPPED_MODELS", tmp_path / "pretrained")
    with pytest.raises(UserError) as caught:
        find_checkpoint(name)
    assert repr(name) in str(caught.value)
    assert "(heart)" in str(caught.value)


def test_unknown_model_is_refused_where_none_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.checkpoint.find.SHIPPED_MODELS", tmp_path / "nothing")
    with pytest.raises(UserError, match="no model 'emoji'"):
        find_checkpoint("emoji")


def test_text_tokenizer_is_read_once_until_its_file_changes(tiny_model, tmp_path):
    target = tmp_path / TEXT_TOKENIZER_FILE
    shutil.copyfile(tiny_model / TEXT_TOKENIZER_FILE, target)
    first = load_text_tokenizer(tmp_path)
    assert load_text_tokenizer(tmp_path) is first
    shutil.copyfile(find_checkpoint("emoji") / TEXT_TOKENIZER_FILE, target)
    assert load_text_tokenizer(tmp_path).identity == load_text_tokenizer("emoji").identity


def test_part_is_read_without_its_weights(tiny_model):
    whole, header = (checkpoint.read_part(tiny_model, "scorer", weights=weights) for weights in (True, False))
    assert (header.identity, header.config, header.trained_with) == (whole.identity, whole.config, whole.trained_with)
    assert whole.tensors
    assert not header.tensors


def test_a_copied_part_is_the_same_and_replaces_none_that_is_needed(tiny_model, tmp_path):
    identity = checkpoint.copy_part(tiny_model, "image_tokenizer", tmp_path / "copy")
    name = "image_tokenizer.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (tiny_model / name).read_bytes()
    assert identity == checkpoint.read_part(tiny_model, "image_tokenizer").identity
    shutil.copytree(tiny_model, tmp_path / "needed")
    other = make_image_tokenizer()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    checkpoint.save_part(tmp_path / "other", "image_tokenizer", other, to_dict(other.config), {})
    with pytest.raises(UserError, match="without parts that need its image_tokenizer"):
        checkpoint.copy_part(tmp_path / "other", "image_tokenizer", tmp_path / "needed")
    content = (tmp_path / "other" / name).read_bytes()
    (tmp_path / "other" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.copy_part(tmp_path / "other", "image_tokenizer", tmp_path / "third")
    assert not (tmp_path / "third").exists()
