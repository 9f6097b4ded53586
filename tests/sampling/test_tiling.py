import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import GRID, IMAGE_TOKENIZER, make_image_tokenizer, make_transformer
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.find import SHIPPED_MODELS
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, circular_padding
from dalle_mini_impl.sampling.generate import GeneratedIds, Prompt, generate, no_progress
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.sampling.tiling import SEAM_PASSES, close_seams, seam_passes
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import read_metadata

PROMPT, SETTINGS = Prompt((5, 300, 17), (41, 2)), SamplingConfig(temperature=0.9, top_k=31, guidance=2.5)
ALL = torch.ones(GRID, dtype=torch.bool)


@pytest.fixture(scope="module")
def rope():
    return make_transformer("rope")


# --- the decoder


def imported(network, **changes):
    shape = {"image_size": 32, "factor": 4, "channels": (32, 32, 64), "codebook_size": 61, "embed_dim": 7}
    return ImageTokenizer(ImageTokenizerConfig(network=network, **{**shape, **changes}), commitment=None).eval()


@pytest.mark.parametrize("network", ["vqvae", "taming", "openai-dvae"])
def test_rolled_ids_make_the_rolled_picture(network):
    torch.manual_seed(0)
    makers = {
        "vqvae": lambda: make_image_tokenizer(IMAGE_TOKENIZER),
        "taming": lambda: imported("taming", quantizer="nearest"),
        "openai-dvae": lambda: imported("openai-dvae", likelihood="laplace"),
    }
    tokenizer = makers[network]().double()
    ids = torch.randint(61, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    factor = tokenizer.config.factor
    rolled = tokenizer.decode(ids.roll((2, 3), (1, 2)), tile=True)
    torch.testing.assert_close(
        rolled, tokenizer.decode(ids, tile=True).roll((2 * factor, 3 * factor), (2, 3)), atol=1e-6, rtol=1e-6
    )
    plain = tokenizer.decode(ids)
    shifted = tokenizer.decode(ids.roll((2, 3), (1, 2)))
    assert float((shifted - plain.roll((2 * factor, 3 * factor), (2, 3))).abs().max()) > 1e-3
    assert torch.equal(plain, tokenizer.decode(ids, tile=False))


def test_wrapping_ends_whatever_happens():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Conv2d(5, 3, 1))
    with circular_padding(layers):
        assert [layer.padding_mode for layer in layers] == ["circular", "zeros"]
    with pytest.raises(RuntimeError), circular_padding(layers):
        layers(torch.zeros(1, 1, 1))
    assert [layer.padding_mode for layer in layers] == ["zeros", "zeros"]


def test_transposed_convolutions_are_refused():
    tokenizer = imported("dalle-pytorch", channels=(11, 11), embed_dim=11)
    with pytest.raises(UserError, match="tile was given to a decoder with transposed convolutions"):
        tokenizer.decode(torch.zeros(1, 5, 7, dtype=torch.int64), tile=True)


# --- the ids


def test_every_pass_has_its_part_of_the_edges():
    passes = list(seam_passes(GRID))
    assert len(passes) == SEAM_PASSES
    assert [roll for roll, _ in passes] == [(0, 2), (1, 0), (1, 2)]
    unrolled = [places.roll((-roll[0], -roll[1]), (0, 1)) for roll, places in passes]
    shown = [["".join(".#"[place] for place in row) for row in places.int().tolist()] for places in unrolled]
    assert shown == [
        ["#...#", "#...#", "#...#"],
        [".###.", ".....", ".###."],
        ["#...#", ".....", "#...#"],
    ]


def closed(model, seeds, free=ALL, chunk=64, progress=no_progress, settings=SETTINGS):
    drawn = generate(*model, PROMPT, seeds, settings)
    how = {"redraw": free, "chunk": chunk, "progress": progress}
    return drawn, close_seams(*model, PROMPT, seeds, settings, generated=drawn, **how)


@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_edges_are_drawn_where_they_see_what_is_across(rope, guidance):
    settings = SamplingConfig(temperature=0.9, top_k=31, guidance=guidance)
    seeds, taken = [3, 5, 8, 13], []
    drawn, after = closed(rope, seeds, settings=settings)
    for ids, seed, expected in zip(drawn.image_ids, seeds, after.image_ids, strict=True):
        for number, (roll, places) in enumerate(seam_passes(GRID), 1):
            known = KnownIds(ids.roll(roll, (0, 1)), places)
            again = generate(*rope, PROMPT, [candidate_seed(seed, number)], settings, known=known).image_ids[0]
            both = torch.stack([known.image_ids, again])
            likelier = log_likelihood(*rope, PROMPT.text_ids, both).sum(1).argmax()
            taken.append(int(likelier))
            ids = both[likelier].roll((-roll[0], -roll[1]), (0, 1))
        assert torch.equal(ids, expected)
    assert set(taken) == {0, 1}
    assert torch.equal(after.image_ids[:, 1, 1:4], drawn.image_ids[:, 1, 1:4])
    assert not torch.equal(after.image_ids, drawn.image_ids)
    torch.testing.assert_close(after.log_likelihood, log_likelihood(*rope, PROMPT.text_ids, after.image_ids).sum(1))


def test_seeds_alone_decide_and_pruned_candidates_keep_theirs(rope):
    told = []
    _, whole = closed(rope, [3, 5, 8, 13], chunk=3, progress=told.append)
    assert sum(told) == SEAM_PASSES * 4 * 15
    _, alone = closed(rope, [8])
    assert torch.equal(alone.image_ids[0], whole.image_ids[2])
    drawn = generate(*rope, PROMPT, [3, 5, 8, 13], SETTINGS)
    some = GeneratedIds(torch.tensor([1, 3]), drawn.image_ids[[1, 3]], drawn.log_likelihood[[1, 3]])
    again = close_seams(
        *rope, PROMPT, [3, 5, 8, 13], SETTINGS, generated=some, redraw=ALL, chunk=64, progress=no_progress
    )
    assert again.indices.tolist() == [1, 3]
    assert torch.equal(again.image_ids, whole.image_ids[[1, 3]])


def test_what_is_kept_of_a_picture_stays(rope):
    free, told = torch.zeros(GRID, dtype=torch.bool), []
    drawn, after = closed(rope, [3, 5, 8], free, progress=told.append)
    assert torch.equal(after.image_ids, drawn.image_ids)
    assert sum(told) == SEAM_PASSES * 3 * 15
    free[2] = True
    drawn, after = closed(rope, [3, 5, 8], free)
    changed = (after.image_ids != drawn.image_ids).any(0)
    assert changed[2].any()
    assert not changed[:2].any()


# --- the whole


def test_tiles_are_made_and_made_again(tiny_dalle, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tiny_dalle.generate("a cat", candidates=5, keep=3, tile=True)
    assert result.settings["sampling"]["tile"] is True
    for candidate in result:
        pixels = tiny_dalle.decode(candidate.image_ids[None], True)[0]
        assert candidate.image.tobytes() == pixels.tobytes()
        assert candidate.image.tobytes() != tiny_dalle.decode(candidate.image_ids[None])[0].tobytes()
    fixed = ["sample", "--device", "cpu", "--model", str(tiny_model)]
    for arguments in (
        ["a cat", "--candidates", "5", "--keep", "3", "--tile"],
        ["--from", "grid.png", "--out", "2.png"],
    ):
        done = CliRunner().invoke(dalle, [*fixed, *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert read_metadata("grid.png") == read_metadata("2.png")
    for path in ("grid.png", "2.png"):
        with Image.open(path) as sheet:
            assert np.array_equal(np.asarray(sheet), np.asarray(result.grid()))


@pytest.mark.parametrize("prune", [False, True])
def test_progress_counts_every_pass(tiny_dalle, prune):
    told = []
    tiny_dalle.generate("a cat", candidates=5, keep=1, tile=True, prune=prune, progress=told.append)
    assert sum(told) == (1 + SEAM_PASSES) * 5 * 15


def test_previews_end_with_the_tiles(tiny_dalle):
    *_, last = tiny_dalle.stream_previews("a cat", candidates=3, keep=2, tile=True)
    expected = tiny_dalle.generate("a cat", candidates=3, keep=2, tile=True)
    assert [c.image.tobytes() for c in last.result] == [c.image.tobytes() for c in expected]


SHIPPED_MODEL = SHIPPED_MODELS / "emoji" / "transformer.safetensors"
PROMPTS = (
    "rainbow", "night with stars", "blue square", "a city at sunset", "milky way", "a red heart", "a smiling face",
    "flag",
)  # fmt: skip


def columns(results):
    """Mean differences of columns of pixels: across the seam, and between places of the token grid within."""
    pixels = np.stack([np.asarray(candidate.image) for result in results for candidate in result]).astype(float)
    steps = np.abs(np.diff(pixels, axis=2)).mean((0, 1, 3))
    return np.abs(pixels[:, :, 0] - pixels[:, :, -1]).mean(), steps[7::8].mean()


@pytest.mark.skipif(not SHIPPED_MODEL.is_file(), reason="this checkout has no shipped model")
def test_the_seam_of_real_pictures_is_no_worse_than_what_is_inside():
    model = DalleMini.from_pretrained("emoji", "cpu")
    how = {"candidates": 4, "keep": 4, "seed": 1, "rank": "none"}
    seam, within = columns([model.generate(prompt, tile=True, **how) for prompt in PROMPTS])
    assert seam <= within
    seam, within = columns([model.generate(prompt, **how) for prompt in PROMPTS])
    assert seam > within  # as it is without
