"""Judge features of a store are computed once, and again whenever something they depend on has changed."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.picture_store import build_store
from dalle_mini_impl.evaluate.feature_cache import cache_path, store_fingerprint
from dalle_mini_impl.evaluate.judges import Judge, pixel_features
from dalle_mini_impl.evaluate.reference_pictures import (
    build_r_precisions,
    open_reference_pictures,
    reference_features,
)

SIZE = 24


class PictureCounter:
    """The features of the pixel judge, with the number of pictures they were computed of."""

    def __init__(self):
        self.pictures = 0

    def __call__(self, pixels):
        self.pictures += len(pixels)
        return pixel_features(pixels)


def counting_judge(identity="first"):
    """The pixel judge and its counter."""
    counter = PictureCounter()
    return Judge("pixels", identity, counter), counter


@pytest.fixture
def store(tmp_path):
    """Three concepts by two vendors."""
    lines = []
    for concept in range(3):
        for vendor in range(2):
            name = f"{concept}-{vendor}.png"
            Image.new("RGB", (20, 20), (80 * concept, 30, 90 * vendor)).save(tmp_path / name)
            split = "validation" if concept == 2 else "train"
            details = {"concept": str(concept), "vendor": str(vendor), "split": split}
            lines.append(json.dumps({"path": name, "caption": str(concept), **details}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "store"
    build_store(DataConfig(source=str(tmp_path / "list.jsonl"), store=str(folder), store_size=20))
    return folder


def forget_checksums(store):
    """Make it a store of an old version, whose pictures may change."""
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({"identity": header["identity"]}))


def features_of(store, judge, size=SIZE):
    return reference_features(open_reference_pictures(store, (size, size)), {"pixels": judge})["pixels"]


def test_second_run_reads_the_features_and_does_not_run_the_judge(store):
    judge, counter = counting_judge()
    expected = features_of(store, judge)
    assert counter.pictures == 6
    judge, counter = counting_judge()
    assert torch.equal(features_of(store, judge), expected)
    assert counter.pictures == 0
    path = cache_path(store, "pixels", (SIZE, SIZE))
    assert path == store.parent / "store.pixels-24px.safetensors"
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_r_precision_of_cached_features_equals_that_of_computed_ones(store):
    reference = open_reference_pictures(store, (SIZE, SIZE))
    progress: list[int] = []
    computed, cached = (
        build_r_precisions(reference, {"pixels": counting_judge()[0]}, progress.append)["pixels"] for _ in range(2)
    )
    assert torch.equal(computed.mean, cached.mean)
    assert torch.equal(computed.projection, cached.projection)
    assert torch.equal(computed.reference_features, cached.reference_features)
    assert sum(progress) == 2 * 6


def test_changed_pixels_are_noticed(store):
    forget_checksums(store)
    features_of(store, counting_judge()[0])
    before = store_fingerprint(store)
    pixels = np.load(store / "pixels.npy", mmap_mode="r+")
    pixels[4, 0, 0, 0] ^= 1
    pixels.flush()
    assert store_fingerprint(store) != before
    judge, counter = counting_judge()
    features_of(store, judge)
    assert counter.pictures == 6


def test_changed_order_of_pictures_is_noticed(store):
    forget_checksums(store)
    features_of(store, counting_judge()[0])
    lines = (store / "pairs.jsonl").read_text().splitlines()
    (store / "pairs.jsonl").write_text("\n".join([*lines[1:2], *lines[:1], *lines[2:]]) + "\n")
    judge, counter = counting_judge()
    features_of(store, judge)
    assert counter.pictures == 6


def test_other_weights_and_other_sizes_have_their_own_features(store):
    features_of(store, counting_judge()[0])
    judge, counter = counting_judge("second")
    features_of(store, judge)
    assert counter.pictures == 6
    features_of(store, judge, 2 * SIZE)
    assert counter.pictures == 12
    features_of(store, judge)
    features_of(store, judge, 2 * SIZE)
    assert counter.pictures == 12


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "no safetensors"])
def test_damaged_features_are_computed_again(store, damage):
    expected = features_of(store, counting_judge()[0])
    path = cache_path(store, "pixels", (SIZE, SIZE))
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-1] ^= 1
    path.write_bytes({"cut": content[:-9], "flipped bit": content, "no safetensors": b"half"}[damage])
    judge, counter = counting_judge()
    assert torch.equal(features_of(store, judge), expected)
    assert counter.pictures == 6
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("features"), expected)


def test_features_that_cannot_be_written_are_used_all_the_same(store, monkeypatch):
    blocked = store.parent / "file"
    blocked.touch()
    monkeypatch.setattr(
        "dalle_mini_impl.evaluate.reference_pictures.cache_path", lambda *arguments: blocked / "features.safetensors"
    )
    with pytest.warns(UserWarning, match="features of judge pixels are not kept for the next run: cannot write"):
        assert features_of(store, counting_judge()[0]).shape == (6, 768)
