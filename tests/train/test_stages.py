import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import make_transformer
from helpers.training import RUNS, BatchMaker, cache_of, config_of, identity
from PIL import Image

from dalle_mini_impl import DalleMini, UserError
from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config import training as runs
from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.entries import PictureEntries, PictureEntry, concept_hashes, concept_of, write_entries
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import (
    CacheHeader,
    CaptionSampler,
    TokenCache,
    write_header,
)
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train import encode, image_tokenizer, scorer, stream_batch, text_tokenizer, transformer
from dalle_mini_impl.train.card import describe_run
from dalle_mini_impl.train.losses.adversary import Adversary
from dalle_mini_impl.train.shared import encoding
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stages import STAGES
from dalle_mini_impl.util.save_picture import read_metadata

TRAINED = ("image_tokenizer", "transformer", "scorer")


# --- the whole path


def test_the_stages_make_a_complete_checkpoint(trained):
    files = {path.name for path in (trained.folder / "model").iterdir()}
    parts = {f"{part}.safetensors" for part in TRAINED}
    assert files == {*parts, "text_tokenizer.model", "config.yaml"}
    assert (trained.folder / "model" / "text_tokenizer.model").read_bytes() == (
        trained.folder / "words.model"
    ).read_bytes()


def test_parts_record_what_they_were_trained_with(trained):
    model = trained.folder / "model"
    words, pictures = load_text_tokenizer(model).identity, identity(trained, "image_tokenizer")
    assert read_part(model, "image_tokenizer").trained_with == {}
    assert read_part(model, "transformer").trained_with == {"text_tokenizer": words, "image_tokenizer": pictures}
    assert read_part(model, "scorer").trained_with == {"text_tokenizer": words, "image_tokenizer": pictures}
    assert json.loads((trained.folder / "ids" / "cache.json").read_text())["image_tokenizer"] == pictures


def test_a_scorer_without_reconstructions_needs_no_image_tokenizer(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "image_tokenizer.safetensors", "scorer")
    (home.folder / "model" / "image_tokenizer.safetensors").unlink()
    home.run("scorer", "reconstructed_share=0", "run.steps=1")
    words = load_text_tokenizer(home.folder / "model").identity
    assert read_part(home.folder / "model", "scorer").trained_with == {"text_tokenizer": words}


@pytest.mark.parametrize("stage", TRAINED)
def test_stages_respect_a_time_limit(trained, tmp_path, stage):
    home = trained.copy(tmp_path / "home", stage)
    home.run(stage, "run.minutes=0.004", "run.steps=1")
    lines = [json.loads(line) for line in (home.folder / stage / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["seconds"] >= 0.2
    assert lines[-1]["step"] >= 1
    assert any(name.startswith("validation_") or name.endswith("_at_1") for name in lines[-1])
    assert identity(home, stage) != identity(trained, stage)


def test_all_schedules_of_an_image_tokenizer_follow_the_time_limit(trained, tmp_path, monkeypatch):
    seen, relax, follow = [], image_tokenizer.set_relaxation, Adversary.set_schedule

    def watch_relaxation(quantizer, config, *rest):
        seen.append(("relaxation", config.run.steps))
        relax(quantizer, config, *rest)

    def watch_adversary(adversary, run):
        seen.append(("adversary", run.steps))
        follow(adversary, run)

    monkeypatch.setattr(image_tokenizer, "set_relaxation", watch_relaxation)
    monkeypatch.setattr(Adversary, "set_schedule", watch_adversary)
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    home.run("image_tokenizer", "model.quantizer=gumbel", "gan.weight=0.5", "run.minutes=0.004", "run.steps=100000")
    steps = home.log("image_tokenizer")[-1]["step"] + 1
    assert seen[-2:] == [("adversary", steps), ("relaxation", steps)]


def test_a_trained_model_samples_and_ranks(trained):
    loaded = DalleMini.from_pretrained(trained.folder / "model", "cpu")
    assert loaded.sampling == SamplingConfig()
    result = loaded.generate("a red disc", candidates=3, keep=2, seed=1)
    assert len(result) == 2
    assert result[0].image.size == (16, 16)
    assert result[0].score >= result[1].score


def test_info_describes_a_trained_model(trained):
    result = CliRunner().invoke(dalle, ["info", str(trained.folder / "model"), "--json", "-"])
    facts = json.loads(result.stdout)
    assert {part: facts[part]["identity"] for part in TRAINED} == {part: identity(trained, part) for part in TRAINED}
    assert facts["transformer"]["config"]["stream"] == {
        "text_length": 11,
        "text_vocab": 300,
        "grid": [2, 2],
        "image_vocab": 13,
        "patch": 1,
        "bos_id": 2,
        "pad_id": -1,
        "embed_positions": 0,
        "embed_dim": 0,
    }


def test_the_checkpoint_describes_its_training_data(trained):
    about = load_settings(trained.folder / "model").about
    source, count = config_of(trained, "encode").data.source, len(cache_of(trained, "train"))
    assert about == AboutConfig(data=(f"{Path(source).name}: {count} pictures",))


def test_the_described_languages_are_those_with_a_weight():
    captions = [tuple(Caption("x", code) for code in codes) for codes in (("en", "sl"), ("de", "", "en", "no"))]
    entries = PictureEntries.of(PictureEntry("a", "train", False, each, {}) for each in captions)
    cache = TokenCache(CacheHeader("x", 13, (2, 2), "hearts"), np.zeros((2, 1, 2, 2)), entries)
    about = describe_run(runs.TransformerRun(language_weights={"sl": 3.0, "no": 0.0, "fi": 5.0}), [cache])
    assert about == AboutConfig(languages=("sl", "de", "en"), data=("hearts: 2 pictures",))
    said = AboutConfig(licence="MIT", languages=("en",), data=("my hearts",))
    assert describe_run(runs.TransformerRun(about=said), [cache]) == said
    assert describe_run(runs.TransformerRun(), [replace(cache, header=CacheHeader("x", 13, (2, 2)))]).data == ()


def test_logs_hold_every_step_and_validation(trained):
    figures = {
        "image_tokenizer": {"loss", "reconstruction", "auxiliary", "psnr", "usage", "perplexity", "dead"},
        "transformer": {"text", "image"},
        "scorer": {"loss", "scale"},
    }
    held_out = {
        "image_tokenizer": {"validation_psnr", "validation_usage", "validation_perplexity"},
        "transformer": {"validation_text", "validation_image"},
        "scorer": {f"{way}_at_{n}" for way in ("image_to_text", "text_to_image") for n in (1, 5, 10)} | {"zero_shot"},
    }
    for stage in TRAINED:
        log = trained.log(stage)
        assert [line["step"] for line in log if figures[stage] < line.keys()] == list(range(10))
        assert [line["step"] for line in log if held_out[stage] < line.keys()] == [4, 9]
        assert all(math.isfinite(value) for line in log for value in line.values())


def test_states_configs_and_samples_are_written_beside_the_log(trained):
    for stage in TRAINED:
        folder = trained.folder / stage
        assert load(RUNS[stage], folder / "config.yaml") == config_of(trained, stage)
        expected = {"config.yaml", "log.jsonl", "state.pt", "previous-state.pt"}
        if stage != "scorer":
            expected |= {"samples-000005.png", "samples-000010.png"}
        assert {path.name for path in folder.iterdir()} == expected
    prompts = read_metadata(trained.folder / "transformer" / "samples-000010.png")["prompts"]
    assert [prompt["origin"] for prompt in prompts] == ["trained"] * 4 + ["held out"] * (len(prompts) - 4)
    assert len(prompts) > 4
    with Image.open(trained.folder / "image_tokenizer" / "samples-000010.png") as sheet:
        assert sheet.width > 16 * 16


def test_untrained_models_begin_at_chance(trained):
    first = trained.log("transformer")[0]
    assert first["image"] == pytest.approx(math.log(13), rel=1e-4)
    assert first["text"] == pytest.approx(math.log(300 + 11), rel=1e-4)


def test_losses_fall(trained):
    for stage, name in (
        ("image_tokenizer", "loss"),
        ("transformer", "text"),
        ("transformer", "image"),
        ("scorer", "loss"),
    ):
        values = [line[name] for line in trained.log(stage) if name in line]
        assert values[-1] < values[0]


def test_captions_that_are_cut_are_reported(trained, tmp_path, capsys):
    home = trained.copy(tmp_path / "home", "transformer")
    home.run("transformer", "text_length=5", "run.steps=1")
    assert "of captions have more than 5 text ids and are cut" in capsys.readouterr().out
    assert read_part(home.folder / "model", "transformer").config["stream"]["text_length"] == 5


# --- what belongs together


@pytest.fixture(scope="module")
def changed(trained, tmp_path_factory):
    """A copy whose image tokenizer has been trained anew, with another seed, after everything else."""
    home = trained.copy(tmp_path_factory.mktemp("changed") / "home", "image_tokenizer", "transformer", "scorer")
    home.run("image_tokenizer", "run.seed=1", "run.steps=2")
    assert identity(home, "image_tokenizer") != identity(trained, "image_tokenizer")
    for part in ("transformer", "scorer"):
        shutil.copy(trained.folder / "model" / f"{part}.safetensors", home.folder / "model")
    return home


def test_an_image_tokenizer_that_other_parts_need_is_not_replaced(trained, tmp_path):
    home = trained.copy(tmp_path / "home")
    before, name = states_of(home, "image_tokenizer"), identity(home, "image_tokenizer")
    message = (
        rf"without parts that need its image_tokenizer {name}, got transformer and scorer; move them away, or write"
    )
    with pytest.raises(UserError, match=message):
        home.run("image_tokenizer", "run.seed=1")
    assert states_of(home, "image_tokenizer") == before
    with pytest.raises(UserError, match=message):  # the same when the part is written, after a resumed run
        save_part(home.folder / "model", "image_tokenizer", torch.nn.Linear(2, 2), {}, {})
    assert identity(home, "image_tokenizer") == name


def states_of(home, stage):
    return {path.name: path.read_bytes() for path in (home.folder / stage).glob("*.pt")}


def test_a_resumed_transformer_keeps_to_the_ids_it_was_trained_on(trained, changed, tmp_path):
    home = changed.copy(tmp_path / "home")
    home.run("encode")
    shutil.copytree(trained.folder / "transformer", home.folder / "transformer")
    old, new = identity(trained, "image_tokenizer"), identity(changed, "image_tokenizer")
    with pytest.raises(UserError, match=rf"expected image_tokenizer {old}, with which \S+ was trained, got {new}; put"):
        home.run("transformer", "--resume")


def test_a_cache_of_another_tokenizer_is_refused(trained, changed):
    old, new = identity(trained, "image_tokenizer"), identity(changed, "image_tokenizer")
    with pytest.raises(UserError, match=f"was made with image tokenizer {old}, but the model has {new}; encode again"):
        changed.run("transformer")
    assert not (changed.folder / "transformer").exists()


def test_a_transformer_of_another_tokenizer_is_refused(trained, changed):
    old, new = identity(trained, "image_tokenizer"), identity(changed, "image_tokenizer")
    with pytest.raises(UserError, match=f"was trained with image_tokenizer {old}, but {new} was given"):
        DalleMini.from_pretrained(changed.folder / "model", "cpu")


def test_encoding_again_replaces_a_stale_cache_and_leaves_nothing_behind(changed, tmp_path):
    home = changed.copy(tmp_path / "home")
    home.run("encode", f"out={home.folder}/ids/")
    home.run("transformer", "run.steps=1")
    assert len(DalleMini.from_pretrained(home.folder / "model", "cpu").generate("a disc", candidates=1)) == 1
    assert {path.name for path in (home.folder / "ids").iterdir()} == {
        "cache.json",
        "train",
        "validation",
        "verified.json",
    }
    assert not list(home.folder.glob("*ids.*")) + list(home.folder.glob(".ids*"))


def test_another_text_tokenizer_is_refused(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer", "scorer")
    home.run("text_tokenizer", "vocab_size=290")
    for stage in ("transformer", "scorer"):
        with pytest.raises(UserError, match="use another model_dir or the same tokenizer"):
            home.run(stage)


# --- text tokenizer


def test_text_tokenizer_learns_each_training_caption_once(trained, tmp_path, monkeypatch, capsys):
    home = trained.copy(tmp_path / "home")
    seen = []
    learn = text_tokenizer.train_text_tokenizer
    monkeypatch.setattr(
        text_tokenizer, "train_text_tokenizer", lambda texts, *rest: seen.extend(texts) or learn(texts, *rest)
    )
    home.run("text_tokenizer")
    entries = open_store(config_of(home, "text_tokenizer").data, "train").entries
    assert seen == sorted({caption.text for entry in entries for caption in entry.captions})
    assert f"300 ids from {len(seen)} captions" in capsys.readouterr().out
    assert (home.folder / "words.model").read_bytes() == (trained.folder / "words.model").read_bytes()


# --- image tokenizer


def test_pixels_of_some_rows_equal_those_of_the_whole_batch(trained):
    config = config_of(trained, "image_tokenizer")
    store, scenes = open_store(config.data, "train"), SceneRows(12)
    whole = image_tokenizer.batch_pixels(store, scenes, 3, slice(0, 12), config)
    assert whole.shape == (12, 3, 16, 16)
    for rows in (slice(0, 5), slice(5, 12)):
        assert torch.equal(image_tokenizer.batch_pixels(store, scenes, 3, rows, config), whole[rows])
    assert not torch.equal(image_tokenizer.batch_pixels(store, scenes, 4, slice(0, 12), config), whole)
    on_device = image_tokenizer.batch_pictures(store, scenes, 3, slice(0, 12), config)  # as for a GPU
    assert on_device.rgba.dtype == torch.uint8
    assert torch.equal(
        image_tokenizer.pixels_on(torch.device("cpu"), on_device, config.model.size, config.augment.keep_inside), whole
    )


def test_image_tokenizer_learns(untrained, tmp_path):
    home = untrained.copy(tmp_path / "home")
    home.run(
        "image_tokenizer",
        "run.steps=60",
        "run.sample_every=0",
        "run.save_every=0",
        "run.validate_every=60",
        "optimizer.learning_rate=1e-2",
        "model.codebook_size=61",
    )
    log = home.log("image_tokenizer")
    losses = [line["loss"] for line in log if "loss" in line]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert log[-1]["validation_psnr"] > log[0]["psnr"] + 3
    assert not list((home.folder / "image_tokenizer").glob("samples*"))
    assert (home.folder / "model" / "image_tokenizer.safetensors").is_file()


# --- encoding


def test_the_cache_has_every_picture_of_each_split(trained):
    data = config_of(trained, "encode").data
    for split, variants in (("train", 3), ("validation", 1)):
        cache, store = cache_of(trained, split), open_store(data, split)
        assert list(cache.entries) == list(store.entries)
        assert cache.image_ids.shape == (len(store), variants, 2, 2)
        assert cache.image_ids.dtype == np.uint16
        assert cache.image_ids.max() < 13
    header = replace(cache.header, store_version="", checksums={})
    expected = CacheHeader(identity(trained, "image_tokenizer"), 13, (2, 2), Path(data.source).name, "../store")
    assert header == expected


def test_validation_pictures_are_encoded_plain_and_training_pictures_varied(trained):
    tokenizer, _ = load_image_tokenizer(trained.folder / "model")
    for split in ("validation", "train"):
        store = open_store(config_of(trained, "encode").data, split)
        ids = tokenizer.encode(pixels_on_white(store.take(np.arange(len(store))), 16)).numpy()
        stored = cache_of(trained, split).image_ids
        assert ((stored[:, 0] == ids).mean() > 0.99) == (split == "validation")
    assert (stored[:, 0] != stored[:, 1]).any()
    assert (stored[:, 1] != stored[:, 2]).any()


def test_a_variant_depends_on_its_number_alone(trained):
    config = config_of(trained, "encode")
    store = open_store(config.data, "train")
    whole = encode.variant_pixels(store, np.arange(11), 2, config, (16, 16))
    assert torch.equal(encode.variant_pixels(store, np.array([7, 3]), 2, config, (16, 16)), whole[[7, 3]])
    assert not torch.equal(encode.variant_pixels(store, np.arange(11), 1, config, (16, 16)), whole)
    other = config_of(trained, "encode", "seed=1")
    assert not torch.equal(encode.variant_pixels(store, np.arange(11), 2, other, (16, 16)), whole)


def test_encode_precision_bf16_is_used(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "ids")
    autocasts = []
    encode_pictures = ImageTokenizer.encode

    def spied(tokenizer, pixels):
        autocasts.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return encode_pictures(tokenizer, pixels)

    with mock.patch.object(ImageTokenizer, "encode", spied):
        home.run("encode", "precision=bf16", "variants=0")
        assert set(autocasts) == {(True, torch.bfloat16)}
        autocasts.clear()
        home.run("encode", "variants=0")
    assert {enabled for enabled, _ in autocasts} == {False}


def test_without_variants_pictures_are_encoded_plain(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "ids")
    home.run("encode", "variants=0")
    assert cache_of(home, "train").image_ids.shape[1] == 1
    config = config_of(home, "encode", "variants=0")
    store = open_store(config.data, "train")
    plain = pixels_on_white(store.take(np.arange(5)), 16)
    assert torch.equal(encode.variant_pixels(store, np.arange(5), 0, config, (16, 16)), plain)


def test_an_interrupted_encoding_leaves_the_old_cache(trained, tmp_path, monkeypatch):
    home = trained.copy(tmp_path / "home")
    encode_split = encode.encode_split

    def broken(*arguments):
        if arguments[3].name == "validation":
            raise KeyboardInterrupt
        encode_split(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode_split", broken)
        with pytest.raises(KeyboardInterrupt):
            home.run("encode", "variants=5")
    assert cache_of(home, "train").image_ids.shape[1] == 3
    home.run("encode", "variants=5")
    assert cache_of(home, "train").image_ids.shape[1] == 5
    assert [path.name for path in home.folder.glob("*ids*")] == ["ids"]


# --- transformer


def test_stream_loss_by_hand():
    model, stream = make_transformer()
    ids = stream.join(stream.prefix([[3, 5], [], [7] * 7]), torch.randint(0, 61, (3, 3, 5)))
    with torch.inference_mode():
        text, image = transformer.StreamLoss(model, stream)(ids[:, :-1], ids[:, 1:])
        logits = model.logits(model(ids[:, :-1]))
    sums = {"text": [], "image": []}
    for row in range(3):
        for place in range(stream.length - 1):
            kind = "text" if place < 7 else "image"
            first, end = stream.text_range if kind == "text" else stream.image_range
            allowed = logits[row, place, first:end].double()
            sums[kind].append(float(allowed.logsumexp(0) - logits[row, place, ids[row, place + 1]]))
    assert len(sums["text"]) == 21
    assert len(sums["image"]) == 45
    assert float(text) == pytest.approx(np.mean(sums["text"]), rel=1e-5)
    assert float(image) == pytest.approx(np.mean(sums["image"]), rel=1e-5)


def test_rows_of_a_batch_equal_those_of_the_whole_batch(trained):
    batches = BatchMaker(trained, "id_corruption=0.3", "caption_dropout=0.3", "bpe_dropout=0.3")
    inputs, targets = batches.make()
    assert inputs.shape == targets.shape == (12, 11 + 4)
    for rows in (slice(0, 5), slice(5, 12)):
        for part, whole in zip(batches.make(rows=rows), (inputs, targets), strict=True):
            assert torch.equal(part, whole[rows])
    assert not torch.equal(batches.make(step=4)[0], inputs)


def test_batches_pair_captions_and_ids_of_the_same_picture(trained):
    batches = BatchMaker(trained, "id_corruption=0", "id_dropout=0", "caption_dropout=0", "bpe_dropout=0")
    inputs, targets = batches.make_many()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    texts, ids = batches.stream.split(torch.cat([inputs, targets[:, -1:]], 1))
    known = {}
    for entry, variants in zip(batches.cache.entries, batches.cache.image_ids, strict=True):
        for caption in entry.captions:
            text = tuple(batches.tokenizer.encode(caption.text)[:11])
            known.setdefault(text, set()).update(variant.tobytes() for variant in variants.astype(np.int64))
    drawn = [(tuple(text), picture.numpy().tobytes()) for text, picture in zip(texts, ids, strict=True)]
    assert all(picture in known[text] for text, picture in drawn)
    assert {text for text, _ in drawn} == set(known)
    assert {picture for _, picture in drawn} == set().union(*known.values())


def test_ids_are_corrupted_on_the_input_side_only(trained):
    def batches(share):
        maker = BatchMaker(trained, f"id_corruption={share}", "id_dropout=0", "caption_dropout=0", "bpe_dropout=0")
        ids = np.random.default_rng(0).integers(0, 13, maker.cache.image_ids.shape).astype(np.uint16)
        maker.cache = replace(maker.cache, image_ids=ids)  # the trained tokenizer's own are nearly all equal
        return maker.make_many()

    clean, corrupted, every = map(batches, (0, 0.4, 1))
    assert torch.equal(corrupted[1], clean[1])
    assert torch.equal(corrupted[0][:, :12], clean[0][:, :12])
    changed, all_changed = ((inputs != clean[0])[:, 12:].float().mean() for inputs in (corrupted[0], every[0]))
    assert changed == pytest.approx(0.4 * 12 / 13, abs=0.03)  # one in 13 is replaced by the same id
    assert all_changed == pytest.approx(12 / 13, abs=0.03)


def test_ids_are_hidden_on_the_input_side_only(trained):
    others = "id_corruption=0", "caption_dropout=0", "bpe_dropout=0"
    clean = BatchMaker(trained, "id_dropout=0", *others).make_many()
    batches = BatchMaker(trained, "id_dropout=0.5", *others)
    hidden = batches.make_many()
    assert torch.equal(hidden[1], clean[1])
    assert torch.equal(hidden[0][:, :12], clean[0][:, :12])
    gone = hidden[0] != clean[0]
    assert bool((hidden[0][gone] == batches.stream.config.bos_id).all())
    # Half of the pictures are whole; of the others' three input ids every share is as likely as any other.
    shares = gone[:, 12:].float().mean(1)
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.05)
    assert float((shares == 1).float().mean()) == pytest.approx(0.5 / 4, abs=0.05)


def test_corruption_takes_ids_from_one_other_picture():
    ids = np.arange(2 * 3 * 3 * 5).reshape(2, 3, 3, 5)
    cache = TokenCache(CacheHeader("x", 90, (3, 5)), ids, [None, None])
    mine = np.full((3, 5), 1000)
    random = np.random.default_rng(1)
    assert (stream_batch.corrupt(mine, cache, 0.0, random) == mine).all()
    replaced = stream_batch.corrupt(mine, cache, 0.5, random)
    taken = replaced != mine
    assert 0 < taken.sum() < 15
    assert any((replaced == np.where(taken, variant, mine)).all() for variant in ids.reshape(6, 3, 5))


def test_captions_are_dropped_at_the_configured_rate(trained):
    batches = BatchMaker(trained, "caption_dropout=0.25")
    texts, _ = batches.stream.split(torch.cat([inputs := batches.make_many(50)[0], inputs[:, -1:]], 1))
    assert sum(not text for text in texts) / len(texts) == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 600))


def test_bpe_dropout_splits_captions_into_more_ids(trained):
    whole, split = (BatchMaker(trained, "caption_dropout=0", f"bpe_dropout={share}") for share in (0, 0.5))
    count = [(batches.make_many()[1] < 300).sum() for batches in (whole, split)]
    assert count[1] > 1.1 * count[0]


def test_accumulated_passes_equal_one(trained, tmp_path):
    settings = (
        "run.steps=4",
        "run.save_every=4",
        "run.sample_every=0",
        "optimizer.muon_learning_rate=0",
        "optimizer.clip=1e9",
    )
    logs, moments = [], []
    for passes in (1, 2, 3):
        home = trained.copy(tmp_path / str(passes), "transformer")
        home.run("transformer", f"run.accumulation={passes}", *settings)
        logs.append([[line[name] for name in ("text", "image")] for line in home.log("transformer") if "text" in line])
        state = torch.load(home.folder / "transformer" / "state.pt", weights_only=True)["optimizers"][0]["state"]
        # AdamW's steps do not depend on the gradient's scale, but its mean of gradients does.
        moments.append(torch.cat([values["exp_avg"].flatten() for values in state.values()]))
    for log, moment in zip(logs[1:], moments[1:], strict=True):
        np.testing.assert_allclose(log, logs[0], rtol=1e-6)
        assert (moment - moments[0]).norm() <= 1e-4 * moments[0].norm()


def test_transformer_overfits_three_pictures(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer", "ids")
    name = identity(home, "image_tokenizer")
    ids = np.array([[[[1, 12], [5, 0]]], [[[7, 7], [3, 11]]], [[[1, 4], [12, 5]]]], dtype=np.uint16)
    entries = open_store(config_of(home, "encode").data, "train").entries[:3]
    for split in ("train", "validation"):
        (home.folder / "ids" / split).mkdir(parents=True)
        np.save(home.folder / "ids" / split / "image_ids.npy", ids)
        write_entries(home.folder / "ids" / split, entries)
    write_header(home.folder / "ids", CacheHeader(name, 13, (2, 2)))
    home.run(
        "transformer",
        "run.steps=100",
        "run.batch_size=3",
        "run.log_every=50",
        "run.validate_every=100",
        "run.save_every=0",
        "run.sample_every=0",
        "caption_dropout=0",
        "bpe_dropout=0",
        "id_corruption=0",
        "optimizer.learning_rate=1e-2",
        "model.n_embd=32",
    )
    log = home.log("transformer")
    assert log[-1]["validation_image"] < 0.05
    loaded = DalleMini.from_pretrained(home.folder / "model", "cpu")
    for entry, expected in zip(entries, ids, strict=True):
        for caption in entry.captions:
            prompt = Prompt(loaded.text_tokenizer.encode(caption.text)[:11])
            greedy = generate(
                loaded.transformer, loaded.stream, prompt, [0], SamplingConfig(temperature=0, guidance=1)
            ).image_ids
            assert (greedy[0].numpy() == expected[0]).all()


# --- scorer


@pytest.mark.parametrize("reconstructed", [0.0, 0.5, 1.0])
def test_scorer_batches_hold_the_configured_share_of_reconstructions(trained, reconstructed):
    config = config_of(trained, "scorer", f"reconstructed_share={reconstructed}")
    store, tokenizer = open_store(config.data, "train"), load_text_tokenizer(trained.folder / "model")
    seen = []

    class Through:
        """Stands in for the image tokenizer: returns black, and remembers how many pictures it got."""

        config = SimpleNamespace(image_size=16, size=(16, 16))

        device = torch.device("cpu")

        def encode(self, pixels):
            seen.append(len(pixels))
            return pixels

        def decode(self, ids):
            return torch.full_like(ids, -1)

    def draw(rows):
        captions = CaptionSampler(store.entries, {})
        batch = scorer.make_batch(store, SceneRows(12), captions, tokenizer, (16, 16), config, 3, rows)
        return scorer.reconstruct(batch, Through()), batch.text_ids, batch.concepts

    pixels, text_ids, concepts = draw(slice(0, 12))
    assert pixels.shape == (12, 3, 16, 16)
    assert text_ids.shape == (12, 11)
    assert (text_ids == tokenizer.eos_id).sum(1).tolist() == [1] * 12
    black = (pixels == -1).flatten(1).all(1)
    assert sum(seen) == int(black.sum())
    if reconstructed != 0.5:
        assert black.all() == bool(reconstructed)
    else:
        assert 0 < black.sum() < 12
    for rows in (slice(0, 5), slice(5, 12)):
        part = draw(rows)
        assert torch.equal(part[0], pixels[rows])
        assert torch.equal(part[1], text_ids[rows])
        assert torch.equal(part[2], concepts[rows])


def test_each_picture_has_the_configured_number_of_captions(trained):
    config = config_of(trained, "scorer", "captions=3", "bpe_dropout=0", "reconstructed_share=0")
    store, tokenizer = open_store(config.data, "train"), load_text_tokenizer(trained.folder / "model")
    captions = CaptionSampler(store.entries, {})
    batch = scorer.make_batch(store, SceneRows(12), captions, tokenizer, None, config, 3, slice(2, 7))
    pixels, text_ids, concepts = batch[:3]
    assert text_ids.shape == (3 * len(pixels), 11) == (15, 11)
    captions_of_each = [
        {tuple(tokenizer.cut_or_pad(tokenizer.encode(caption.text), 11, add_eos=True)) for caption in entry.captions}
        for entry in store.entries
    ]
    concepts_of_all = concept_hashes([concept_of(entry) for entry in store.entries]).tolist()
    known = dict(zip(concepts_of_all, captions_of_each, strict=True))
    for concept, rows in zip(concepts.tolist(), text_ids.unflatten(0, (5, 3)).tolist(), strict=True):
        assert {tuple(row) for row in rows} <= known[concept]
    assert len({tuple(row) for row in text_ids.tolist()}) > 5


def test_scorer_learns_which_caption_fits(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "scorer")
    home.run(
        "scorer",
        "run.steps=60",
        "run.validate_every=60",
        "run.save_every=0",
        "reconstructed_share=0",
        "bpe_dropout=0",
        "augment={scale: [1, 1], shift: 0, flip: 0, background: 0}",
        "model.n_embd=32",
        "model.n_head=4",
        "model.embed_dim=17",
    )
    losses = [line["loss"] for line in home.log("scorer") if "loss" in line]
    assert np.mean(losses[-5:]) < 0.5 * math.log(12)
    assert home.log("scorer")[-1]["image_to_text_at_5"] > 1.5 * 5 / 14


def test_the_sigmoid_scorer_learns(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "scorer")
    home.run("scorer", "model.sigmoid=true")
    losses = [line["loss"] for line in home.log("scorer") if "loss" in line]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    model = Scorer.from_pretrained(str(home.folder / "model")).model
    assert isinstance(model, CLIP)
    assert model.logit_bias < 0


def test_a_loss_at_chance_level_is_reported(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scorer, "CHANCE_STEPS", 2)
    home = trained.copy(tmp_path / "home", "scorer")
    home.run("scorer", "run.steps=4", "optimizer.learning_rate=0")
    assert "which is chance level for 12 pairs (2.485)" in capsys.readouterr().out


def test_no_chance_warning_after_a_resume(trained, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(scorer, "CHANCE_STEPS", 10)
    monkeypatch.setattr(scorer, "at_chance", lambda loss, batch, *_: judged.append((loss, batch)))
    home = trained.copy(tmp_path / "home")
    home.run("scorer", "run.steps=12", "--resume")
    assert judged == [(home.log("scorer")[-3]["loss"], 12)]


# --- bad input


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("text_tokenizer", "out=''", "out is empty; name the .model file"),
        ("text_tokenizer", "data.store=''", "data.store is empty"),
        ("text_tokenizer", "data.validation=1.0", "was built with .* the config says"),
        ("text_tokenizer", "vocab_size=100", "no vocabulary of 100 could be learned"),
        ("scorer", "captions=0", "expected captions of at least 1 and at most 1000, got 0; change it"),
        ("image_tokenizer", "run.precision=fp16", "expected bf16 or fp32 on a CPU, got fp16"),
        ("image_tokenizer", "run.model_dir=''", "both must name a folder"),
        ("image_tokenizer", "run.accumulation=5", "make it a multiple of 5"),
        ("image_tokenizer", "model.channels=[33]", "expected channels below 32 or multiples of it, .* got 33"),
        ("image_tokenizer", "run.steps=0", "expected run.steps of at least 1, got 0"),
        ("image_tokenizer", "model.factor=5", "expected image_size to be a multiple of factor 5, got 16"),
        ("image_tokenizer", "model.quantizer=rq", "expected quantizer vq, fsq, lfq, simvq, gumbel, got 'rq'"),
        ("encode", "out=''", "out is empty; name the folder"),
        ("encode", "precision=int8", "precision is 'int8'; expected auto, bf16, fp16, fp32"),
        ("encode", "model_dir=nowhere", "no model 'nowhere'"),
        ("transformer", "cache=nowhere", "nowhere is no token cache"),
        ("transformer", "run.tracker=paper", "expected none, aim"),
        ("transformer", "text_tokenizer=nowhere.model", "cannot read text tokenizer nowhere.model"),
        ("transformer", "model.n_head=3", "a multiple of 4, got n_embd 16, n_head 3"),
        ("scorer", "run.model_dir=''", "both must name a folder"),
    ],
)
def test_bad_settings_are_refused(trained, stage, override, message):
    with pytest.raises(UserError, match=message):
        trained.run(stage, override)


def test_a_scorer_may_see_smaller_pictures_than_the_image_tokenizer_makes(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "scorer")
    home.run("scorer", "model.image_size=8", "model.patch_size=4", "reconstructed_share=0.5", "run.steps=2")
    assert read_part(home.folder / "model", "scorer").config["image_size"] == 8
    config = config_of(home, "scorer", "model.image_size=8", "reconstructed_share=1")
    with pytest.raises(UserError, match=r"expected stored pictures as large as .*, 16 × 16 pixels, got 8 × 16; raise"):
        scorer.load_reconstructor(config, (8, 16), "cpu")
    image_tokenizer, _ = scorer.load_reconstructor(config, (16, 16), "cpu")
    store, tokenizer = open_store(config.data, "train"), load_text_tokenizer(home.folder / "model")
    captions = CaptionSampler(store.entries, {})
    batch = scorer.make_batch(store, SceneRows(12), captions, tokenizer, (16, 16), config, 0, slice(0, 5))
    assert batch.originals.shape == (5, 3, 16, 16)
    decoded = image_tokenizer.decode(image_tokenizer.encode(batch.originals))
    expected = torch.nn.functional.interpolate(decoded, (8, 8), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(scorer.reconstruct(batch, image_tokenizer), expected, atol=0.1, rtol=0)


def test_a_pass_of_one_cell_is_refused(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    with pytest.raises(UserError, match="expected passes of two or more cells"):
        home.run("image_tokenizer", "model.image_size=8", "run.batch_size=1")


def test_a_tokenizer_with_too_many_ids_for_a_cache_is_refused(trained, tmp_path, monkeypatch):
    home = trained.copy(tmp_path / "home")
    monkeypatch.setattr(encoding, "load_image_tokenizer", lambda *_: (SimpleNamespace(codebook_size=2**16 + 1), "x"))
    with pytest.raises(UserError, match=r"expected an image tokenizer with 1 to 65536 ids, .*, got 65537"):
        home.run("encode")


# --- configs


@pytest.mark.parametrize("family", ["small", "emoji"])
def test_shipped_configs_of_a_family_fit_together(family):
    stages = [stage for stage in STAGES.values() if stage.in_all_presets]
    configs = {stage.file_name: load(stage.config, f"configs/{family}/{stage.file_name}.yaml") for stage in stages}
    assert len({configs[stage].run.model_dir for stage in TRAINED} | {configs["encode"].model_dir}) == 1
    assert len({configs[stage].run.state_dir for stage in TRAINED}) == 3
    assert configs["transformer"].cache == configs["encode"].out
    assert configs["transformer"].text_tokenizer == configs["scorer"].text_tokenizer == configs["text_tokenizer"].out
    assert len({configs[stage].data.store for stage in configs if stage != "transformer"}) == 1
    expected = 64 if family == "emoji" else configs["image_tokenizer"].model.image_size
    assert configs["scorer"].model.image_size == expected
