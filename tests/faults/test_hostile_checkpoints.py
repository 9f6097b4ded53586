"""Files that somebody made to do harm: each loads right or ends with one line, in little memory, and runs no code."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers.foreign_dalle_pytorch import dalle_file_content
from helpers.foreign_examples import DISCRETE_VAE, DVAE_DECODER, DVAE_ENCODER, LLAMAGEN, VQGAN
from helpers.hostile import JSON_VALUES, MakesFolder, in_small_child, mutate_bytes, mutate_json
from helpers.priors import add_every_part, skip_without
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
from dalle_mini_impl.checkpoint.parts import PARTS, Part, read_part, weights_identity
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.checkpoint import CheckpointConfig
from dalle_mini_impl.config.shipped import shipped_configs
from dalle_mini_impl.config.yaml_io import from_dict, load
from dalle_mini_impl.interop.image import dalle_pytorch_vae, llamagen_vq, openai_dvae, taming_vqgan
from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
from dalle_mini_impl.interop.whole import dalle_pytorch, mindalle, rudalle
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.stages import STAGES
from dalle_mini_impl.unclip.prior import Prior
from dalle_mini_impl.util.errors import UserError

ROW = "hostile checkpoints and imports"
DIFFUSED = ("diffusion_decoder", "upsampler")


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    """A copy of the checkpoint that a test may change, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return add_every_part(shutil.copytree(tiny_model, tmp_path / "model"))


def write_part(part, config=None, tensors=None, trained_with=None):
    """Write a part as an attacker would: with a right identity and without a digest."""
    tensors = part.tensors if tensors is None else tensors
    header = {
        "config": config if isinstance(config, str) else json.dumps(part.config if config is None else config),
        "identity": weights_identity(tensors),
        "trained_with": json.dumps(part.trained_with if trained_with is None else trained_with),
    }
    save_file(tensors, part.path, metadata=header)


def use(folder, diffused=False):
    """Describe a checkpoint, load it and draw one picture, or two."""
    info_lines(checkpoint_info(folder))
    model = DalleMini.from_pretrained(folder, "cpu", "fp32")
    model.generate("a red heart", candidates=1, keep=1, seed=0)
    Prior.from_pretrained(folder, model.scorer).draw(["a red heart"], [0])
    if diffused:
        model.generate("a red heart", candidates=1, keep=1, seed=0, decoder="diffusion", steps=1)


def check(cases, report, row=ROW, what=""):
    worked, refused, failures = in_small_child(cases)
    assert not failures, "\n".join(failures[:10])
    report(row, f"{what}: {refused} refused in one line, {worked} harmless")
    return worked, refused


@pytest.mark.parametrize("name", PARTS)
def test_parts_with_any_config(folder, name, tries, report):
    skip_without(folder, name)
    part = read_part(folder, name)
    original = part.path.read_bytes()
    choose = random.Random(name)

    def cases():
        for number in range(tries(600, 25)):
            config = mutate_json(part.config, choose)
            part.path.write_bytes(original)
            write_part(part, config)
            yield f"{number} {json.dumps(config)[:600]}", lambda: use(folder, name in DIFFUSED)

    check(cases(), report, what=f"{name} configs")


def hostile_tensors(part: Part, choose: random.Random):
    """Tensors of a part of which one is missing, another one, or of another shape or type."""
    tensors = dict(part.tensors)
    name = choose.choice(sorted(tensors))
    value = tensors.pop(name)
    action = choose.randrange(7)
    if action == 0:
        tensors["more"] = torch.ones(3)
    elif action == 1:
        tensors[name] = value.flatten()[:-1].contiguous()
    elif action == 2:
        tensors[name] = torch.full_like(value, torch.nan) if value.is_floating_point() else value.float()
    elif action == 3:
        tensors[name] = value.to(choose.choice((torch.int64, torch.bool, torch.complex64, torch.float64)))
    elif action == 4:
        tensors[name] = torch.zeros(0)
    elif action == 5:
        tensors[f"{name}\x1b[2J\n"] = value
    return tensors


@pytest.mark.parametrize("name", PARTS)
def test_parts_with_other_tensors(folder, name, tries, report):
    skip_without(folder, name)
    part = read_part(folder, name)
    choose = random.Random(name)

    def cases():
        for number in range(tries(150, 12)):
            write_part(part, tensors=hostile_tensors(part, choose))
            yield str(number), lambda: use(folder, name in DIFFUSED)

    check(cases(), report, what=f"{name} tensors")


def test_headers_of_any_kind(folder, tries, report):
    part = read_part(folder, "transformer")
    choose = random.Random(0)
    texts = ["", "[", "[" * 50_000, "{}", "[]", "NaN", "9" * 5000, '{"stream": {"a": ' * 900, "\x1b[2J", '"x"']

    def cases():
        for text in texts:
            write_part(part, config=text)
            yield f"config {text[:20]!r}", lambda: use(folder)
        for value in JSON_VALUES:
            write_part(part, trained_with=value)
            yield f"trained_with {value!r:.40}", lambda: use(folder)
            write_part(part, trained_with={"text_tokenizer": value})
            yield f"trained_with a text tokenizer {value!r:.40}", lambda: use(folder)
        write_part(part)
        content = part.path.read_bytes()
        header = content[: 8 + int.from_bytes(content[:8], "little")]
        for number in range(tries(500, 40)):
            part.path.write_bytes(mutate_bytes(header, choose) + content[len(header) :])
            yield f"header {number}", lambda: read_part(folder, "transformer")
        for length in (2**63, 2**40, 2**25, 99_999_999):
            part.path.write_bytes(length.to_bytes(8, "little") + content[8:])
            yield f"length {length}", lambda: read_part(folder, "transformer")

    check(cases(), report, what="headers")


@pytest.mark.parametrize("trust", [False, True])
def test_pickles_run_no_code_in_any_import_format(folder, tmp_path, trust, report):
    loads = {
        "taming-vqgan": lambda path: taming_vqgan.load(path, trust_pickle=trust),
        "llamagen-vq": lambda path: llamagen_vq.load(path, trust_pickle=trust),
        "openai-dvae": lambda path: openai_dvae.load([path, path], trust_pickle=trust),
        "dalle-pytorch-vae": lambda path: dalle_pytorch_vae.load(path, trust_pickle=trust),
        "dalle-pytorch": lambda path: dalle_pytorch.load(path, trust_pickle=trust),
        "mindalle": lambda path: mindalle.load(path, 2, 0, trust),
        "rudalle": lambda path: rudalle.load(path, 2, trust),
    }
    bomb = MakesFolder(tmp_path / "hacked")
    contents = {
        "bomb": bomb,
        "state_dict": {"state_dict": {**VQGAN, "bomb": bomb}},
        "ema": {"ema": {**LLAMAGEN}, "args": bomb},
        "weights": {"weights": {**DISCRETE_VAE}, "hparams": {"image_size": bomb}},
        "dalle": dalle_file_content(vae_params=bomb, version=bomb),
        "hparams": dalle_file_content(hparams=bomb),
        "encoder": {**DVAE_ENCODER, "bomb": bomb},
        "decoder": {**DVAE_DECODER, bomb.path: bomb},
        "list": [bomb, {"model": bomb}],
    }
    folder_before = sorted(tmp_path.rglob("*"))

    def cases():
        for name, content in contents.items():
            for archive in (True, False):
                torch.save(content, "file.pt", _use_new_zipfile_serialization=archive)
                for kind, load_file in loads.items():
                    yield f"{kind} {name} {archive}", lambda load_file=load_file: load_file("file.pt")
            Path("file.pt").write_bytes(pickle.dumps(content))
            for kind, load_file in loads.items():
                yield f"{kind} {name} plain", lambda load_file=load_file: load_file("file.pt")
            for name_of_part in PARTS:
                shutil.copy("file.pt", folder / f"{name_of_part}.safetensors")
                yield f"part {name}", lambda name_of_part=name_of_part: read_part(folder, name_of_part)

    worked, refused = check(cases(), report, what=f"pickles {'trusted' if trust else 'not trusted'}")
    assert refused > worked
    assert {*tmp_path.rglob("*")} - {*folder_before} == {tmp_path / "file.pt"}


def test_mutated_files_of_other_projects(folder, tries, report):
    torch.save({"state_dict": VQGAN}, "good.ckpt")
    torch.save(dalle_file_content(), "good.pt")
    choose = random.Random(0)

    def cases():
        for name, load_file in (("good.ckpt", taming_vqgan.load), ("good.pt", dalle_pytorch.load)):
            content = Path(name).read_bytes()
            for number in range(tries(400, 12)):
                Path("bad.pt").write_bytes(mutate_bytes(content, choose))
                for trust in (False, True):
                    yield (
                        f"{name} {number}",
                        lambda load_file=load_file, trust=trust: load_file("bad.pt", trust_pickle=trust),
                    )
        for number in range(tries(600, 25)):
            dalle = dalle_file_content()
            dalle["hparams"] = mutate_json(dalle["hparams"], choose)
            torch.save(
                {**dalle, "version": choose.choice(JSON_VALUES), "vae_params": choose.choice(JSON_VALUES)}, "bad.pt"
            )
            yield f"hparams {number} {dalle['hparams']}"[:500], lambda: dalle_pytorch.load("bad.pt")

    check(cases(), report, what="files of other projects")


def test_configs_of_every_stage(tmp_path, monkeypatch, tries, report):
    monkeypatch.chdir(tmp_path)
    choose = random.Random(0)
    stages = {stage.file_name: stage for stage in STAGES.values()}
    shipped = [(stages[path.stem], path.read_bytes()) for path in shipped_configs().values() if path.stem in stages]

    def cases():
        for number in range(tries(2000, 120)):
            stage, content = choose.choice(shipped)
            Path("config.yaml").write_bytes(mutate_bytes(content, choose))
            yield f"{stage.file_name} {number}", lambda stage=stage: load(stage.config, "config.yaml")

    check(cases(), report, what="stage configs")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["name", "sampling", "about", "top_k", "quality", "value", "x"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_settings_of_any_values_are_read_or_refused(values):
    message = ""
    try:
        from_dict(CheckpointConfig, values, "config.yaml")
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_settings_of_a_checkpoint(folder, tries, report):
    path = folder / "config.yaml"
    content = path.read_bytes()
    choose = random.Random(0)

    def cases():
        for number in range(tries(600, 40)):
            path.write_bytes(mutate_bytes(content, choose))
            yield str(number), lambda: load_settings(folder)

    check(cases(), report, what="settings")


def test_files_of_text_tokenizers(folder, tries, report):
    choose = random.Random(0)
    content = (folder / "text_tokenizer.model").read_bytes()
    word_level = {"type": "WordLevel", "vocab": {"[UNK]": 0, "red": 1, "heart": 2}, "unk_token": "[UNK]"}
    json_content = {"version": "1.0", "added_tokens": [], "model": word_level, "dalle_mini_impl": {"pad_id": 0}}

    def trained():
        TextTokenizer("bad.model").encode("a red heart")

    def imported():
        JsonTokenizer.read(Path("bad.json")).encode("red heart")

    def converted():
        import_text_tokenizer("bad.json").encode("red heart")

    def cases():
        for number in range(tries(600, 40)):
            Path("bad.model").write_bytes(mutate_bytes(content, choose))
            yield f"model {number}", trained
            Path("bad.json").write_text(json.dumps(mutate_json(json_content, choose)))
            yield f"json {number}", imported
            yield f"import {number}", converted
            Path("bad.json").write_bytes(mutate_bytes(json.dumps(json_content).encode(), choose))
            yield f"json bytes {number}", imported
            yield f"import bytes {number}", converted
        for text in ("[" * 100_000, '{"a":' * 100_000, "1 1\n" * 10, "999999999 999999999\n1 1", "#version: 0.2\na b"):
            Path("bad.json").write_text(text)
            yield f"text {text[:20]}", imported
            yield f"text {text[:20]}", converted

    check(cases(), report, what="text tokenizers")
