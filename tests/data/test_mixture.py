"""Several sources in one store, with weights."""

from collections import Counter

import numpy as np
import pytest
from helpers.sources import encode, put, put_tar

from dalle_mini_impl.config.data import DataConfig, SourceConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.data.mixture import repeat_rows
from dalle_mini_impl.data.picture_store import build_store, open_store, source_changes
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def sources(tmp_path):
    """A folder of three pictures and a tar of five, with the same names."""
    for number in range(3):
        put(tmp_path, f"few/{number}.png", encode("red"))
        put(tmp_path, f"few/{number}.txt", f"red {number}")
    members = [(f"{n}.png", encode("blue")) for n in range(5)] + [(f"{n}.txt", f"blue {n}") for n in range(5)]
    put_tar(tmp_path / "many.tar", members)
    return tmp_path


def config_of(folder, *weights, **settings):
    paths = [str(folder / "few"), str(folder / "many.tar")]
    listed = [{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=False)]
    values = {"sources": listed, "store": str(folder / "store"), "validation": 0, **settings}
    return from_dict(DataConfig, values, "data")


def shown(config):
    return Counter(entry.captions[0].text for entry in open_store(config, "train").entries)


def test_pictures_of_a_heavier_source_are_shown_more_often(sources, capsys):
    store = open_store(config_of(sources, 3, 1), "train")
    assert "decoded 8 pictures" in capsys.readouterr().out
    assert Counter(entry.captions[0].text for entry in store.entries) == {
        **{f"red {number}": 3 for number in range(3)},
        **{f"blue {number}": 1 for number in range(5)},
    }
    assert len(store) == 14
    reds = [store.take(np.array([row]))[0, 0, 0, 0] == 255 for row in range(14)]
    assert [entry.captions[0].text.startswith("red") for entry in store.entries] == reds


def test_weights_are_relative_and_change_without_a_new_store(sources):
    build_store(config_of(sources, 1, 1))
    before = (sources / "store/pixels.npy").stat()
    assert shown(config_of(sources, 2, 6)) == shown(config_of(sources, 1, 3))
    assert shown(config_of(sources, 1, 3))["blue 4"] == 3
    assert set(shown(config_of(sources, 1, 1)).values()) == {1}
    assert (sources / "store/pixels.npy").stat() == before


def test_keys_of_several_sources_differ_and_held_out_pictures_are_shown_once(sources):
    config = config_of(sources, 4, 1, validation=0.5)
    keys = [entry.key for entry in open_store(config, "validation").entries]
    assert len(keys) == len(set(keys))
    both = {entry.key for split in ("train", "validation") for entry in open_store(config, split).entries}
    assert both == {f"0/{n}" for n in range(3)} | {f"1/{n}" for n in range(5)}


@pytest.mark.parametrize("ratio", [1, 1.25, 2, 2.5, 3.75])
def test_fractions_repeat_a_share_of_the_pictures(ratio):
    rows = np.arange(0, 2000, 2)
    repeated = repeat_rows(rows, [1000, 1000], [1, ratio])
    assert np.array_equal(repeated, np.sort(repeated))
    counts = Counter(repeated.tolist())
    assert all(counts[row] == 1 for row in range(0, 1000, 2))
    heavy = [counts[row] for row in range(1000, 2000, 2)]
    assert set(heavy) <= {int(ratio), int(np.ceil(ratio))}
    assert np.mean(heavy) == pytest.approx(ratio, abs=0.01)
    assert np.array_equal(repeated, repeat_rows(rows, [1000, 1000], [0.25, 0.25 * ratio]))


def test_changes_of_one_of_several_sources_are_noticed(sources):
    config = config_of(sources, 1, 2)
    build_store(config)
    assert source_changes(sources / "store") == ""
    put(sources, "few/3.png", encode())
    with pytest.raises(UserError, match=r"got 1 added \(0/3\.png\); delete the store, so that training builds it anew"):
        open_store(config, "train")
    (sources / "many.tar").unlink()  # one that is gone is not counted as removed
    assert source_changes(sources / "store") == "1 added (0/3.png)"


def test_a_store_of_other_sources_is_refused(sources):
    build_store(config_of(sources, 1, 2))
    with pytest.raises(UserError, match=r"was built from .*many\.tar, the config names .*few; delete the store"):
        open_store(config_of(sources, 1), "train")
    with pytest.raises(UserError, match="was built with source=''"):
        open_store(DataConfig(source=str(sources / "few"), store=str(sources / "store"), validation=0), "train")
    assert len(open_store(DataConfig(store=str(sources / "store")), "train")) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "a", "sources": [{"path": "b"}]}, "expected data.source or data.sources, got both"),
        ({"sources": [{"path": ""}]}, "expected a path for each of data.sources, got an empty one"),
        ({"sources": [{"path": "a", "weight": 0}]}, "weight"),
        ({"sources": [{"path": "a", "weight": -1}]}, "weight"),
        ({"sources": [{"weight": 1}]}, "'path' is missing"),
        ({"sources": ["a"]}, "expected keys and values"),
    ],
)
def test_bad_sources_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(DataConfig, settings, "data")
    assert "\n" not in str(caught.value)


def test_a_missing_source_is_refused_before_any_is_read(sources, capsys):
    config = DataConfig(sources=(SourceConfig(path=str(sources / "few")), SourceConfig(path="nowhere")), store="x")
    with pytest.raises(UserError, match="nowhere does not exist"):
        build_store(config)
    assert "decoding" not in capsys.readouterr().err
