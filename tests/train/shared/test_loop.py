import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import LoggerType
from helpers.training import run_sharded
from torch import distributed, nn

from dalle_mini_impl.config.training import RunConfig, TransformerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.train.shared import loop as common
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.run_record import RunRecord
from dalle_mini_impl.train.shared.state import STATE_FILE, load_state
from dalle_mini_impl.util.errors import UserError

RUN = RunConfig(model_dir="model", state_dir="state", precision="fp32", steps=29)


def process(index=0, count=1):
    """What plain functions ask of an Accelerator."""
    return SimpleNamespace(
        process_index=index,
        num_processes=count,
        is_main_process=index == 0,
        device=torch.device("cpu"),
        log=lambda *_, **__: None,
    )


@pytest.fixture
def start(monkeypatch):
    """`common.start_run` in a process that has not called it before, on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def fresh(**settings):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        return common.start_run(
            RunConfig(**{"model_dir": "model", "state_dir": "state", "precision": "fp32", **settings})
        )

    return fresh


def test_processes_wait_for_each_other_for_days():
    found = []

    def connect(*patience):
        AcceleratorState._reset_state(reset_partial_state=True)
        common.make_accelerator(*patience)
        backend = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        found.append(backend.options._timeout)

    run_sharded(connect)
    run_sharded(lambda: connect(timedelta(minutes=90)))
    assert found == [timedelta(days=7), timedelta(minutes=90)]


def test_the_patience_of_a_run_is_its_setting(start, monkeypatch):
    asked = []
    make = common.make_accelerator
    monkeypatch.setattr(
        common, "make_accelerator", lambda *patience, **options: asked.append(patience) or make(**options)
    )
    start(patience=1.5)
    start()
    assert asked == [(timedelta(minutes=90),), (timedelta(days=7),)]


# --- random numbers


def numbers(*seeds):
    return torch.rand(1009, generator=common.generator_for(*seeds))


def test_generators_depend_on_their_numbers_alone():
    before = numbers(3, 7)
    torch.manual_seed(5)
    assert torch.equal(numbers(3, 7), before)


def test_generators_of_other_numbers_are_unrelated():
    seeds = [(3, 7), (7, 3), (3, 8), (4, 7), (3, 7, 1), (37,), (2**40, 7)]
    draws = torch.stack([numbers(*seed) for seed in seeds])
    correlations = torch.corrcoef(draws) - torch.eye(len(seeds))
    assert correlations.abs().max() < 5 / math.sqrt(1009)


# --- who takes what


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 3), (5, 2)])
def test_passes_of_all_processes_cover_the_batch_once(processes, accumulation):
    run = RunConfig(batch_size=60, accumulation=accumulation)
    slices = [common.pass_rows(process(index, processes), run) for index in range(processes)]
    assert {len(own) for own in slices} == {accumulation}
    rows = [np.arange(60)[rows] for own in slices for rows in own]
    assert {len(part) for part in rows} == {60 // processes // accumulation}
    assert (np.concatenate(rows) == np.arange(60)).all()


@pytest.fixture
def replicated():
    """A network as DDP wraps it, in a process group of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    distributed.destroy_process_group()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_gradients_are_exchanged_in_the_last_pass_only(replicated, is_compiled):
    network = torch.compile(replicated) if is_compiled else replicated
    plain = nn.Linear(2, 1)
    found = [(item, replicated.require_backward_grad_sync) for item in common.exchanging_in_last("abc", network, plain)]
    assert found == [("a", False), ("b", False), ("c", True)]
    assert [(item, replicated.require_backward_grad_sync) for item in common.exchanging_in_last("a", network)] == [
        ("a", True)
    ]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ({"log_every": 3}, [2, 5, 6]),
        ({"log_every": 0, "save_every": 5, "validate_every": 0, "sample_every": 4}, [3, 4, 6]),
        ({"log_every": 0, "save_every": 0, "validate_every": 0, "sample_every": 0}, [6]),
    ],
)
def test_losses_are_looked_at_when_something_is_due(every, expected):
    run = RunConfig(steps=7, **{"save_every": 0, "validate_every": 0, "sample_every": 0, **every})
    assert [step for step in range(7) if common.is_looked_at(step, run)] == expected


def test_losses_are_looked_at_every_hundred_steps():
    run = RunConfig(steps=1000, log_every=0, save_every=0, validate_every=0, sample_every=0)
    assert [step for step in range(300) if common.is_looked_at(step, run)] == [99, 199, 299]


# --- averaged weights


class Counting(nn.Module):
    """One parameter, one buffer of each kind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 8.0]))
        self.register_buffer("scale", torch.tensor([1.0]))
        self.register_buffer("seen", torch.tensor(0))


def test_ema_by_hand():
    model = Counting()
    average = Ema(model, decay=0.15)
    model.weight.data = torch.tensor([1.0, 4.0])
    average.update(model, step=0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert average.state["weight"].tolist() == pytest.approx([0.9, 4.4])
    model.weight.data = torch.tensor([2.0, 2.0])
    average.update(model, step=1)  # decay 0.15, because 2 / 11 is more
    assert average.state["weight"].tolist() == pytest.approx([0.15 * 0.9 + 0.85 * 2, 0.15 * 4.4 + 0.85 * 2])


def test_decay_grows_to_its_final_value():
    decays = []
    for step in (0, 1, 10, 88, 1000, 10**6):
        model = Counting()
        average = Ema(model, decay=0.99)
        model.weight.data = torch.tensor([1.0, 8.0])
        average.update(model, step)
        decays.append(1 - average.state["weight"][0].item())
    assert decays == pytest.approx([0.1, 2 / 11, 11 / 20, 89 / 98, 0.99, 0.99], abs=1e-6)


def test_buffers_are_copied():
    model = Counting()
    average = Ema(model, decay=0.99)
    model.scale += 3
    model.seen += 5
    average.update(model, step=10**6)
    assert (average.state["scale"].item(), average.state["seen"].item()) == (4, 5)


def test_ema_is_swapped_into_the_model_and_out_again():
    model = Counting()
    average = Ema(model, decay=0.5)
    model.weight.data = torch.tensor([0.1, 9.7])
    model.seen += 5
    before = [value.clone() for value in model.state_dict().values()]
    with average.swapped_into(model):
        assert not model.training
        assert model.weight.tolist() == [0, 8]
        assert model.seen.item() == 0
    assert model.training
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert average.state["weight"].tolist() == [0, 8]


def test_ema_is_swapped_out_after_an_exception():
    model = Counting().eval()
    average = Ema(model, decay=0.5)
    model.weight.data += 1
    with pytest.raises(ZeroDivisionError), average.swapped_into(model):
        1 / 0  # noqa: B018
    assert model.weight.tolist() == [1, 9]
    assert not model.training


# --- when


def test_due_at_every_nth_step_and_at_the_last():
    assert [step for step in range(29) if common.is_due(step, 7, RUN)] == [6, 13, 20, 27, 28]
    assert [step for step in range(29) if common.is_due(step, 100, RUN)] == [28]
    assert not any(common.is_due(step, 0, RUN) for step in range(29))


# --- the journal


def log(folder, first=0, accelerator=None, config=None, **settings):
    run = RunConfig(**{"model_dir": "model", "state_dir": str(folder), "steps": 29, "batch_size": 6, **settings})
    return common.TrainingLog(accelerator or process(), run, config or TransformerRun(run=run, cache="ids"), first)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_writes_lines_and_the_config(tmp_path):
    book = log(tmp_path / "new" / "state")
    book.record(3, loss=0.25, psnr=11.5)
    (line,) = logged(tmp_path / "new" / "state")
    assert {name: line[name] for name in ("step", "loss", "psnr")} == {"step": 3, "loss": 0.25, "psnr": 11.5}
    assert line["seconds"] >= 0
    assert line["pictures_per_second"] > 0
    path = tmp_path / "new" / "state" / "config.yaml"
    assert load(TransformerRun, path) == TransformerRun(run=book.run, cache="ids")


def test_the_log_drops_lines_of_steps_that_are_repeated(tmp_path):
    book = log(tmp_path)
    for step in (0, 1, 2, 2, 3, 4):
        book.record(step, loss=step / 2)
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2, 2, 3, 4]
    log(tmp_path, first=3).record(3, loss=7)
    assert [(line["step"], line["loss"]) for line in logged(tmp_path)] == [(0, 0), (1, 0.5), (2, 1), (2, 1), (3, 7)]
    log(tmp_path)
    assert logged(tmp_path) == []


def test_the_log_survives_a_truncated_line(tmp_path):
    book = log(tmp_path)
    book.record(0, loss=1)
    book.record(1, loss=2)
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-9])
    log(tmp_path, first=1).record(1, loss=3)
    assert [(line["step"], line["loss"]) for line in logged(tmp_path)] == [(0, 1), (1, 3)]


def test_only_the_main_process_writes(tmp_path, capsys):
    book = log(tmp_path / "state", accelerator=process(1, 2))
    book.record(0, loss=1)
    book.message("hello")
    assert not (tmp_path / "state").exists()
    assert "hello" not in capsys.readouterr().out


def test_the_log_iterates_over_the_remaining_steps(tmp_path):
    book = log(tmp_path, first=25)
    assert list(book.steps()) == [(step, book.run) for step in (25, 26, 27, 28)]
    assert list(log(tmp_path, first=29).steps()) == []


@pytest.mark.parametrize("first_seconds", [0.5, 7.0])
def test_the_number_of_steps_follows_from_the_time_limit(tmp_path, monkeypatch, first_seconds):
    """Two minutes of steps that take three seconds each, but for the first."""
    now = 1000.0
    monkeypatch.setattr(common, "time", SimpleNamespace(monotonic=lambda: now))
    book = log(tmp_path, minutes=2.0, steps=1)
    for step, run in book.steps():
        share = (now - 1000) / 120
        if step:
            assert abs(run.steps - step / share) < 2
        last = step + 1 == run.steps
        assert last == (share >= 1)
        now += 3 if step else first_seconds
    assert last
    assert 120 <= now - 1000 - 3 < 123


def test_a_slow_run_with_a_time_limit_has_a_last_step(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(common, "time", SimpleNamespace(monotonic=lambda: now))
    seen = []
    for step, run in log(tmp_path, minutes=1.0).steps():
        seen.append((step, run.steps))
        now += 100
    assert seen == [(0, 2), (1, 2)]


def test_a_run_with_a_time_limit_cannot_be_resumed():
    run = RunConfig(state_dir="state", minutes=1.5)
    with pytest.raises(
        UserError, match=r"expected run\.steps with --resume, got run\.minutes=1\.5, .* set run\.steps instead"
    ):
        load_state(process(), run, None, [], None, RunRecord())


# --- starting


def test_start_seeds_torch(start):
    start(seed=5)
    first = torch.rand(3)
    start(seed=5)
    assert torch.equal(torch.rand(3), first)
    start(seed=6)
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_start_sets_the_precision(start, precision, expected):
    with start(precision=precision).autocast():
        assert (torch.rand(2, 3) @ torch.rand(3, 2)).dtype == expected


def test_unconnected_processes_are_refused(start, monkeypatch):
    monkeypatch.setattr(common, "Accelerator", lambda **_: process(0, 1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but on this device each would work alone"):
        start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_dir": ""}, r"run\.model_dir is ''"),
        ({"state_dir": ""}, r"run\.state_dir ''; both must name a folder"),
        ({"precision": "int8"}, r"run\.precision is 'int8'; expected auto, bf16, fp16, fp32"),
        ({"precision": "fp16"}, r"expected bf16 or fp32 on a CPU, got fp16"),
        ({"tracker": "paper"}, r"run\.tracker is 'paper'; expected none, aim, .*tensorboard, trackio, wandb$"),
        ({"batch_size": 10, "accumulation": 3}, r"run\.batch_size 10 cannot be split .* a multiple of 3"),
        ({"batch_size": 0}, r"expected run\.batch_size of at least 1 and at most 16777216, got 0; change it"),
        ({"accumulation": 0}, r"expected run\.accumulation of at least 1 and at most 16777216, got 0; change it"),
        ({"steps": 0}, r"expected run\.steps of at least 1, got 0; change it"),
        ({"minutes": -1.0}, r"expected run\.minutes of at least 0, got -1\.0; change it"),
        ({"seed": -1}, r"expected run\.seed of at least 0, got -1; change it"),
    ],
)
def test_bad_settings_are_refused(start, settings, message):
    with pytest.raises(UserError, match=message):
        start(**settings)


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("tensorboard", r"tensorboard is not installed.*\[tensorboard\]"),
        ("wandb", "expected wandb to be installed for run.tracker, got no such package; pip install wandb"),
    ],
)
def test_trackers_that_are_not_installed_are_refused_before_training(start, monkeypatch, tracker, message):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(UserError, match=message):
        start(tracker=tracker)


def test_any_tracker_of_accelerate_gets_the_figures(start, tmp_path, monkeypatch):
    calls = []
    trackio: SimpleNamespace = SimpleNamespace(
        init=lambda project: calls.append(project) or trackio,
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TRACKIO])
    accelerator = start(tracker="trackio", state_dir=str(tmp_path))
    run = RunConfig(model_dir="model", state_dir=str(tmp_path), tracker="trackio")
    log = common.TrainingLog(accelerator, run, TransformerRun(run=run), 0)
    log.record(3, image=2.5)
    log.close()
    assert calls == ["dalle_mini_impl", (3, {"image": 2.5}), "finished"]


def test_tensorboard_gets_the_figures_of_the_log(start, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = start(tracker="tensorboard", state_dir=str(tmp_path))
    run = RunConfig(model_dir="model", state_dir=str(tmp_path), tracker="tensorboard")
    common.TrainingLog(accelerator, run, TransformerRun(run=run), 0).record(3, image=2.5, text=1.25)
    accelerator.end_training()
    (events,) = Path(tmp_path).rglob("events.out.*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("image")] == [(3, 2.5)]
    assert [(event.step, event.value) for event in read.Scalars("text")] == [(3, 1.25)]


def test_a_new_run_deletes_an_earlier_state_and_a_resumed_run_keeps_it(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(b"earlier")
    log(tmp_path, first=7)
    assert (tmp_path / STATE_FILE).exists()
    log(tmp_path, first=0)
    assert not (tmp_path / STATE_FILE).exists()
