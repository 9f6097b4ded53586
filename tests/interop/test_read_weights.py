"""Reading files of other projects, and `dalle import` on them."""

import argparse
import functools
import os
import pickle
import re
import sys
import types

import pytest
import torch
import yaml
from helpers import foreign_image_tokenizers
from helpers.foreign_image_tokenizers import random_tensors
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dalle_mini_impl import DalleMini, ImageTokenizer
from dalle_mini_impl.interop import read_weights as files
from dalle_mini_impl.interop import safe_pickle as pickles
from dalle_mini_impl.interop.image import dalle_pytorch, llamagen, openai_dvae, taming
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.util.errors import UserError

SHAPES = foreign_image_tokenizers.vqgan_shapes(32, (1, 1), (1,), z=11, embed=7, ids=61, blocks=1)
VQGAN = random_tensors(SHAPES)
LLAMAGEN = {foreign_image_tokenizers.llamagen_names(SHAPES, 2)[name]: value for name, value in VQGAN.items()}
ENCODER, DECODER = (random_tensors(part) for part in foreign_image_tokenizers.openai_shapes(hidden=8, init=5, ids=61))
VAE = random_tensors(foreign_image_tokenizers.dalle_pytorch_shapes(3, 1, hidden=11, embed=7, ids=61), gain=1.6)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(run):
    """Run `dalle import`, and give what it printed."""
    return functools.partial(run, "import")


def same_weights(imported, tensors, name_of=taming.foreign_name):
    state = imported.tokenizer.state_dict()
    assert len(state) == len(tensors)
    return all(torch.equal(value, tensors[name_of(name)]) for name, value in state.items())


# --- wrappers, prefixes and what is left out


def test_a_plain_state_dict_is_read_in_every_form(tmp_path):
    save_file(VQGAN, "a.safetensors")
    torch.save(VQGAN, "b.pt")
    torch.save(VQGAN, "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt", "c.pt"):
        imported = taming.load(tmp_path / name)
        assert same_weights(imported, VQGAN)
        assert (imported.dtype, imported.left_out) == (torch.float32, 0)
        assert not imported.tokenizer.training


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "module.", "_orig_mod."])
def test_wrappers_prefixes_and_losses_are_taken_off(prefix):
    others = {
        "loss.discriminator.main.0.weight": torch.zeros(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(3),
        "model_ema.encoderconv_inweight": torch.zeros(3),
    }
    state = {prefix + name: value for name, value in {**VQGAN, **others}.items()}
    if prefix:
        state["transformer.tok_emb.weight"] = torch.zeros(3)
    torch.save({"epoch": 3, "state_dict": state}, "last.ckpt")
    imported = taming.load("last.ckpt")
    assert same_weights(imported, VQGAN)
    assert imported.left_out == 3 + bool(prefix)


def test_of_a_transformers_two_networks_the_first_stage_is_taken():
    other = random_tensors(SHAPES, seed=1)
    state = {f"first_stage_model.{name}": value for name, value in VQGAN.items()}
    state |= {f"cond_stage_model.{name}": value for name, value in other.items()}
    torch.save({"state_dict": state}, "net2net.ckpt")
    assert same_weights(taming.load("net2net.ckpt"), VQGAN)


def test_a_vqgan_is_found_in_a_dalles_file():
    weights = {f"vae.model.{name}": value for name, value in VQGAN.items()}
    torch.save({"hparams": {"dim": 3}, "weights": {**weights, "text_emb.weight": torch.zeros(3)}}, "dalle.pt")
    assert same_weights(taming.load("dalle.pt"), VQGAN)


def test_of_two_unknown_networks_none_is_taken():
    torch.save({f"{net}.{name}": value for net in "ab" for name, value in VQGAN.items()}, "two.pt")
    with pytest.raises(UserError, match=r"two.pt holds several networks, under 'a\.', 'b\.'; give a file with one"):
        taming.load("two.pt")


def test_llamagen_prefers_averaged_weights():
    counts = {"quantize.codebook_used": torch.zeros(101)}
    other = {name: value + 1 for name, value in LLAMAGEN.items()}
    torch.save({"model": {**other, **counts}, "ema": {**LLAMAGEN, **counts}, "steps": 3}, "both.pt")
    torch.save({"model": LLAMAGEN, "steps": 3}, "model.pt")

    def name_of(name):
        return llamagen.foreign_name(name, 2)

    averaged = llamagen.load("both.pt")
    assert same_weights(averaged, LLAMAGEN, name_of)
    assert averaged.left_out == 1
    assert same_weights(llamagen.load("model.pt"), LLAMAGEN, name_of)


def test_a_vae_is_found_in_its_own_file_and_in_a_dalles():
    hparams = {"image_size": 32, "num_layers": 3}
    torch.save({"hparams": hparams, "weights": VAE}, "vae.pt")
    weights = {**{f"vae.{name}": value for name, value in VAE.items()}, "text_emb.weight": torch.zeros(3)}
    torch.save({"hparams": {"dim": 3}, "vae_params": hparams, "weights": weights}, "dalle.pt")
    torch.save(VAE, "bare.pt")
    own, inside, bare = (dalle_pytorch.load(name) for name in ("vae.pt", "dalle.pt", "bare.pt"))
    assert [imported.tokenizer.config.image_size for imported in (own, inside, bare)] == [32, 32, 256]
    assert dalle_pytorch.load("vae.pt", image_size=64).tokenizer.config.image_size == 64
    assert [imported.left_out for imported in (own, inside, bare)] == [0, 1, 0]
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    ids = own.tokenizer.encode(pixels)
    assert all(torch.equal(imported.tokenizer.encode(pixels), ids) for imported in (inside, bare))


# --- pickles


def pickled_module():
    """A module of a class that nobody has, holding an attribute nobody has either, as OpenAI's files do."""
    package = types.ModuleType("gone")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(nn.Linear(5, 7), nn.Upsample(scale_factor=2)))
            self.register_buffer("count", torch.arange(3))
            self.device, self.other = torch.device("cpu"), Thing()

    class Thing(list):
        pass

    for kind in (Net, Thing):
        kind.__module__, kind.__qualname__ = "gone", kind.__name__
        setattr(package, kind.__name__, kind)
    sys.modules["gone"] = package
    net = Net()
    net.other.extend([1, 2])
    net.other.append(3)
    return net


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_of_a_pickled_module_only_tensors_are_built(archive, recwarn):
    net = pickled_module()
    state = net.state_dict()
    torch.save(net, "net.pkl", _use_new_zipfile_serialization=archive)
    del sys.modules["gone"]
    recwarn.clear()
    content = files.read("net.pkl", trust_pickle=True)
    assert not recwarn.list
    tensors = files.state_dict(content, "net.pkl").tensors
    assert tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())
    assert not any(value.requires_grad for value in tensors.values())


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_pickle_is_run(tmp_path, archive):
    content = {"state_dict": VQGAN, "callbacks": {Bomb: 3}, "bomb": Bomb(tmp_path / "exploded")}
    torch.save(content, "last.ckpt", _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match="holds more than tensors"):
        taming.load("last.ckpt")
    imported = taming.load("last.ckpt", trust_pickle=True)
    assert same_weights(imported, VQGAN)
    assert not (tmp_path / "exploded").exists()


def test_a_stand_in_takes_anything():
    thing = pickles.StandIn(1, named=2)
    thing["key"] = 3
    thing.append(4)
    thing.extend([5])
    thing.__setstate__(("not", "a table"))
    thing.__setstate__({"_modules": {"a": None}, "_parameters": {"w": torch.ones(2), "b": None}, "_buffers": 3})
    assert list(pickles.module_tensors(thing)) == ["w"]


def test_files_that_hold_more_are_refused_with_the_reason(run):
    torch.save({"state_dict": VQGAN, "args": argparse.Namespace(lr=1)}, "last.ckpt")
    message = run("taming-vqgan", "last.ckpt", "--out", "part", code=1)
    assert "last.ckpt holds more than tensors (argparse.Namespace)" in message
    assert "can run programs" in message
    assert "--trust-pickle" in message
    assert "image tokenizer" in run("taming-vqgan", "last.ckpt", "--out", "part", "--trust-pickle")


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", bytes(99), pickle.dumps(os.system, 4), b"PK\x03\x04 and no more"],
    ids=["empty", "html", "zeros", "pickle", "half an archive"],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, content, trust):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} (is damaged, or neither|holds more than)"):
            files.read(name, trust)


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torchscript_is_refused(trust):
    torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)).save("net.pt")
    with pytest.raises(UserError, match=r"net.pt is damaged, or neither"):
        files.read("net.pt", trust)
    with pytest.raises(ValueError, match="TorchScript"):
        pickles.load("net.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("archive", [True, False])
def test_a_truncated_pickle_is_refused(tmp_path, share, archive):
    torch.save({"state_dict": VQGAN, "args": argparse.Namespace(lr=1)}, "a.pt", _use_new_zipfile_serialization=archive)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="is damaged, or neither"):
        files.read("a.pt", trust_pickle=True)


def test_missing_files_folders_and_files_without_tensors_are_refused(run, tmp_path):
    assert "no file nowhere.pt" in run("taming-vqgan", "nowhere.pt", "--out", "part", code=1)
    assert "no file nowhere.safetensors" in run("taming-vqgan", "nowhere.safetensors", "--out", "part", code=1)
    assert "is damaged, or neither" in run("taming-vqgan", tmp_path, "--out", "part", code=1)
    torch.save({"epoch": 3}, "empty.pt")
    torch.save([1, 2], "list.pt")
    for name in ("empty.pt", "list.pt"):
        assert f"{name} holds no tensors" in run("taming-vqgan", name, "--out", "part", code=1)
    assert not (tmp_path / "part").exists()


# --- tensors that do not fit


def altered(tensors, **changes):
    """A copy with some tensors replaced; None takes one away. Dots are written as __."""
    new = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in new.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder__conv_in__bias": None}, r"the \d+ tensors expected: 1 missing \(decoder.conv_in.bias\)$"),
        (
            {"quant_conv__bias": None, "quantize__used": torch.zeros(3), "decoder__conv_out__bias": torch.ones(5)},
            r"1 missing \(quant_conv.bias\); 1 not known \(quantize.used\); "
            r"1 of another shape \(decoder.conv_out.bias is \(5,\), expected \(3,\)\)$",
        ),
        (
            {f"extra__{number}": torch.zeros(1) for number in range(9)},
            r"9 not known \(extra.0, extra.1, extra.2 and 6 more\)$",
        ),
        ({"quant_conv__weight": None}, "has no quant_conv.weight, which tells the shape"),
        ({"quant_conv__weight": torch.tensor(3.0)}, r"quant_conv.weight has shape \(\); it is damaged"),
        ({"encoder__down__1__block__0__conv2__weight": None}, "has no encoder.down.1.block.0.conv2.weight"),
        ({"quantize__embedding__weight": None}, "neither quantize.embedding.weight nor quantize.proj.weight"),
        ({"encoder__conv_in__weight": None}, "no tensor whose name ends with encoder.conv_in.weight; its"),
        ({"encoder__conv_in__weight": torch.zeros(8, 3, 3, 3)}, "a width of 8 was given"),
        ({"decoder__conv_in__bias": torch.zeros(32, dtype=torch.int8)}, "not floating-point: decoder.conv_in.bias;"),
    ],
)
def test_tensors_that_do_not_fit_are_named(run, changes, message):
    torch.save(altered(VQGAN, **changes), "vqgan.pt")
    assert re.search(message, run("taming-vqgan", "vqgan.pt", "--out", "part", code=1))


def test_files_of_another_format_are_refused(run):
    torch.save(VQGAN, "taming.pt")
    torch.save(LLAMAGEN, "llamagen.pt")
    torch.save(VAE, "vae.pt")
    assert "has no encoder.down.0.block.0.conv2.weight" in run("taming-vqgan", "llamagen.pt", "--out", "p", code=1)
    assert "has no encoder.conv_blocks.0.res.0.conv2" in run("llamagen-vq", "taming.pt", "--out", "p", code=1)
    assert "ends with encoder.conv_in.weight" in run("taming-vqgan", "vae.pt", "--out", "p", code=1)
    assert "ends with codebook.weight" in run("dalle-pytorch-vae", "taming.pt", "--out", "p", code=1)
    assert "ends with blocks.input.w" in run("openai-dvae", "taming.pt", "vae.pt", "--out", "p", code=1)


def test_a_vae_with_transparency_is_refused(run):
    torch.save(altered(VAE, encoder__0__0__weight=torch.zeros(11, 4, 4, 4)), "vae.pt")
    message = run("dalle-pytorch-vae", "vae.pt", "--out", "part", code=1)
    assert "encoder.0.0.weight is (11, 4, 4, 4), expected (11, 3, 4, 4)" in message
    torch.save(altered(VAE, encoder__0__0__weight=None), "vae.pt")
    assert "has no encoder.0.0.weight" in run("dalle-pytorch-vae", "vae.pt", "--out", "part", code=1)


def test_the_dvae_takes_an_encoder_and_a_decoder(run):
    torch.save(ENCODER, "encoder.pt")
    torch.save(DECODER, "decoder.pt")
    torch.save({**ENCODER, "blocks.input.w": torch.zeros(8, 3, 5, 5)}, "odd.pt")
    for pair in (("encoder.pt", "encoder.pt"), ("decoder.pt", "decoder.pt"), ("odd.pt", "decoder.pt")):
        assert "give two files, an encoder and a decoder" in run("openai-dvae", *pair, "--out", "part", code=1)
    with pytest.raises(UserError, match=r"encoder.pt: found encoder; give two files"):
        openai_dvae.load(["encoder.pt"])
    with pytest.raises(UserError, match="give two files"):
        openai_dvae.load(["encoder.pt", "decoder.pt", "decoder.pt"])
    torch.save(altered(DECODER, blocks__output__conv__b=None), "decoder.pt")
    message = run("openai-dvae", "decoder.pt", "encoder.pt", "--out", "part", code=1)
    assert "1 missing (decoder.blocks.output.conv.b)" in message
    none = {name: value for name, value in ENCODER.items() if "group" not in name}
    torch.save(none, "encoder.pt")
    assert "has no encoder.blocks.group_1" in run("openai-dvae", "decoder.pt", "encoder.pt", "--out", "p", code=1)


def test_few_names_then_a_count():
    assert files.few(["a", "b", "c"]) == "a, b, c"
    assert files.few(["a", "b", "c", "d"], shown=2) == "a, b and 2 more"
    assert (
        Weights("f", {"a.3.x": torch.zeros(1), "a.3.y": torch.zeros(1), "a.7.x": torch.zeros(1)}).count(r"a\.(\d+)")
        == 2
    )


# --- the command


FILES = {
    "taming-vqgan": {"vqgan.pt": VQGAN},
    "llamagen-vq": {"vq.pt": {"model": LLAMAGEN}},
    "openai-dvae": {"encoder.pt": ENCODER, "decoder.pt": DECODER},
    "dalle-pytorch-vae": {"vae.pt": {"hparams": {"image_size": 64}, "weights": VAE}},
}
FACTORS = {"taming-vqgan": 2, "llamagen-vq": 2, "openai-dvae": 8, "dalle-pytorch-vae": 8}


@pytest.mark.parametrize("name", FILES)
def test_every_format_becomes_a_part_that_works(run, name, tmp_path):
    for file, content in FILES[name].items():
        torch.save(content, file)
    printed = run(name, *FILES[name], "--out", "new/part", "--image-size", "48")
    side = 48 // FACTORS[name]
    assert f"61 image ids, each for {FACTORS[name]}×{FACTORS[name]} pixels, {side}×{side} for 48×48" in printed
    tokenizer = ImageTokenizer.from_pretrained("new/part")
    assert f"{len(tokenizer.state_dict())} tensors" in printed
    assert tokenizer.config.grid == (side, side)
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    ids = tokenizer.encode(pixels)
    assert ids.shape == (2, 16 // FACTORS[name], 24 // FACTORS[name])
    assert tokenizer.decode(ids).shape == pixels.shape
    with safe_open("new/part/image_tokenizer.safetensors", "pt") as part:
        assert part.metadata()["identity"] in printed
        assert {str(part.get_tensor(key).dtype) for key in part.keys()} == {"torch.float32"}  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parts_keep_the_precision_of_the_file(run, dtype, tmp_path):
    torch.save({name: value.to(dtype) for name, value in VAE.items()}, "vae.pt")
    run("dalle-pytorch-vae", "vae.pt", "--out", "part")
    with safe_open("part/image_tokenizer.safetensors", "pt") as part:
        assert {part.get_tensor(key).dtype for key in part.keys()} == {dtype}  # noqa: SIM118
    table = ImageTokenizer.from_pretrained("part").quantizer.embed.weight
    assert table.dtype == torch.float32
    assert torch.equal(table, VAE["codebook.weight"].to(dtype).float())


def test_mixed_precisions_lose_nothing():
    torch.save(altered(VAE, codebook__weight=VAE["codebook.weight"].half()), "vae.pt")
    assert dalle_pytorch.load("vae.pt").dtype == torch.float32


def test_options_reach_the_part(run):
    torch.save(VAE, "vae.pt")
    torch.save(LLAMAGEN, "vq.pt")
    run("dalle-pytorch-vae", "vae.pt", "--out", "a", "--mean", 0.1, 0.2, 0.3, "--std", 1, 2, 3)
    config = ImageTokenizer.from_pretrained("a").config
    assert (config.imported.mean, config.imported.std, config.image_size) == (
        (0.1, 0.2, 0.3),
        (1.0, 2.0, 3.0),
        256,
    )
    for number, (option, quantizer) in enumerate([((), "cosine"), (("--no-codebook-norm",), "nearest")]):
        run("llamagen-vq", "vq.pt", "--out", f"b{number}", *option)
        assert ImageTokenizer.from_pretrained(f"b{number}").config.quantizer == quantizer


def test_a_part_that_is_there_is_not_replaced(run, tmp_path):
    torch.save(VAE, "vae.pt")
    run("dalle-pytorch-vae", "vae.pt", "--out", "part")
    before = (tmp_path / "part/image_tokenizer.safetensors").read_bytes()
    assert "is there already; choose another folder" in run("dalle-pytorch-vae", "vae.pt", "--out", "part", code=1)
    assert (tmp_path / "part/image_tokenizer.safetensors").read_bytes() == before


def test_bad_options_are_refused(run):
    torch.save(VAE, "vae.pt")
    assert "divided by it" in run("dalle-pytorch-vae", "vae.pt", "--out", "p", "--std", 1, 0, 1, code=1)
    refusal = run("dalle-pytorch-vae", "vae.pt", "--out", "p", "--image-size", "20", code=1)
    assert "image_size 20 is not a multiple of factor 8" in refusal
    assert "0 is not in the range" in run("dalle-pytorch-vae", "vae.pt", "--out", "p", "--image-size", "0", code=2)
    assert "Missing option '--out'" in run("dalle-pytorch-vae", "vae.pt", code=2)
    assert "takes 2 values" in run("openai-dvae", "vae.pt", "--out", "p", code=2)
    assert "No such command 'vqvae'" in run("vqvae", "vae.pt", "--out", "p", code=2)
    assert "Missing argument 'FILE'" in run("taming-vqgan", "--out", "p", code=2)


# --- in place of our own


def test_a_transformer_is_trained_and_drawn_from_on_top_of_an_imported_part(untrained, tmp_path, run):
    home = untrained.copy(tmp_path / "home")
    torch.save({"hparams": {"image_size": 16}, "weights": VAE}, "vae.pt")
    run("dalle-pytorch-vae", "vae.pt", "--out", home.folder / "model")
    config = yaml.safe_load((home.folder / "transformer.yaml").read_text())
    config["run"]["steps"] = 1
    (home.folder / "transformer.yaml").write_text(yaml.safe_dump(config))
    for stage in ("text_tokenizer", "encode", "transformer"):
        home.run(stage)
    model = DalleMini.from_pretrained(home.folder / "model", "cpu")
    result = model.generate("a red disc", candidates=2, keep=1)
    assert result[0].image.size == (16, 16)
    assert result[0].image_ids.shape == (2, 2)
    assert model.image_tokenizer.codebook_size == 61
