"""Training from the weights of a checkpoint: what is copied, what is taken over, what is refused."""

import shutil

import pytest
import torch
import yaml
from helpers.training import identity, interrupt, outcome, run_sharded

from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
from dalle_mini_impl.checkpoint.parts import read_part, save_tensors
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer, matching_ids, train_text_tokenizer
from dalle_mini_impl.util.errors import UserError

STANDING = ("optimizer.learning_rate=0", "optimizer.muon_learning_rate=0", "run.steps=2", "run.sample_every=0")
"""Settings under which no weight changes."""


@pytest.fixture
def start(trained, tmp_path):
    """A home without transformer and scorer, whose configs start from those of `trained` and name no model settings."""
    home = trained.copy(tmp_path / "home", "transformer", "scorer", "image_tokenizer")
    for part in ("transformer", "scorer"):
        (home.folder / "model" / f"{part}.safetensors").unlink(missing_ok=True)
    for stage in ("image_tokenizer", "transformer", "scorer"):
        path = home.folder / f"{stage}.yaml"
        values = yaml.safe_load(path.read_text())
        values["start_from"] = str(trained.folder / "model")
        for key in ("model", "text_tokenizer", "text_length"):
            values.pop(key, None)
        path.write_text(yaml.safe_dump(values))
    return home


def part(home, name):
    return read_part(home.folder / "model", name)


# --- what is copied


@pytest.mark.parametrize("stage", ["transformer", "scorer"])
def test_without_a_step_the_weights_and_settings_are_those_of_the_checkpoint(start, trained, stage):
    start.run(stage, *STANDING)
    old, new = part(trained, stage), part(start, stage)
    assert new.identity == old.identity
    assert new.config == old.config
    assert new.trained_with == {**old.trained_with, "start_from": old.identity}


def test_an_image_tokenizer_starts_from_the_weights_of_the_checkpoint(start, trained):
    start.run("image_tokenizer", *STANDING)
    old, new = part(trained, "image_tokenizer"), part(start, "image_tokenizer")
    assert new.config == old.config
    assert new.trained_with == {"start_from": old.identity}
    # The codebook is an average of what is encoded, so it moves whatever the learning rate is.
    trained_names = [name for name in old.tensors if not name.startswith("quantizer.")]
    assert trained_names
    assert all(torch.equal(old.tensors[name], new.tensors[name]) for name in trained_names)


def test_an_image_tokenizer_for_pictures_of_twice_the_size_starts_with_the_same_ids(start, trained):
    start.run("image_tokenizer", *STANDING, "model.image_size=32", "model.factor=16")
    old, new = (load_image_tokenizer(home.folder / "model")[0] for home in (trained, start))
    old.quantizer = new.quantizer  # the codebook moves; see above
    small = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    ids = old.encode(small)
    assert torch.equal(new.encode(large), ids)
    assert torch.allclose(new.decode(ids), old.decode(ids).repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-5)


def test_training_continues_from_there(start, trained):
    start.run("transformer")
    assert start.log("transformer")[0]["image"] < trained.log("transformer")[0]["image"]


def test_a_checkpoint_says_what_it_started_from(start, trained):
    start.run("transformer", *STANDING)
    (line,) = load_settings(trained.folder / "model").about.data
    assert load_settings(start.folder / "model").about.data == (line, f"{trained.folder}/model: {line}")
    lines = "\n".join(info_lines(checkpoint_info(start.folder / "model")))
    assert f"started from transformer {identity(trained, 'transformer')}" in lines
    assert "cannot be used together" not in lines
    load_transformer(start.folder / "model")


def test_text_rows_follow_their_pieces_to_another_text_tokenizer(start, trained, tmp_path, capsys):
    other = tmp_path / "other.model"
    train_text_tokenizer([f"a purple disc number {n}" for n in range(40)], other, 290)
    (start.folder / "model" / "text_tokenizer.model").unlink()
    capsys.readouterr()
    start.run("transformer", *STANDING, f"text_tokenizer={other}", "text_length=14")
    assert "text_length 14 in place of 11 moves pictures away from what it knows" in capsys.readouterr().out
    old_tokenizer = TextTokenizer(trained.folder / "model" / "text_tokenizer.model")
    new_tokenizer = TextTokenizer(other)
    old, old_config = load_transformer(trained.folder / "model")
    new, new_config = load_transformer(start.folder / "model")
    assert new_config.text_length == 14
    matches = matching_ids(new_tokenizer, old_tokenizer)
    assert len(matches) == new_tokenizer.vocab_size
    assert any(len(ids) > 1 for ids in matches)
    old_stream, new_stream = Stream(old_config), Stream(new_config)
    for name in ("embed", "head"):
        before, after = getattr(old, name).weight, getattr(new, name).weight
        for number, ids in enumerate(matches):
            assert torch.allclose(after[number], before[ids].mean(0), atol=1e-2)  # stored in bf16
        paddings = after[new_config.text_vocab : new_stream.image_offset]
        assert torch.equal(paddings[:11], before[old_config.text_vocab : old_stream.image_offset])
        assert torch.equal(paddings[11:], before[old_stream.image_offset - 1].expand(3, -1))
        assert torch.equal(after[new_stream.image_offset :], before[old_stream.image_offset :])
    start.run("scorer", *STANDING, f"text_tokenizer={other}")
    name = "text_tower.tokens.weight"
    before, after = part(trained, "scorer").tensors[name], part(start, "scorer").tensors[name]
    assert all(torch.allclose(after[row], before[ids].float().mean(0).bfloat16()) for row, ids in enumerate(matches))


def test_matching_ids_are_pieces_of_the_same_text(trained, tmp_path):
    old = TextTokenizer(trained.folder / "model" / "text_tokenizer.model")
    new = train_text_tokenizer(["ein gelber Hund", "ein grüner Hund", "ring"] * 9, tmp_path / "new.model", 290)
    matches = matching_ids(new, old)
    for role in ("pad_id", "bos_id", "eos_id"):
        assert matches[getattr(new, role)] == [getattr(old, role)]
    byte = new.pieces.index("<0x41>")
    assert matches[byte] == [old.pieces.index("<0x41>")]
    words = [number for number, piece in enumerate(new.pieces) if not piece.startswith("<")]
    assert [old.decode(matches[number]) for number in words] == [new.decode([number]) for number in words]
    assert matching_ids(old, old) == [[number] for number in range(old.vocab_size)]


@pytest.mark.parametrize("stage", ["transformer", "scorer"])
def test_a_folder_without_an_image_tokenizer_gets_that_of_the_checkpoint(start, trained, stage):
    path = start.folder / "model" / "image_tokenizer.safetensors"
    content = path.read_bytes()
    path.unlink()
    start.run(stage, *STANDING)
    assert path.read_bytes() == content
    assert part(start, stage).trained_with["image_tokenizer"] == identity(trained, "image_tokenizer")


def test_image_rows_are_new_for_another_image_tokenizer(start, trained):
    shutil.copy(trained.folder / "image_tokenizer.yaml", start.folder)
    start.run(
        "image_tokenizer", "run.seed=5", f"run.model_dir={start.folder}/model", f"run.state_dir={start.folder}/it"
    )
    start.run("encode")
    with pytest.raises(UserError, match=r"expected lora\.embeddings with an image tokenizer that .* got false; leave"):
        start.run("transformer", "lora.rank=2", "lora.embeddings=false")
    start.run("transformer", *STANDING)
    old, _ = load_transformer(trained.folder / "model")
    new, new_config = load_transformer(start.folder / "model")
    first, end = Stream(new_config).image_range
    assert torch.equal(new.embed.weight[:first], old.embed.weight[:first])
    assert not torch.equal(new.embed.weight[first:end], old.embed.weight[first:end])
    assert not new.head.weight[first:end].any()  # as at the beginning of every training
    assert old.head.weight[first:end].any()


def test_image_rows_are_kept_for_an_image_tokenizer_trained_from_the_old_one(start, trained):
    start.run("image_tokenizer")
    start.run("encode")
    start.run("transformer", *STANDING)
    assert identity(start, "image_tokenizer") != identity(trained, "image_tokenizer")
    assert identity(start, "transformer") == identity(trained, "transformer")


def test_pictures_of_another_size_work_with_rotary_positions(start, trained):
    start.run("image_tokenizer", "model.image_size=32")
    start.run("encode")
    start.run("transformer", *STANDING)
    _, stream = load_transformer(start.folder / "model")
    assert stream.grid == (4, 4)
    assert identity(start, "transformer") == identity(trained, "transformer")


def test_pictures_of_another_size_are_refused_with_learned_positions(start, trained, tmp_path):
    learned = trained.copy(tmp_path / "learned", "transformer")
    (learned.folder / "model" / "transformer.safetensors").unlink()
    learned.run("transformer", "model.position=learned", "run.steps=1")
    start.run("image_tokenizer", "model.image_size=32")
    start.run("encode")
    with pytest.raises(UserError, match=r"expected positions\.0\.weight of shape .* as in start_from, got .*; keep"):
        start.run("transformer", f"start_from={learned.folder}/model")


# --- resuming


@pytest.mark.parametrize("stage", ["image_tokenizer", "transformer", "scorer"])
def test_a_run_resumes_bit_for_bit_without_the_checkpoint(start, trained, tmp_path, monkeypatch, stage):
    origin = tmp_path / "origin"
    shutil.copytree(trained.folder / "model", origin)
    other = start.copy(tmp_path / "other")
    setting = f"start_from={origin}"
    start.run(stage, setting)
    interrupt(other, stage, 6, monkeypatch, setting)
    shutil.rmtree(origin)
    other.run(stage, "--resume", setting)
    assert outcome(other, stage) == outcome(start, stage)
    assert part(other, stage).trained_with["start_from"] == identity(trained, stage)
    if stage == "transformer":
        described = [load_settings(home.folder / "model").about.data for home in (start, other)]
        assert described[0] == described[1] == (described[0][0], f"{origin}: {described[0][0]}")


def test_a_sharded_run_starts_and_resumes_from_there(start, trained, tmp_path, monkeypatch):
    settings = ("optimizer.muon_learning_rate=0", "run.steps=6", "run.save_every=3")
    other = start.copy(tmp_path / "other")
    start.run("transformer", *settings)
    run_sharded(interrupt, other, "transformer", 4, monkeypatch, *settings)
    run_sharded(other.run, "transformer", "--resume", *settings)
    assert part(other, "transformer").trained_with == part(start, "transformer").trained_with
    figures = [[line["image"] for line in home.log("transformer") if "image" in line] for home in (start, other)]
    assert figures[1] == pytest.approx(figures[0], abs=1e-5)


def test_a_checkpoint_can_be_trained_further_in_its_own_folder(home, monkeypatch):
    before = identity(home, "transformer")
    own = ("run.steps=6", "run.save_every=3", f"start_from={home.folder}/model")
    interrupt(home, "transformer", 4, monkeypatch, *own)
    assert identity(home, "transformer") != before  # saved with the state
    home.run("transformer", "--resume", *own)
    assert part(home, "transformer").trained_with["start_from"] == before


@pytest.mark.parametrize("value", ["", "emoji"])
def test_a_resumed_run_keeps_to_its_checkpoint(start, monkeypatch, value):
    interrupt(start, "transformer", 6, monkeypatch)
    model = "model={n_layer: 2, n_head: 2, n_embd: 16}"
    words = f"text_tokenizer={start.folder}/words.model"
    with pytest.raises(UserError, match=rf"was started, got start_from \S+ -> \"{value}\";"):
        start.run("transformer", "--resume", f"start_from='{value}'", model, words)


def test_a_run_that_started_from_nothing_cannot_be_given_a_checkpoint(home, trained, monkeypatch):
    interrupt(home, "transformer", 6, monkeypatch)
    with pytest.raises(UserError, match=r"expected the settings with which .* was started, got start_from \"\" -> "):
        home.run("transformer", "--resume", f"start_from={trained.folder}/model")


# --- what is refused


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("transformer", "model.n_layer=8", r"model\.n_layer 2 as in the transformer of start_from .*, got 8; leave"),
        ("transformer", "model.block.norm=layer", r"model\.block\.norm rms as in .*, got layer; leave"),
        (
            "image_tokenizer",
            "model.codebook_size=1024",
            r"model\.codebook_size 13 as in the image tokenizer of .* 1024",
        ),
        ("image_tokenizer", "model.factor=12", r"model\.factor 8 as in the image tokenizer of start_from .*, got 12;"),
        ("scorer", "model.image_size=64", r"model\.image_size 16 as in the scorer of start_from .*, got 64; leave"),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_refused(start, stage, setting, message):
    """Also where they are the defaults, which without start_from need not be given."""
    with pytest.raises(UserError, match=message):
        start.run(stage, setting)
    assert not (start.folder / stage / "log.jsonl").exists()


@pytest.mark.parametrize("stage", ["image_tokenizer", "transformer", "scorer"])
def test_a_missing_checkpoint_or_part_is_refused(start, stage, tmp_path):
    with pytest.raises(UserError, match="no model 'nothing'"):
        start.run(stage, "start_from=nothing")
    with pytest.raises(UserError, match=rf"has no {stage}\.safetensors"):
        start.run(stage, f"start_from={tmp_path}")


def test_imported_text_tokenizers_are_refused(start, trained, tmp_path):
    folder = tmp_path / "imported"
    shutil.copytree(trained.folder / "model", folder)
    (folder / "text_tokenizer.model").rename(folder / "text_tokenizer.json")
    (folder / "text_tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "version": "1.0"}'
    )
    for stage in ("transformer", "scorer"):
        with pytest.raises(UserError, match=r"expected a checkpoint with text_tokenizer\.model for start_from, got an"):
            start.run(stage, f"start_from={folder}")


def test_imported_image_tokenizers_are_refused(start, trained, tmp_path):
    folder = tmp_path / "imported"
    saved = part(trained, "image_tokenizer")
    save_tensors(folder, "image_tokenizer", saved.tensors, {**saved.config, "network": "taming"}, {})
    message = (
        r"expected an image tokenizer trained here in start_from .*, got network taming, which can only be imported"
    )
    with pytest.raises(UserError, match=message):
        start.run("image_tokenizer", f"start_from={folder}")


def test_stream_of_a_copy_is_unchanged(start, trained):
    start.run("transformer", *STANDING)
    configs = [from_dict(StreamConfig, part(home, "transformer").config["stream"]) for home in (start, trained)]
    assert configs[0] == configs[1]
    assert load_image_tokenizer(start.folder / "model")[1] == identity(trained, "image_tokenizer")
