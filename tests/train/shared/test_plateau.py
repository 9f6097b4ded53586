import math
from types import SimpleNamespace

import pytest
import torch
from helpers.training import interrupt, launch_two, outcome

from dalle_mini_impl.config.training import PlateauConfig
from dalle_mini_impl.train.shared.plateau import Plateau
from dalle_mini_impl.util.errors import UserError

ALONE = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, how: value)


def look(losses, **settings):
    """The rate after each of some validations, and what was said."""
    usual = {"halvings": 5, "patience": 3, "min_gain": 0.01, "loss": "validation"}
    plateau = Plateau(PlateauConfig(**(usual | settings)))
    return [(plateau.after_validation(ALONE, loss), plateau.rate_factor) for loss in losses]


def rates(losses, **settings):
    return [rate for _, rate in look(losses, **settings)]


def test_the_rate_is_halved_after_so_many_validations_without_gain():
    assert rates([4.0, 3.0, 3.1, 3.0, 2.98, 2.99, 2.0, 2.0]) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def test_the_rate_is_halved_again_after_another_plateau():
    assert rates([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], patience=2) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_the_number_of_halvings_is_limited():
    assert rates([3.0] * 9, patience=1, halvings=5)[-4:] == [1 / 32] * 4
    assert rates([3.0] * 9, patience=1, halvings=0) == [1] * 9


def test_small_gains_add_up():
    # Three validations gain one percent together: no plateau, though none of them does alone.
    assert rates([3.0 * 0.996**n for n in range(12)]) == [1] * 12
    assert rates([3.0 * 0.998**n for n in range(12)])[-1] < 1


def test_a_loss_of_nan_is_no_gain():
    assert rates([3.0, math.nan, math.nan, math.nan]) == [1, 1, 1, 0.5]


def test_a_halving_returns_a_message():
    said = [news for news, _ in look([3.0, 3.25, 3.125], patience=2)]
    assert said[:2] == ["", ""]
    assert said[2] == (
        "the validation loss improved too little on 3 in 2 validations, it is 3.125 now; learning rate × 0.5 from here"
    )


def test_the_training_loss_is_the_mean_of_all_steps_and_processes():
    # This process's mean is 2 and then 4, the other's is 1 more.
    other = SimpleNamespace(device=torch.device("cpu"), reduce=lambda value, how: value + 0.5)
    plateau = Plateau(PlateauConfig(halvings=1, patience=1, loss="training"))
    for loss in (1.0, 2.0, 3.0):
        plateau.add(loss)
    assert plateau.after_validation(other, 99.0) == ""
    for loss in (3.0, 5.0):
        plateau.add(loss)
    assert "improved too little on 2.5 in 1 validations, it is 4.5 now" in plateau.after_validation(other, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "test"}, "plateau.loss is 'test'; expected training or validation"),
        ({"patience": 0}, "plateau.patience is 0; expected 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Plateau(PlateauConfig(**settings))


# --- in training: nothing counts as a gain, so the rate is halved after the second and the third validation

HALVING = (
    "plateau.halvings=2",
    "plateau.patience=1",
    "plateau.min_gain=0.99",
    "run.validate_every=2",
    "run.sample_every=0",
    "optimizer.decay_start=0.1",
)


def rates_of(home):
    return [line["rate"] for line in home.log("transformer") if "rate" in line]


@pytest.mark.parametrize("loss", ["training", "validation"])
def test_a_run_warms_up_and_waits_for_plateaus(trained, tmp_path, loss):
    home = trained.copy(tmp_path / "home", "transformer")
    home.run("transformer", *HALVING, f"plateau.loss={loss}")
    assert rates_of(home) == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def test_without_halvings_the_rate_follows_the_cosine(trained):
    assert rates_of(trained)[-1] < 0.15
    assert rates_of(trained)[3:] == sorted(rates_of(trained)[3:], reverse=True)


@pytest.mark.parametrize("step", [5, 6, 9])  # states are saved after the 4th and 8th: amid a round, and after one
def test_a_resumed_run_halves_as_the_uninterrupted_one(trained, tmp_path, monkeypatch, step):
    settings = (*HALVING, "run.validate_every=3")
    whole, broken = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "broken"))
    whole.run("transformer", *settings)
    (broken.folder / "model" / "transformer.safetensors").unlink()
    interrupt(broken, "transformer", step, monkeypatch, *settings)
    broken.run("transformer", "--resume", *settings)
    assert rates_of(whole)[-1] == 0.25
    assert outcome(broken, "transformer") == outcome(whole, "transformer")


@pytest.mark.slow
def test_two_processes_halve_as_one_does(trained, tmp_path):
    settings = (*HALVING, "optimizer.muon_learning_rate=0", "plateau.loss=training")
    one, two = (trained.copy(tmp_path / name, "transformer") for name in ("one", "two"))
    one.run("transformer", *settings)
    launch_two("-m", "dalle_mini_impl.train.transformer", *two.arguments("transformer", *settings))
    assert rates_of(two) == rates_of(one)
    assert rates_of(one)[-1] == 0.25
