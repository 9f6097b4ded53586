"""Benchmarks: machine limits, least work, timing, rows, peers, learning races and the command."""

import importlib.util
import io
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dalle_mini_impl.bench import growth, neighbour, peers, race, race_image_tokenizer
from dalle_mini_impl.bench.machine import MachineSpeed, measure_machine
from dalle_mini_impl.bench.masks import mask_rows
from dalle_mini_impl.bench.report import BenchRow, bench_table, row_line
from dalle_mini_impl.bench.sampling import chunk_rows, imported_rows
from dalle_mini_impl.bench.shapes import SHAPES, decode_cost, matrix_weights, train_cost
from dalle_mini_impl.bench.timing import median_seconds, peak_memory
from dalle_mini_impl.cli import bench, dalle
from dalle_mini_impl.config.scenes import ScenesConfig
from dalle_mini_impl.config.training import ImageTokenizerRun, TransformerRun
from dalle_mini_impl.util.errors import UserError

QUICK = SHAPES["quick"]


# --- limits


def test_least_seconds_are_the_larger_of_copying_and_computing():
    machine = MachineSpeed("cpu", copy=100.0, flops={"bf16": 1000.0, "fp32": 500.0})
    assert machine.seconds(2000, 100, "bf16") == 2
    assert machine.seconds(2000, 100, "fp32") == 4
    assert machine.seconds(2000, 300, "int8") == 3  # 8-bit weights are multiplied in bf16


def test_machine_speed_is_measured():
    machine = measure_machine("cpu", repeats=1)
    assert machine.copy > 1e8
    assert all(rate > 1e8 for rate in machine.flops.values())


def test_matrix_weights_are_those_of_the_blocks():
    # Per block: queries, keys, values and output 4 C², feed-forward 3 C × 192
    assert matrix_weights(QUICK.build()) == 2 * (4 * 64**2 + 3 * 64 * 192)


def test_cost_of_a_decoding_step():
    weights, sampled = 1000, 32
    plain = decode_cost(QUICK, weights, 3, False, "bf16")
    products = 2 * 3 * (weights + 64 * 128)
    attention = 3 * 2 * (2 * 2) * 64 * (9 + sampled)  # rows, layers, two products of two operations, width, positions
    assert plain.flops == products + attention
    # Weights once; keys and values of two layers: 9 shared positions, and 32 of each row.
    assert plain.bytes_moved == 2 * (weights + 64 * 128) + 2 * (2 * 2 * 64 * (9 + 3 * sampled))
    guided = decode_cost(QUICK, weights, 3, True, "bf16")
    assert guided.flops == 2 * plain.flops
    assert guided.bytes_moved == plain.bytes_moved + 2 * (2 * 2 * 64 * (9 + 3 * sampled))
    assert decode_cost(QUICK, weights, 3, False, "int8").bytes_moved == plain.bytes_moved - (weights + 64 * 128)


def test_cost_of_a_training_step():
    weights = 1000
    length = 8 + 64
    head = 8 * (128 + 8) + 64 * 128
    forward = 2 * (weights * length + 64 * head) + 2 * 2 * 2 * 64 * length**2 / 2
    assert train_cost(QUICK, weights, 5).flops == pytest.approx(3 * 5 * forward)


def test_ids_of_candidates_drawn_together_and_apart_are_compared():
    rows = list(chunk_rows(QUICK, MachineSpeed("cpu", 1e9, {"bf16": 1e9, "fp32": 1e9}), 8))
    assert [row.name for row in rows] == ["chunks/1", "chunks/2"]
    for row in rows:
        assert row.ours == 1.0  # compiled code for a CPU computes each row by itself
        assert row.note.startswith("100% of 8 pictures equal")


# --- timing


def test_runs_are_interleaved_after_a_warm_up():
    calls = []
    seconds = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", repeats=3)
    assert calls == ["a", "b"] * 4
    assert all(0 <= value < 1 for value in seconds.values())


def test_a_single_round_has_no_warm_up():
    calls = []
    median_seconds({"a": lambda: calls.append("a")}, "cpu", repeats=1)
    assert calls == ["a"]


def test_peak_memory_includes_memory_freed_before_the_end():
    def use():
        block = torch.ones(2**26)  # 256 MiB
        for _ in range(20):
            block.add_(1)

    assert peak_memory(use, "cpu") > 0.5 * 2**28


# --- report


def test_ratio_is_the_factor_by_which_ours_is_better():
    assert BenchRow("sample/1/plain", 2.0, "peer", 10.0).ratio == 5
    assert BenchRow("learn/image-tokenizer", 24.0, "peer", 20.0, higher_is_better=True).ratio == 1.2
    assert math.isnan(BenchRow("startup/help", 0.2).ratio)
    assert math.isnan(BenchRow("startup/of which the package", 0.0).ratio)


def test_rows_as_table_and_json():
    rows = [BenchRow("sample/1/plain", 2.0, "peer", 10.0, 0.55, "8 ids/s"), BenchRow("startup/help", 0.21)]
    lines = bench_table(rows).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["sample/1/plain", "2", "peer", "10", "5.00x", "55%", "8", "ids/s"]
    assert lines[2].split() == ["startup/help", "0.21"]
    values = json.loads(json.dumps([row.as_json() for row in rows], allow_nan=False))
    assert values[0]["ratio"] == 5
    assert values[1]["theirs"] is values[1]["limit_share"] is None


# --- peers


@pytest.mark.parametrize("kind", [peers.DallePytorch, peers.Llama])
@pytest.mark.parametrize("guided", [True, False])
def test_peers_sample_image_ids_and_can_be_trained(kind, guided):
    try:
        peer = kind(QUICK, "cpu")
    except UserError:
        pytest.skip(f"{kind.name} is not installed")
    ids = peer.sample(3, guided)
    assert ids.shape == (3, 64)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 128
    peer = kind(QUICK, "cpu")
    loss = peer.loss(torch.randint(2, 128, (2, 8)), torch.randint(0, 128, (2, 64)))
    loss.backward()
    assert 3 < float(loss.detach()) < 7  # nearly uniform over the ids that are possible at each position


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.find_peers(()) == bench.find_peers(("none",)) == {}
    with pytest.raises(UserError, match="transformers not installed; in a clone, make peers installs it"):
        bench.find_peers(("transformers",))
    with pytest.raises(UserError, match="dalle-pytorch is not installed; in a clone, make peers installs it"):
        peers.DallePytorch(QUICK, "cpu")
    with pytest.raises(UserError, match=r"\.\[bench\]"):
        peers.Llama(QUICK, "cpu")


# --- the learning races


class SteppingClock:
    """A clock that advances by one second at each reading."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


def test_race_runs_for_the_given_minutes_with_evenly_spaced_checks(monkeypatch):
    monkeypatch.setattr(race, "time", SteppingClock())
    steps = []
    curve = list(
        race.train_for(lambda number, progress: steps.append((number, progress)), lambda: 0.5, minutes=0.1, checks=3)
    )
    assert [number for number, _ in steps] == list(range(6))
    assert [progress for _, progress in steps] == pytest.approx([n / 6 for n in range(6)])
    assert [minutes for minutes, _ in curve] == pytest.approx([2 / 60, 4 / 60, 6 / 60])
    assert [nats for _, nats in curve] == [0.5] * 3


def test_transformer_race_trains_both_sides_and_reports_the_best_of_each(monkeypatch, trained, tmp_path):
    monkeypatch.setattr(race, "time", SteppingClock())  # by which each step takes a second
    monkeypatch.setattr(race, "HELD_OUT", 5)
    sides = []
    if importlib.util.find_spec("dalle_pytorch") is None:
        monkeypatch.setattr(race, "peer_side", lambda *rest: (lambda *step: None, lambda held_out: 2.0))
    train_side = race.train_for

    def record_side(*arguments):
        sides.append(list(train_side(*arguments)))
        return sides[-1]

    monkeypatch.setattr(race, "train_for", record_side)
    config = tmp_path / "transformer.yaml"  # the peer needs wider heads
    config.write_text((trained.folder / "transformer.yaml").read_text().replace("n_embd: 16", "n_embd: 64"))
    (row,) = race.race(config, minutes=1.0, device="cpu", checks=3, peer_batch=4)
    ours, theirs = ([nats for _, nats in curve] for curve in sides)
    assert len(ours) == len(theirs) == 3
    assert ours[-1] < ours[0] < math.log(13) + 0.5  # 13 image ids
    assert (row.name, row.peer, row.ours, row.theirs) == ("learn/transformer", "dalle-pytorch", min(ours), min(theirs))
    assert "scenes" not in row.note


@pytest.mark.parametrize("config", [TransformerRun(), ImageTokenizerRun()], ids=type)
def test_a_race_says_that_it_leaves_scenes_out(config):
    assert race.of_scenes(config) == ""
    assert "without the config's scenes" in race.of_scenes(replace(config, scenes=ScenesConfig(store="emoji")))


def test_image_tokenizer_race_reports_the_best_psnr_of_each_side(monkeypatch, trained):
    monkeypatch.setattr(race, "time", SteppingClock())
    if importlib.util.find_spec("dalle_pytorch") is None:
        monkeypatch.setattr(
            race_image_tokenizer, "peer_side", lambda *rest: (lambda *step: None, lambda pixels: pixels * 0)
        )
    row, perceptual = race_image_tokenizer.race(
        trained.folder / "image_tokenizer.yaml", minutes=0.5, device="cpu", checks=3
    )
    assert perceptual.ours > 0
    ours, theirs = ([quality for _, quality in row.details["curves"][side]] for side in ("ours", "dalle-pytorch"))
    assert len(ours) == len(theirs) == 3
    assert ours[-1] > ours[0]
    assert (row.name, row.peer, row.ours, row.theirs) == (
        "learn/image-tokenizer",
        "dalle-pytorch",
        max(ours),
        max(theirs),
    )


def test_image_tokenizer_race_also_compares_perceptual_distance(monkeypatch, trained):
    monkeypatch.setattr(race, "time", SteppingClock())
    for side, factor in (("own_side", 1), ("peer_side", 0)):  # a perfect copy, and uniform grey
        copy = (lambda *step: None, lambda pixels, factor=factor: pixels * factor)
        monkeypatch.setattr(race_image_tokenizer, side, lambda *rest, copy=copy: copy)
    _, perceptual = race_image_tokenizer.race(
        trained.folder / "image_tokenizer.yaml", minutes=0.1, device="cpu", checks=1
    )
    assert (perceptual.name, perceptual.ours, perceptual.higher_is_better) == ("learn/image-tokenizer/looks", 0, False)
    assert perceptual.theirs > 0.3


def test_verdict_reports_when_the_peers_best_was_reached():
    curves = {"ours": [(1.0, 5.0), (2.0, 4.0), (3.0, 3.0)], "dalle-pytorch": [(1.0, 6.0), (2.0, 4.5), (3.0, 4.2)]}
    row = race.race_row("learn/x", "nats", curves, 3)
    assert (row.ours, row.theirs, row.note) == (3.0, 4.2, "nats; the peer's best reached after 2.00 of 3 min")
    row = race.race_row("learn/x", "dB", curves, 3, higher_is_better=True)
    assert (row.ours, row.theirs, row.note) == (5.0, 6.0, "dB; the peer's best reached after nan of 3 min")
    assert row.ratio == 5 / 6


# --- the command


def run(*arguments):
    return CliRunner().invoke(dalle, ["bench", *arguments], catch_exceptions=True)


@pytest.mark.slow
def test_command_writes_a_table_and_json(tmp_path):
    path = tmp_path / "bench.json"
    result = run("--quick", "--peer", "none", "--json", str(path), "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    sampling = {f"sample/{n}/{kind}" for n in (1, 16, 64) for kind in ("guided", "plain")}
    parts = {"encode", "decode", "train/image-tokenizer", "score", "text-tokenizer", "startup/help", "startup/sample"}
    prompts = {f"prompts/64/{kind}" for kind in ("guided", "plain")}
    assert {*sampling, *prompts, *parts, "train", "train/muon"} <= set(rows)
    assert all(rows[name]["peer"] == "one by one" and rows[name]["theirs"] > 0 for name in prompts)
    assert all(rows[name]["ours"] > 0 and rows[name]["limit_share"] > 0 for name in (*sampling, "train"))
    assert result.output.rstrip().endswith(str(path))
    assert "sample/64/guided" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "huge"], "'huge' is not one of 'R', 'emoji', 'gpu', '300m', 'quick'"),
        (["--peer", "minDALL-E"], "'minDALL-E' is not one of 'dalle-pytorch', 'transformers', 'faiss', 'none'"),
        (["--repeats", "0"], "0 is not in the range x>=1"),
        (["--candidates", "1,many"], "'many' is not a valid integer range"),
        (["--candidates", "1,0"], "0 is not in the range x>=1"),
        (["--minutes", "-1"], "-1.0 is not in the range 0<=x<=1000000"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_choices_of_shapes_are_the_shapes():
    assert tuple(SHAPES) == bench.SHAPE_NAMES


def test_lines_of_progress_name_both_times():
    row = BenchRow("train", 2.0, "transformers", 3.0, 0.5, "100 ids/s")
    assert row_line(row) == "train: 2; transformers 3, 1.50x; 100 ids/s"
    assert row_line(BenchRow("startup", 0.25)) == "startup: 0.25"
    assert row_line(BenchRow("search", 0.25, "faiss", note="no peer")) == "search: 0.25; no peer"


def test_json_on_standard_output_is_all_there_is():
    result = run("--quick", "--only", "sample", "--peer", "none", "--json", "-", "--candidates", "2", "--device", "cpu")
    assert [row["name"] for row in json.loads(result.stdout)] == ["sample/2/guided", "sample/2/plain"]
    assert "sample/2/guided" in result.stderr


# --- growth


@pytest.fixture
def small_growth(monkeypatch):
    """Growth over few and small values."""
    monkeypatch.setattr(growth, "CANDIDATES", (1, 3))
    monkeypatch.setattr(growth, "SIDES", (2,))
    monkeypatch.setattr(growth, "WIDTHS", (64, 128))


def test_growth_has_a_row_for_each_value(small_growth):
    machine = MachineSpeed("cpu", copy=1e10, flops={"bf16": 1e11, "fp32": 1e11})
    rows = list(growth.growth_rows(QUICK, machine, repeats=1))
    names = ["candidates/1", "candidates/3", "image-ids/4", "width/64", "width/128"]
    assert [row.name for row in rows] == [f"growth/{name}" for name in names]
    lengths = [64, 64, 4, 64, 64]
    for row, length in zip(rows, lengths, strict=True):
        assert row.details["ms_per_step"] == pytest.approx(1e3 * row.ours / length)
        assert row.details["least_ms"] == pytest.approx(row.details["ms_per_step"] * row.limit_share)
    assert rows[1].details["least_ms"] > rows[0].details["least_ms"]
    assert rows[4].details["least_ms"] > 2 * rows[3].details["least_ms"]


def test_growth_is_plotted(small_growth, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "growth.png"
    arguments = ["bench", "--shape", "quick", "--repeats", "1", "--only", "growth", "--peer", "none"]
    result = CliRunner().invoke(dalle, [*arguments, "--plot", str(path)])
    assert result.exit_code == 0, result.output
    with Image.open(path) as image:
        assert image.width > image.height > 100


def test_plotting_growth_needs_its_extra_and_its_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"\[bench\]"):
        growth.plot_growth([], tmp_path / "growth.png")
    plot = ["bench", "--quick", "--plot", str(tmp_path / "growth.png")]
    result = CliRunner().invoke(dalle, [*plot, "--only", "growth"])
    assert "matplotlib is not installed" in str(result.exception)
    monkeypatch.undo()
    result = CliRunner().invoke(dalle, plot)
    assert isinstance(result.exception, UserError)
    assert "--only growth" in str(result.exception)


# --- masks


def test_masks_have_a_row_for_each_schedule_and_length():
    machine = MachineSpeed("cpu", copy=1e10, flops={"bf16": 1e11, "fp32": 1e11})
    rows = list(mask_rows(QUICK, machine, 1, [2]))
    schedules = ("row", "column", "conv", "dalle-1")
    assert [row.name for row in rows] == [
        f"masks/{lengths}/2/{name}" for lengths in ("8+64", "32+256") for name in schedules
    ]
    assert all(row.peer == "full" and row.ours > 0 and row.theirs > 0 for row in rows)
    assert rows[-1].note == f"{1e3 * rows[-1].ours / 256:.2f} ms/step, full {1e3 * rows[-1].theirs / 256:.2f}"


def test_shapes_are_built_with_their_masks():
    model = QUICK.build(("row", "full"), "column")
    assert [block.attention.attention_mask is None for block in model.blocks] == [False, False]
    assert [block.attention.attention_mask is None for block in QUICK.build().blocks] == [True, True]


# --- imported models


@pytest.mark.skipif(importlib.util.find_spec("dalle_pytorch") is None, reason="dalle-pytorch is not installed")
def test_imported_rows_time_both_models():
    machine = MachineSpeed("cpu", copy=1e9, flops={"bf16": 1e9, "fp32": 1e9})
    rows = list(imported_rows(QUICK, machine, repeats=1, counts=[2]))
    assert [(row.name, row.peer) for row in rows] == [
        ("imported/2/guided", "dalle-pytorch"),
        ("imported/2/plain", "dalle-pytorch"),
    ]
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)


# --- beside another program


@pytest.mark.slow
def test_work_is_timed_alone_and_beside_a_busy_core():
    rows = list(neighbour.neighbour_rows("quick", repeats=1))
    works = {"sampling", "training", "scoring"}
    assert {row.name.split("/")[1] for row in rows} == works
    assert len(rows) == 3 * len(works)
    for row in rows:
        (alone,) = {other.theirs for other in rows if other.name.startswith(row.name.rsplit("/", 1)[0])} & {row.theirs}
        assert row.ours > 0
        assert row.details["beside_to_one_thread_alone"] == pytest.approx(row.ours / alone)
    assert [row.details["alone"] for row in rows if row.name.endswith("/1")] == [row.theirs for row in rows[::3]]


def test_the_busy_core_is_idle_again_afterwards():
    with neighbour.busy_core() as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_a_worker_that_ends_early_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="the process for sampling ended"):
        neighbour.Worker("sampling", "quick", {})


# --- progress


def terminal(monkeypatch):
    """Standard error as a terminal, of which everything written is kept."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_terminal_shows_what_is_being_timed_and_nothing_is_left_of_it(monkeypatch):
    screen = terminal(monkeypatch)
    shown = []
    median_seconds({"first": lambda: shown.append(screen.getvalue())}, "cpu", repeats=2)
    assert "timing first:   0%|" in shown[0]
    assert screen.getvalue().endswith("\r")
    assert not screen.getvalue().rsplit("\r", 2)[1].strip()


def test_a_race_shows_how_many_seconds_are_over(monkeypatch):
    screen = terminal(monkeypatch)
    list(race.train_for(lambda number, progress: None, lambda: 0.5, minutes=0.005, checks=2))
    assert " of 0 s" in screen.getvalue()


def test_files_get_no_progress(capsys):
    median_seconds({"first": lambda: None}, "cpu", repeats=2)
    assert capsys.readouterr().err == ""
