"""Tensors are found in files of other projects, whatever surrounds them; files that hold none are refused."""

import argparse
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.foreign_examples import DISCRETE_VAE, LLAMAGEN, VQGAN, VQGAN_SHAPES, has_weights
from helpers.foreign_tensors import random_tensors
from safetensors.torch import save_file
from torch import nn

from dalle_mini_impl.interop.image import dalle_pytorch_vae, llamagen_vq, taming_vqgan
from dalle_mini_impl.interop.read_weights import Weights, abbreviate, read_file
from dalle_mini_impl.util.errors import UserError

# --- wrappers, prefixes and ignored tensors


def test_dictionary_of_tensors_is_read_in_every_file_format(tmp_path):
    save_file(VQGAN, "a.safetensors")
    torch.save(VQGAN, "b.pt")
    torch.save(VQGAN, "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt", "c.pt"):
        imported = taming_vqgan.load(tmp_path / name)
        assert has_weights(imported, VQGAN)
        assert (imported.dtype, imported.ignored) == (torch.float32, 0)
        assert not imported.tokenizer.training


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "module.", "_orig_mod."])
def test_wrappers_prefixes_and_training_tensors_are_removed(prefix):
    training_tensors = {
        "loss.discriminator.main.0.weight": torch.zeros(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(3),
        "model_ema.encoderconv_inweight": torch.zeros(3),
    }
    state = {prefix + name: value for name, value in {**VQGAN, **training_tensors}.items()}
    if prefix:
        state["transformer.tok_emb.weight"] = torch.zeros(3)
    torch.save({"epoch": 3, "state_dict": state}, "last.ckpt")
    imported = taming_vqgan.load("last.ckpt")
    assert has_weights(imported, VQGAN)
    assert imported.ignored == 3 + bool(prefix)


def test_first_stage_is_selected_among_the_networks_of_a_transformer():
    other = random_tensors(VQGAN_SHAPES, seed=1)
    state = {f"first_stage_model.{name}": value for name, value in VQGAN.items()}
    state |= {f"cond_stage_model.{name}": value for name, value in other.items()}
    torch.save({"state_dict": state}, "net2net.ckpt")
    assert has_weights(taming_vqgan.load("net2net.ckpt"), VQGAN)


def test_several_networks_without_a_first_stage_are_refused():
    torch.save({f"{network}.{name}": value for network in "ab" for name, value in VQGAN.items()}, "two.pt")
    with pytest.raises(UserError, match=r"expected one network, got several in two.pt, with the prefixes 'a\.', 'b\.'"):
        taming_vqgan.load("two.pt")


def test_vqgan_is_found_in_a_dalle_pt():
    weights = {f"vae.model.{name}": value for name, value in VQGAN.items()}
    torch.save({"hparams": {"dim": 3}, "weights": {**weights, "text_emb.weight": torch.zeros(3)}}, "dalle.pt")
    assert has_weights(taming_vqgan.load("dalle.pt"), VQGAN)


def test_averaged_weights_of_llamagen_are_preferred():
    usage = {"quantize.codebook_used": torch.zeros(101)}
    not_averaged = {name: value + 1 for name, value in LLAMAGEN.items()}
    torch.save({"model": {**not_averaged, **usage}, "ema": {**LLAMAGEN, **usage}, "steps": 3}, "both.pt")
    torch.save({"model": LLAMAGEN, "steps": 3}, "model.pt")

    def foreign_name(name):
        return llamagen_vq.foreign_name(name, 2)

    averaged = llamagen_vq.load("both.pt")
    assert has_weights(averaged, LLAMAGEN, foreign_name)
    assert averaged.ignored == 1
    assert has_weights(llamagen_vq.load("model.pt"), LLAMAGEN, foreign_name)


def test_discrete_vae_is_found_in_vae_pt_in_dalle_pt_and_alone():
    hparams = {"image_size": 32, "num_layers": 3}
    torch.save({"hparams": hparams, "weights": DISCRETE_VAE}, "vae.pt")
    weights = {**{f"vae.{name}": value for name, value in DISCRETE_VAE.items()}, "text_emb.weight": torch.zeros(3)}
    torch.save({"hparams": {"dim": 3}, "vae_params": hparams, "weights": weights}, "dalle.pt")
    torch.save(DISCRETE_VAE, "bare.pt")
    own, inside, bare = (dalle_pytorch_vae.load(name) for name in ("vae.pt", "dalle.pt", "bare.pt"))
    assert [imported.tokenizer.config.image_size for imported in (own, inside, bare)] == [32, 32, 256]
    assert dalle_pytorch_vae.load("vae.pt", image_size=64).tokenizer.config.image_size == 64
    assert [imported.ignored for imported in (own, inside, bare)] == [0, 1, 0]
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    ids = own.tokenizer.encode(pixels)
    assert all(torch.equal(imported.tokenizer.encode(pixels), ids) for imported in (inside, bare))


def test_mixed_precisions_are_promoted():
    torch.save({**DISCRETE_VAE, "codebook.weight": DISCRETE_VAE["codebook.weight"].half()}, "vae.pt")
    assert dalle_pytorch_vae.load("vae.pt").dtype == torch.float32


@pytest.mark.parametrize(
    "keys",
    [("model",), ("ema",), ("params_ema",), ("state_dict",), ("net",), ("model", "state_dict")],
    ids=".".join,
)
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.module.", "_orig_mod.", "net._orig_mod."])
def test_tensors_are_found_under_the_usual_keys_and_prefixes(keys, prefix):
    content = {prefix + name: value for name, value in VQGAN.items()}
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, "model.pt")
    assert has_weights(taming_vqgan.load("model.pt"), VQGAN)


def test_compiled_layers_inside_a_network_are_found():
    content = {name.replace("encoder.", "encoder._orig_mod.", 1): value for name, value in VQGAN.items()}
    torch.save(content, "model.pt")
    assert has_weights(taming_vqgan.load("model.pt"), VQGAN)


@pytest.mark.parametrize("wrap", [False, True])
def test_averaged_weights_are_preferred(wrap):
    latest = {name: value + 1 for name, value in VQGAN.items()}
    if wrap:
        content = {"params": latest, "params_ema": VQGAN}
    else:
        content = {f"net.{name}": value for name, value in latest.items()}
        content |= {f"net_ema.{name}": value for name, value in VQGAN.items()}
    torch.save(content, "model.pt")
    assert has_weights(taming_vqgan.load("model.pt"), VQGAN)


@pytest.mark.parametrize("name", ["A.SAFETENSORS", "a.SafeTensors", "weights", "model.ckpt"])
def test_safetensors_are_recognised_whatever_their_suffix(name):
    save_file(VQGAN, name)
    assert has_weights(taming_vqgan.load(name), VQGAN)


# --- files that cannot be read


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(2**31), torch.zeros(4000).as_strided((2000, 2000), (1, 1)), torch.eye(3).to_sparse()],
    ids=["stride 0", "overlapping", "sparse"],
)
def test_tensors_that_make_many_numbers_of_few_are_refused(tensor):
    torch.save({**VQGAN, "decoder.conv_in.bias": tensor}, "a.pt")
    with pytest.raises(UserError, match=r"expected tensors that hold all their numbers, got decoder\.conv_in\.bias of"):
        taming_vqgan.load("a.pt")


@pytest.mark.parametrize("trust", [True, False])
def test_tensors_without_numbers_are_refused(trust):
    torch.save({"state_dict": {**VQGAN, "decoder.conv_in.bias": torch.zeros(3, device="meta")}}, "a.pt")
    with pytest.raises(UserError, match=r"is damaged or neither|hold all their numbers"):
        taming_vqgan.load("a.pt", trust_pickle=trust)


@pytest.mark.parametrize("trust", [True, False])
def test_archives_that_unpack_to_more_than_their_size_are_refused(trust):
    torch.save(VQGAN, "plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
        bomb.writestr("archive/data/999", bytes(2**22))
    with pytest.raises(UserError, match=r"got bomb\.pt, which is damaged or neither"):
        read_file("bomb.pt", trust)


@pytest.mark.parametrize("trust", [True, False])
def test_tars_are_not_unpacked(trust):
    Path("storages").write_bytes(pickle.dumps(3))
    with tarfile.open("a.pt", "w") as tar:
        tar.add("storages")
    with pytest.raises(UserError, match=r"got a\.pt, which is damaged or neither"):
        read_file("a.pt", trust)


def test_devices_and_pipes_are_refused():
    os.mkfifo("pipe.pt")
    Path("zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.pt", "zero.safetensors"):
        with pytest.raises(
            UserError, match=f"expected a file to import, got {name}, which is a (device or socket|pipe); give"
        ):
            read_file(name)


def test_long_safetensors_header_is_refused():
    Path("a.safetensors").write_bytes((2**25).to_bytes(8, "little") + b"{" + bytes(99))
    with pytest.raises(UserError, match="is damaged or neither"):
        read_file("a.safetensors")


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", bytes(99), pickle.dumps(os.system, 4), b"PK\x03\x04 and no more"],
    ids=["empty", "html", "zeros", "pickle", "half an archive"],
)
def test_files_that_are_no_weights_are_refused(tmp_path, content, trust):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            UserError, match=f"got {name}, which is damaged or neither|got .* in {name}; such a file can"
        ):
            read_file(name, trust)


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torchscript_is_refused(trust):
    torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)).save("net.pt")
    with pytest.raises(UserError, match=r"got net.pt, which is damaged or neither"):
        read_file("net.pt", trust)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_truncated_file_is_refused(tmp_path, fraction, archive):
    torch.save({"state_dict": VQGAN, "args": argparse.Namespace(lr=1)}, "a.pt", _use_new_zipfile_serialization=archive)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match="is damaged or neither"):
        read_file("a.pt", trust_pickle=True)


# --- names


def test_long_lists_of_names_are_abbreviated():
    assert abbreviate(["a", "b", "c"]) == "a, b, c"
    assert abbreviate(["a", "b", "c", "d"], shown=2) == "a, b and 2 more"


def test_indices_in_names_are_counted_once():
    names = ("a.3.x", "a.3.y", "a.7.x")
    assert Weights("f", {name: torch.zeros(1) for name in names}).count_indices(r"a\.(\d+)") == 2
