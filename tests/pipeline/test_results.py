import json
import warnings

import numpy as np
import pytest
from helpers.models import SAMPLING
from PIL import Image

from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.pipeline.results import grid
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata


@pytest.fixture(scope="module")
def result(tiny_dalle):
    return tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)


def same(image, other):
    return image.size == other.size and np.array_equal(np.asarray(image), np.asarray(other))


def test_a_result_is_a_sequence_of_candidates(result):
    assert result[0] is result.candidates[0]
    assert result[-1] is result.candidates[4]
    assert result[1:3] == result.candidates[1:3]
    assert list(result) == list(result.candidates)
    with pytest.raises(IndexError):
        _ = result[5]


def test_results_are_compared_and_searched_without_comparing_tensors(result, tiny_dalle):
    again = tiny_dalle.generate("a red heart", candidates=7, keep=5, seed=3)
    assert result[4] in result
    assert result.index(result[3]) == 3
    _ = result == again  # must not fail on tensors
    _ = again[0] in result


def test_the_grid_shows_every_picture(result):
    sheet = result.grid(columns=5)
    assert sheet.size == (4 + 5 * 44, 4 + 28)
    for index, candidate in enumerate(result):
        left = 4 + index * 44
        assert same(sheet.crop((left, 4, left + 40, 28)), candidate.image)
    assert result.grid().size == (4 + 3 * 44, 4 + 2 * 28)
    assert result.grid(scores=True).height > result.grid().height


def test_a_grid_of_several_prompts_has_a_row_for_each(result, tiny_dalle):
    other = tiny_dalle.generate("a cat", candidates=5, keep=5)
    sheet = grid([result, other])
    assert sheet.width == 4 + 5 * 44
    second_row = (sheet.height - 4) // 2 + 4
    assert same(sheet.crop((4, 4, 44, 28)), result[0].image)
    assert same(sheet.crop((4, second_row, 44, second_row + 24)), other[0].image)
    assert np.asarray(sheet.crop((4, 29, 44, second_row - 1))).min() < 128  # the prompt is written under each picture


def test_grids_of_many_prompts_are_about_square(result):
    assert grid([result] * 24).width == 4 + 5 * 44
    sheet = grid([result] * 300)
    assert sheet.width == 4 + 40 * 44  # eight prompts of five pictures in each row
    assert sheet.height < 2 * sheet.width
    assert same(sheet.crop((4 + 5 * 44, 4, 48 + 5 * 44 - 4, 28)), result[0].image)


def test_saved_pictures_record_what_makes_them_again(result, tiny_dalle, tmp_path):
    paths = result.save(tmp_path / "out")
    assert len(set(paths)) == 5
    assert paths == sorted(paths)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in paths]
    assert paths[0].name.startswith("a-red-heart-")
    for path, candidate in zip(paths, result, strict=True):
        metadata = read_metadata(path)
        assert metadata["pictures"] == [
            {"prompt": "a red heart", "negative": "", "seed": candidate.seed, "score": candidate.score}
        ]
        assert metadata["checkpoint"] == tiny_dalle.source["checkpoint"]
        assert metadata["model"] == tiny_dalle.source["model"]
        assert metadata["sampling"] == {**to_dict(SAMPLING), "prior": "none"}
        with Image.open(path) as image:
            assert same(image, candidate.image)


def test_pictures_are_saved_in_the_format_of_the_ending(result, tmp_path):
    for path, candidate in zip(result.save(tmp_path, ending=".webp"), result, strict=True):
        with Image.open(path) as image:
            assert image.format == "WEBP"
            assert same(image, candidate.image)
    with pytest.raises(UserError, match=r"expected an ending among \.png, \.jpg, \.jpeg, \.webp, got '\.bmp'"):
        result.save(tmp_path, ending=".bmp")


def test_prompts_with_equal_file_name_stems_do_not_overwrite_each_other(tiny_dalle, tmp_path):
    prompts = ["a/cat", "a cat", "A cat", "???", "!!!", "../../etc", "ein " + "sehr " * 50 + "langes Herz", "x" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [tiny_dalle.generate(prompt, candidates=1) for prompt in prompts]
        results.append(tiny_dalle.generate("a cat", candidates=1, negative="red"))
    paths = [path for result in results for path in result.save(tmp_path)]
    assert len(set(paths)) == len(results)
    assert all(path.parent == tmp_path and path.is_file() for path in paths)


def test_metadata_is_plain_json_and_can_be_that_of_some_candidates(result):
    metadata = result.metadata()
    assert json.loads(json.dumps(metadata)) == metadata
    assert [picture["seed"] for picture in metadata["pictures"]] == [candidate.seed for candidate in result]
    assert [picture["seed"] for picture in result.metadata(result[1:3])["pictures"]] == [c.seed for c in result[1:3]]


def test_zoom_leaves_labels_and_order(result, tmp_path):
    large = result.grid(columns=5, zoom=4)
    assert large.size == (4 + 5 * (4 * 40 + 4), 4 + 4 * 24 + 4)
    plain = np.asarray(result[1].image)
    assert np.array_equal(np.asarray(large)[4:100, 168:328], plain.repeat(4, 0).repeat(4, 1))
    paths = result.save(tmp_path, zoom=2)
    assert [read_metadata(path)["zoom"] for path in paths] == [2] * 5
    with pytest.raises(UserError, match="5 pictures, enlarged 100000 times to fit into"):
        result.grid(zoom=100000)
    with pytest.raises(UserError, match="expected a zoom of 1 or more, got 0"):
        result.grid(zoom=0)
