"""Pictures of an earlier training in the batches of a new one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.training import BatchMaker, Home, interrupt, outcome

from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.scenes import ScenesConfig
from dalle_mini_impl.config.training import ReplayConfig, RunConfig, TransformerRun
from dalle_mini_impl.train.replay import batch_pictures, open_replay, own_pictures
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.train.stream_batch import make_batch
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module")
def earlier(trained, tmp_path_factory) -> Home:
    """A home whose token cache, of other pictures, was made with the image tokenizer of `trained`."""
    home = trained.copy(tmp_path_factory.mktemp("earlier") / "home", "ids")
    home.run("encode", "variants=2", "seed=9", f"data.source={home.folder}/pictures")
    return home


def replay(home, share=0.25):
    return (f"replay.cache={home.folder}/ids", f"replay.share={share}")


def batches(maker, steps, rows=slice(0, 12)):
    """Batches in which the ids of all own pictures are 1, those of all earlier ones 2."""
    mixed = open_replay(maker.config, maker.cache, 12)
    assert mixed is not None
    own = replace(maker.cache, image_ids=np.full_like(maker.cache.image_ids, 1))
    mixed = replace(mixed, cache=replace(mixed.cache, image_ids=np.full_like(mixed.cache.image_ids, 2)))
    parts = (own, maker.captions, maker.tokenizer, maker.stream, maker.config)
    return [make_batch(*parts, step, rows, SceneRows(12), mixed).targets for step in range(steps)]


def test_the_last_rows_of_each_batch_are_earlier_pictures(trained, earlier):
    maker = BatchMaker(trained, *replay(earlier))
    for targets in batches(maker, 8):
        ids = targets[:, maker.stream.prefix_length - 1 :] - maker.stream.image_offset
        assert ids.tolist() == [[1] * 4] * 9 + [[2] * 4] * 3


def test_each_kind_has_epochs_of_its_own(trained, earlier):
    maker = BatchMaker(trained, *replay(earlier, 0.5))
    mixed = open_replay(maker.config, maker.cache, 12)
    count = len(maker.cache)
    steps = -(-count // 6)
    chosen = [batch_pictures(maker.cache, maker.captions, mixed, step, 12, maker.config.run) for step in range(steps)]
    for cache in (maker.cache, mixed.cache):
        indices = [index for batch in chosen for source, _, index in batch if source is cache]
        assert sorted(indices[:count]) == list(range(count))


def test_processes_divide_a_mixed_batch_among_them(trained, earlier):
    maker = BatchMaker(trained, *replay(earlier))
    whole = batches(maker, 2)
    halves = [batches(maker, 2, rows) for rows in (slice(0, 6), slice(6, 12))]
    assert all(torch.equal(torch.cat(parts), batch) for *parts, batch in zip(*halves, whole, strict=True))


def test_a_mixed_run_resumes_bit_for_bit(home, earlier, tmp_path, monkeypatch):
    broken = home.copy(tmp_path / "broken")
    home.run("transformer", *replay(earlier))
    interrupt(broken, "transformer", 6, monkeypatch, *replay(earlier))
    with pytest.raises(UserError, match=r"got replay\.share 0\.25 -> 0\.5; change"):
        broken.run("transformer", "--resume", *replay(earlier, 0.5))
    broken.run("transformer", "--resume", *replay(earlier))
    assert outcome(broken, "transformer") == outcome(home, "transformer")
    lines = load_settings(home.folder / "model").about.data
    assert len(lines) == 2
    assert all(line.startswith("pictures: ") for line in lines)


@pytest.mark.parametrize("share", [0, 0.04, 0.96, 1])
def test_a_share_that_leaves_out_one_kind_is_refused(home, earlier, share):
    with pytest.raises(UserError, match=r"expected replay\.share of which a batch of 12 has pictures of both kinds"):
        home.run("transformer", *replay(earlier, share))


def test_a_cache_of_another_image_tokenizer_is_refused(home, trained, tmp_path):
    other = trained.copy(tmp_path / "other", "image_tokenizer", "ids")
    (other.folder / "model" / "image_tokenizer.safetensors").unlink()
    other.run("image_tokenizer", "run.seed=8", "run.steps=1")
    other.run("encode")
    with pytest.raises(UserError, match=r"was made with image tokenizer \w+, but the model has"):
        home.run("transformer", *replay(other))


def test_soft_ids_must_be_as_many(home, earlier):
    home.run("encode", "soft_ids=3")
    with pytest.raises(UserError, match=r"expected .* to be encoded with soft_ids=3 like .*, got 0; encode again"):
        home.run("transformer", *replay(earlier), "image_targets=soft")
    with pytest.raises(UserError, match="is no token cache"):
        home.run("transformer", "replay.cache=nowhere")


def test_scenes_and_earlier_pictures_are_none_of_the_set():
    run = RunConfig(batch_size=32)
    assert own_pictures(TransformerRun(run=run)) == 32
    scenes, replay = ScenesConfig(store="emoji", share=0.5), ReplayConfig(cache="ids", share=0.25)
    assert own_pictures(TransformerRun(run=run, scenes=scenes)) == 16
    assert own_pictures(TransformerRun(run=run, scenes=scenes, replay=replay)) == 12
