"""The token cache, and sampling of captions."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from dalle_mini_impl.data.entries import PictureEntry, write_entries
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.token_cache import (
    CacheHeader,
    CaptionSampler,
    open_cache,
    read_header,
    write_header,
)
from dalle_mini_impl.util.errors import UserError

HEADER = CacheHeader("0123456789abcdef", 61, (3, 5))


def entry(key, *captions, **details):
    return PictureEntry(key, "train", key == "b", tuple(Caption(*caption) for caption in captions), details)


ENTRIES = [
    entry("a", ("a red heart", "en"), ("ein rotes Herz ❤", "de"), vendor="noto"),
    entry("b", ("心形\nline", "")),
]


@pytest.fixture
def cache(tmp_path):
    ids = np.arange(2 * 7 * 3 * 5, dtype=np.uint16).reshape(2, 7, 3, 5) % 61
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "image_ids.npy", ids)
    write_entries(tmp_path / "train", ENTRIES)
    write_header(tmp_path, HEADER)
    return tmp_path


def test_written_cache_is_read_back(cache):
    read = open_cache(cache, "train", HEADER.image_tokenizer)
    assert read.header == HEADER == read_header(cache)
    assert list(read.entries) == ENTRIES
    assert len(read) == 2
    assert read.image_ids.shape == (2, 7, 3, 5)
    assert read.image_ids[1, 6, 2, 4] == 209 % 61


def test_ids_are_memory_mapped_and_read_only(cache):
    read = open_cache(str(cache), "train", HEADER.image_tokenizer)
    assert isinstance(read.image_ids.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        read.image_ids[0, 0, 0, 0] = 3


def test_captions_are_readable_text_one_picture_per_line(cache):
    lines = (cache / "train" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert "心形" in lines[1]
    assert json.loads(lines[0]) == json.loads(json.dumps(asdict(ENTRIES[0])))


def test_another_image_tokenizer_is_refused_naming_both(cache):
    with pytest.raises(UserError) as caught:
        open_cache(cache, "train", "fedcba9876543210")
    for part in ("0123456789abcdef", "fedcba9876543210", "encode again", str(cache)):
        assert part in str(caught.value)


def test_folder_without_cache_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"is no token cache; make one with dalle_mini_impl\.train\.encode"):
            open_cache(folder, "train", "x")


@pytest.mark.parametrize(
    "content", ["", "{half", "{}", "[1]", '{"image_tokenizer": "x", "codebook_size": 3, "grid": []}']
)
def test_damaged_header_is_refused(cache, content):
    (cache / "cache.json").write_text(content)
    with pytest.raises(UserError, match=r"is damaged .* encode again"):
        open_cache(cache, "train", "x")


def test_missing_split_is_refused(cache):
    with pytest.raises(UserError, match="no validation split"):
        open_cache(cache, "validation", HEADER.image_tokenizer)


def test_truncated_ids_are_refused(cache):
    path = cache / "train" / "image_ids.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged"):
        open_cache(cache, "train", HEADER.image_tokenizer)


# --- sampling captions


def frequencies(captions, languages, count=6007):
    """Relative frequency of each caption when the random numbers are evenly spaced in [0, 1)."""
    sampler = CaptionSampler([entry("other", ("x", "en")), entry("a", *captions)], languages)
    sampled = [sampler.sample(1, SimpleNamespace(random=lambda n=n: (n + 0.5) / count)).text for n in range(count)]
    return [sampled.count(text) / count for text, _ in captions]


def test_languages_are_equally_frequent_whatever_their_number_of_captions():
    captions = [("one", "en"), ("two", "en"), ("three", "en"), ("eins", "de")]
    assert frequencies(captions, {}) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=1e-3)


def test_language_weights_are_relative_to_one():
    captions = [("one", "en"), ("two", "en"), ("eins", "de"), ("en", "no")]
    assert frequencies(captions, {"en": 6, "no": 3}) == pytest.approx([0.3, 0.3, 0.1, 0.3], abs=1e-3)


def test_language_of_weight_zero_is_never_sampled():
    assert frequencies([("one", "en"), ("eins", "de")], {"en": 0}) == [0, 1]
    assert frequencies([("eins", "de"), ("one", "en")], {"en": 0}) == [1, 0]


def test_only_caption_is_sampled_whatever_its_weight():
    assert frequencies([("one", "en")], {"en": 0}) == [1]
    assert frequencies([("one", "en")], {"en": 0.001}) == [1]


def test_sampled_captions_depend_on_the_generator_alone():
    sampler = CaptionSampler([entry("a", *[(str(n), "") for n in range(13)])], {})
    first, second = (
        [sampler.sample(0, r).text for _ in range(20)] for r in (np.random.default_rng(3) for _ in range(2))
    )
    assert first == second
    assert len(set(first)) > 5
