"""`DalleMini.complete` and `DalleMini.variations`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_mini_impl.pipeline.canvas import picture_hash
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

SIZE = (40, 24)


@pytest.fixture(scope="module")
def picture():
    """A smooth picture at the model's size."""
    values = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC)


def encode(dalle, picture):
    """Image ids of a picture at the model's size."""
    return dalle.image_tokenizer.encode(to_pixels([picture], (24, 40)))[0]


def values(image):
    """Pixels as signed integers, (H, W, 3)."""
    return np.asarray(image.convert("RGB")).astype(int)


def test_rows_are_kept_and_the_rest_is_redrawn(tiny_dalle, picture):
    result = tiny_dalle.complete(picture, "a red heart", rows=1, candidates=7, keep=5, seed=3)
    own = encode(tiny_dalle, picture)
    for candidate in result:
        assert torch.equal(candidate.image_ids[:1], own[:1])
        assert np.array_equal(values(candidate.image)[:8], values(picture)[:8])
    assert len(torch.stack([candidate.image_ids for candidate in result]).flatten(1).unique(dim=0)) == 5
    assert [c.score for c in result] == sorted((c.score for c in result), reverse=True)
    assert result.source.tobytes() == picture.tobytes()
    assert result.settings["canvas"]["redrawn"] == [".....", "#####", "#####"]
    assert result.settings["canvas"]["picture"] == picture_hash(picture)
    assert json.loads(json.dumps(result.metadata())) == result.metadata()


def test_likelihoods_are_those_of_the_whole_picture(tiny_dalle, picture):
    result = tiny_dalle.complete(picture, "a cat", box=(8, 0, 24, 16), candidates=5, keep=5, guidance=1.0)
    ids = torch.stack([candidate.image_ids for candidate in result])
    given = tiny_dalle.log_likelihood("a cat", ids).sum(1)
    assert [c.score for c in result] == pytest.approx(given.tolist(), abs=0.1)  # bf16 where compiled


def test_without_paste_kept_cells_show_the_image_tokenizers_reconstruction(tiny_dalle, picture):
    for options in ({"mask": Image.new("L", SIZE, 255)}, {"rows": 2, "paste": False}):
        (candidate,) = tiny_dalle.complete(picture, candidates=1, **options)
        assert candidate.image.tobytes() == tiny_dalle.decode(candidate.image_ids[None])[0].tobytes()
    (pasted,) = tiny_dalle.complete(picture, candidates=1, rows=2)
    assert np.array_equal(values(pasted.image)[16:], values(candidate.image)[16:])
    assert not np.array_equal(values(pasted.image), values(candidate.image))


def test_an_all_white_mask_gives_the_pictures_of_generate(tiny_dalle, picture):
    white = tiny_dalle.complete(picture, "a cat", mask=Image.new("L", SIZE, 255), candidates=3)
    for candidate, other in zip(white, tiny_dalle.generate("a cat", candidates=3), strict=True):
        assert torch.equal(candidate.image_ids, other.image_ids)
        assert candidate.image.tobytes() == other.image.tobytes()


def test_the_scorer_gets_pictures_with_pasted_pixels(tiny_dalle, picture, monkeypatch):
    scored = []

    def record(self, images):
        scored.extend(images)
        return torch.zeros(len(images), self.model.embed_dim)

    monkeypatch.setattr(type(tiny_dalle.scorer), "embed_images", record)
    result = tiny_dalle.complete(picture, "a cat", rows=2, candidates=3, rank="clip")
    assert [image.tobytes() for image in scored] == [candidate.image.tobytes() for candidate in result]


def test_pruning_and_seeds_work_as_in_generate(tiny_dalle, picture):
    options = {"rows": 1, "seed": 3, "temperature": 0.5}
    everything = tiny_dalle.complete(picture, "a cat", candidates=9, keep=9, **options)
    pruned = tiny_dalle.complete(picture, "a cat", candidates=9, keep=2, prune=True, chunk=9, **options)
    assert {candidate.seed for candidate in pruned} < {candidate.seed for candidate in everything}
    (again,) = tiny_dalle.complete(picture, "a cat", seeds=[everything[0].seed], **options)
    assert torch.equal(again.image_ids, everything[0].image_ids)


def test_variations_redraw_about_the_fraction_that_strength_says(tiny_dalle, picture):
    own = encode(tiny_dalle, picture)
    result = tiny_dalle.variations(picture, "a cat", strength=0.3, candidates=60, keep=60)
    changed = torch.stack([candidate.image_ids != own for candidate in result])
    assert 0.2 < float(changed.float().mean()) <= 0.35
    assert len(changed.flatten(1).unique(dim=0)) > 40
    assert result.settings["canvas"]["strength"] == 0.3
    with pytest.raises(UserError, match="strength above 0 and at most 1, got 0"):
        tiny_dalle.variations(picture, strength=0)


def test_the_grid_begins_with_the_source(tiny_dalle, picture):
    result = tiny_dalle.complete(picture, "a cat", rows=1, candidates=3, keep=2)
    sheet = result.grid(columns=3)
    assert sheet.size == (4 + 3 * 44, 4 + 28)
    assert sheet.crop((4, 4, 44, 28)).tobytes() == picture.tobytes()
    assert sheet.crop((48, 4, 88, 28)).tobytes() == result[0].image.tobytes()
    assert result.grid(columns=3, scores=True).height > sheet.height


def test_completions_of_two_pictures_are_saved_to_different_files(tiny_dalle, picture, tmp_path):
    other = picture.rotate(180)
    results = [tiny_dalle.complete(image, "a cat", rows=1, candidates=1) for image in (picture, other)]
    assert len({path for result in results for path in result.save(tmp_path)}) == 2
