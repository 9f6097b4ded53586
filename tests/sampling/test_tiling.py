import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import GRID, IMAGE_TOKENIZER, make_image_tokenizer
from helpers.sampling import PROMPT, sample
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.find import SHIPPED_MODELS
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, with_circular_padding
from dalle_mini_impl.sampling.generate import GeneratedIds, no_progress
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.sampling.tiling import SEAM_PASSES, close_seams, seam_passes
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

SETTINGS = SamplingConfig(temperature=0.9, top_k=31, guidance=2.5)
EVERY_CELL = torch.ones(GRID, dtype=torch.bool)


# --- the decoder wraps around


def imported(network, **changes):
    shape = {"image_size": 32, "factor": 4, "channels": (32, 32, 64), "codebook_size": 61, "embed_dim": 7}
    return ImageTokenizer(ImageTokenizerConfig(network=network, **{**shape, **changes}), commitment=None).eval()


@pytest.mark.parametrize("network", ["vqvae", "taming", "openai-dvae"])
def test_with_tile_rolled_ids_decode_to_the_rolled_picture(network):
    torch.manual_seed(0)
    makers = {
        "vqvae": lambda: make_image_tokenizer(IMAGE_TOKENIZER),
        "taming": lambda: imported("taming", quantizer="nearest"),
        "openai-dvae": lambda: imported("openai-dvae", likelihood="laplace"),
    }
    tokenizer = makers[network]().double()
    ids = torch.randint(61, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    rolled_ids = ids.roll((2, 3), (1, 2))
    shift = (2 * tokenizer.config.factor, 3 * tokenizer.config.factor)
    tiled = tokenizer.decode(ids, tile=True)
    torch.testing.assert_close(tokenizer.decode(rolled_ids, tile=True), tiled.roll(shift, (2, 3)), atol=1e-6, rtol=1e-6)
    plain = tokenizer.decode(ids)
    assert float((tokenizer.decode(rolled_ids) - plain.roll(shift, (2, 3))).abs().max()) > 1e-3
    assert torch.equal(plain, tokenizer.decode(ids, tile=False))


def test_circular_padding_is_that_of_a_copy_with_the_same_weights():
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Conv2d(5, 3, 1))
    circular = with_circular_padding(layers)
    assert [layer.padding_mode for layer in circular] == ["circular", "zeros"]
    assert [layer.padding_mode for layer in layers] == ["zeros", "zeros"]
    assert all(ours is theirs for ours, theirs in zip(circular.parameters(), layers.parameters(), strict=True))


def test_transposed_convolutions_are_refused():
    tokenizer = imported("dalle-pytorch", channels=(11, 11), embed_dim=11)
    with pytest.raises(UserError, match="expected a decoder without transposed convolutions for tile"):
        tokenizer.decode(torch.zeros(1, 5, 7, dtype=torch.int64), tile=True)


# --- ids at the edges are sampled again


def generate_and_close(model, seeds, redraw=EVERY_CELL, chunk=64, progress=no_progress, settings=SETTINGS):
    """Candidates before and after `close_seams`."""
    transformer, stream = model
    before = sample(model, seeds, settings=settings)
    options = {"generated": before, "redraw": redraw, "chunk": chunk, "progress": progress}
    return before, close_seams(transformer, stream, PROMPT, seeds, settings, **options)


def test_each_pass_redraws_its_own_part_of_the_edges():
    passes = list(seam_passes(GRID))
    assert len(passes) == SEAM_PASSES
    assert [shift for shift, _ in passes] == [(0, 2), (1, 0), (1, 2)]
    unrolled = [cells.roll((-shift[0], -shift[1]), (0, 1)) for shift, cells in passes]
    drawing = [["".join(".#"[cell] for cell in row) for row in cells.int().tolist()] for cells in unrolled]
    assert drawing == [
        ["#...#", "#...#", "#...#"],
        [".###.", ".....", ".###."],
        ["#...#", ".....", "#...#"],
    ]


@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_new_edges_are_used_where_the_rolled_picture_becomes_likelier(model, guidance):
    settings = SamplingConfig(temperature=0.9, top_k=31, guidance=guidance)
    seeds = [3, 5, 8, 13]
    choices = []
    before, after = generate_and_close(model, seeds, settings=settings)
    for original, seed, expected in zip(before.image_ids, seeds, after.image_ids, strict=True):
        ids = original
        for pass_number, (shift, cells) in enumerate(seam_passes(GRID), 1):
            known = KnownIds(ids.roll(shift, (0, 1)), cells)
            pass_seed = candidate_seed(seed, pass_number)
            resampled = sample(model, [pass_seed], settings=settings, known=known).image_ids[0]
            both = torch.stack([known.image_ids, resampled])
            likelier = int(log_likelihood(*model, PROMPT.text_ids, both).sum(1).argmax())
            choices.append(likelier)
            ids = both[likelier].roll((-shift[0], -shift[1]), (0, 1))
        assert torch.equal(ids, expected)
    assert set(choices) == {0, 1}
    assert torch.equal(after.image_ids[:, 1, 1:4], before.image_ids[:, 1, 1:4])
    assert not torch.equal(after.image_ids, before.image_ids)
    expected_nats = log_likelihood(*model, PROMPT.text_ids, after.image_ids).sum(1)
    torch.testing.assert_close(after.log_likelihood, expected_nats)


def test_edges_depend_on_the_candidates_seed_alone_also_after_pruning(model):
    transformer, stream = model
    seeds = [3, 5, 8, 13]
    calls: list[int] = []
    _, closed = generate_and_close(model, seeds, chunk=3, progress=calls.append)
    assert sum(calls) == SEAM_PASSES * 4 * 15
    _, alone = generate_and_close(model, [8])
    assert torch.equal(alone.image_ids[0], closed.image_ids[2])
    before = sample(model, seeds, settings=SETTINGS)
    left = [1, 3]
    pruned = GeneratedIds(torch.tensor(left), before.image_ids[left], before.log_likelihood[left])
    options = {"generated": pruned, "redraw": EVERY_CELL, "chunk": 64, "progress": no_progress}
    closed_pruned = close_seams(transformer, stream, PROMPT, seeds, SETTINGS, **options)
    assert closed_pruned.indices.tolist() == left
    assert torch.equal(closed_pruned.image_ids, closed.image_ids[left])


def test_cells_that_may_not_be_redrawn_stay(model):
    redraw = torch.zeros(GRID, dtype=torch.bool)
    calls: list[int] = []
    before, after = generate_and_close(model, [3, 5, 8], redraw, progress=calls.append)
    assert torch.equal(after.image_ids, before.image_ids)
    assert sum(calls) == SEAM_PASSES * 3 * 15
    redraw[2] = True
    before, after = generate_and_close(model, [3, 5, 8], redraw)
    changed = (after.image_ids != before.image_ids).any(0)
    assert changed[2].any()
    assert not changed[:2].any()


# --- the whole pipeline


def test_tiles_from_python_and_from_the_command_line_are_equal_and_can_be_made_again(
    tiny_dalle, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = tiny_dalle.generate("a cat", candidates=5, keep=3, tile=True)
    assert result.settings["sampling"]["tile"] is True
    for candidate in result:
        tiled = tiny_dalle.decode(candidate.image_ids[None], True)[0]
        assert candidate.image.tobytes() == tiled.tobytes()
        assert candidate.image.tobytes() != tiny_dalle.decode(candidate.image_ids[None])[0].tobytes()
    common = ["sample", "--device", "cpu", "--model", str(tiny_model)]
    for arguments in (
        ["a cat", "--candidates", "5", "--keep", "3", "--tile"],
        ["--from", "grid.png", "--out", "2.png"],
    ):
        outcome = CliRunner().invoke(dalle, [*common, *arguments], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
    assert read_metadata("grid.png") == read_metadata("2.png")
    for path in ("grid.png", "2.png"):
        with Image.open(path) as sheet:
            assert np.array_equal(np.asarray(sheet), np.asarray(result.grid()))


@pytest.mark.parametrize("prune", [False, True])
def test_progress_counts_every_pass(tiny_dalle, prune):
    calls: list[int] = []
    tiny_dalle.generate("a cat", candidates=5, keep=1, tile=True, prune=prune, progress=calls.append)
    assert sum(calls) == (1 + SEAM_PASSES) * 5 * 15


def test_previews_end_with_the_tiles(tiny_dalle):
    *_, last = tiny_dalle.stream_previews("a cat", candidates=3, keep=2, tile=True)
    expected = tiny_dalle.generate("a cat", candidates=3, keep=2, tile=True)
    assert [c.image.tobytes() for c in last.result] == [c.image.tobytes() for c in expected]


SHIPPED_TRANSFORMER = SHIPPED_MODELS / "emoji" / "transformer.safetensors"
PROMPTS = (
    "rainbow",
    "night with stars",
    "blue square",
    "a city at sunset",
    "milky way",
    "a red heart",
    "a smiling face",
    "flag",
)


def column_differences(results, cell):
    """Mean difference of pixel columns: between the right and the left edge, and between neighbouring cells."""
    pixels = np.stack([np.asarray(candidate.image) for result in results for candidate in result]).astype(float)
    steps = np.abs(np.diff(pixels, axis=2)).mean((0, 1, 3))
    return np.abs(pixels[:, :, 0] - pixels[:, :, -1]).mean(), steps[cell - 1 :: cell].mean()


@pytest.mark.skipif(not SHIPPED_TRANSFORMER.is_file(), reason="this checkout has no shipped model")
def test_the_seam_of_the_shipped_models_tiles_is_no_greater_than_steps_between_cells():
    dalle_mini = DalleMini.from_pretrained("emoji", "cpu")
    options = {"candidates": 4, "keep": 4, "seed": 1, "rank": "none"}
    cell = dalle_mini.image_tokenizer.config.factor
    tiles = [dalle_mini.generate(text, tile=True, **options) for text in PROMPTS]
    seam, between_cells = column_differences(tiles, cell)
    assert seam <= between_cells
    seam, between_cells = column_differences([dalle_mini.generate(text, **options) for text in PROMPTS], cell)
    assert seam > between_cells
