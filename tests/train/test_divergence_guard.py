import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.train import image_tokenizer
from dalle_mini_impl.train.codebook_usage import REMEDIES, CodebookUsage
from dalle_mini_impl.train.divergence_guard import DivergenceGuard
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.util.errors import UserError


class Learner:
    """Something that is trained."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 5)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.1)
        self.average = Ema(self.model, 0.5)
        self.guard = DivergenceGuard(self.model, [self.optimizer], self.average)
        self.guard.save_good_state(0)

    def step(self, number=0):
        self.model(torch.ones(2, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, number)

    def state(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.average.state))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return all(map(same, one, other))
    return one == other


# --- what is in order


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_not_finite_are_rejected(bad):
    guard = Learner().guard
    assert guard.accepts(1.0, 2.0, 3.0)
    assert not guard.accepts(bad, 2.0, 3.0)
    assert not guard.accepts(1.0, bad, 3.0)
    assert not guard.accepts(1.0, 2.0, bad)
    assert guard.accepts(1.0, -2.0, 3.0)


def test_a_diverging_error_is_rejected():
    guard = Learner().guard
    for _ in range(50):
        assert guard.accepts(1.0)
    assert guard.accepts(10.0)  # one bad batch
    for _ in range(50):
        assert guard.accepts(1.0)
    answers = [guard.accepts(1.3**number) for number in range(20)]
    assert answers[:5] == [True] * 5
    assert answers[-1] is False


def test_an_error_that_falls_or_rises_a_little_is_accepted():
    guard = Learner().guard
    assert all(guard.accepts(1 / (1 + number)) for number in range(100))
    assert all(guard.accepts(0.02) for _ in range(100))


# --- going back


def test_rolling_back_restores_the_last_good_state():
    learner = Learner()
    for number in range(3):
        learner.step(number)
    learner.guard.save_good_state(3)
    good = learner.state()
    learner.step(3)
    assert not same(learner.state(), good)
    assert learner.guard.rate_factor == 1
    told = learner.guard.roll_back(4, math.nan)
    assert told == "step 5: the loss is nan; back to the weights after step 3, learning rate × 0.5 from here"
    assert same(learner.state(), good)
    assert learner.guard.rate_factor == 0.5
    learner.step(4)  # what is kept does not change with what is trained
    learner.guard.roll_back(5, 7.0)
    assert same(learner.state(), good)
    assert learner.guard.rate_factor == 0.25


def test_the_third_divergence_in_a_row_ends_the_run():
    guard = Learner().guard
    guard.roll_back(0, math.nan)
    guard.roll_back(1, math.nan)
    message = r"step 3: the loss is nan, not finite or diverging for the 3rd time in a row; lower optimizer\.learning"
    with pytest.raises(UserError, match=message):
        guard.roll_back(2, math.nan)


def test_a_good_state_resets_the_count_but_not_the_rate():
    guard = Learner().guard
    for number in range(5):
        guard.roll_back(number, math.nan)
        guard.save_good_state(number)
    assert guard.rate_factor == 2**-5


# --- in a run


def poison(monkeypatch, *steps):
    """Let the loss be no number in these steps."""
    build, count = image_tokenizer.build_picture_loss, iter(range(1000))

    def built(config, device):
        picture_loss = build(config, device)

        def poisoned(result, target):
            scale = math.nan if next(count) in steps else 1.0
            return {name: scale * term for name, term in picture_loss(result, target).items()}

        return poisoned

    monkeypatch.setattr(image_tokenizer, "build_picture_loss", built)


GAN = ("gan.weight=0.5", "gan.start=0.2", "gan.discriminator_warmup=1", "gan.channels=[5, 7]")


@pytest.mark.parametrize("settings", [(), GAN])
def test_a_run_recovers_from_a_loss_of_nan(trained, tmp_path, monkeypatch, capsys, settings):
    poison(monkeypatch, 5, 7)
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    home.run("image_tokenizer", *settings)
    log = home.log("image_tokenizer")
    assert [line["step"] for line in log if "loss" in line] == [0, 1, 2, 3, 4, 6, 8, 9]
    assert all(math.isfinite(value) for line in log for value in line.values())
    told = [line for line in capsys.readouterr().out.splitlines() if "back to the weights" in line]
    assert [line.split(";")[0] for line in told] == ["step 6: the loss is nan", "step 8: the loss is nan"]
    assert [line.split("step ")[2] for line in told] == [
        "4, learning rate × 0.5 from here",
        "4, learning rate × 0.25 from here",
    ]
    tokenizer = ImageTokenizer.from_pretrained(home.folder / "model")
    assert all(bool(value.isfinite().all()) for value in tokenizer.parameters())


def test_a_run_that_keeps_diverging_ends(trained, tmp_path, monkeypatch):
    poison(monkeypatch, 4, 5, 6)
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    with pytest.raises(UserError, match="step 7: the loss is nan, not finite or diverging for the 3rd time in a row"):
        home.run("image_tokenizer")


def test_a_resumed_run_keeps_the_halved_rate(trained, tmp_path, monkeypatch):
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    with monkeypatch.context() as patch:
        poison(patch, 2)
        home.run("image_tokenizer")
    state = torch.load(home.folder / "image_tokenizer" / "state.pt", weights_only=True)
    watch = state["own"][0]["guard"]
    assert watch[2:].tolist() == [1, 0]
    assert float(watch[0]) >= float(watch[1]) > 0


# --- use of the codebook


class TrainingLog:
    def __init__(self):
        self.lines = []

    def message(self, line):
        self.lines.append(line)


def use_of(quantizer="vq"):
    alone = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, how: value)
    return CodebookUsage(alone, SimpleNamespace(codebook_size=61, quantizer=quantizer))


def test_use_is_counted():
    use = use_of()
    use.add(torch.tensor([[[3, 3], [60, 0]]]))
    use.add(torch.tensor([[[3, 3], [60, 60]]]))
    figures = use.figures()
    assert figures["usage"] == pytest.approx(3 / 61)
    assert figures["dead"] == 58
    assert figures["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in (4 / 8, 3 / 8, 1 / 8))))


@pytest.mark.parametrize("quantizer", REMEDIES)
def test_a_collapse_is_warned_about_once(quantizer):
    use, log = use_of(quantizer), TrainingLog()
    use.add(torch.arange(7))
    use.end_epoch(log)
    assert log.lines == []
    for _ in range(3):
        use.add(torch.arange(6))
        use.end_epoch(log)
    assert log.lines == [f"warning: only 9.8% of the codebook was used in an epoch; {REMEDIES[quantizer]}"]
    assert use.figures()["dead"] == 61


def test_a_run_warns_of_a_collapse(trained, tmp_path, capsys):
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    # 33 pictures of 4 ids cannot use more than an eighth; few that look alike use less
    home.run("image_tokenizer", "model.quantizer=lfq", "model.codebook_size=4096", "model.embed_dim=12", "run.steps=4")
    assert capsys.readouterr().out.count("of the codebook was used in an epoch; raise the second number") == 1
