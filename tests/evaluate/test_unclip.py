"""DALL-E 1 against DALL-E 2: figures of pictures whose content is known, and the command."""

import functools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.drawings import HELD_OUT, drawing_on_white
from helpers.priors import add_diffusion_decoder, add_prior, take_embeddings
from PIL import Image

from dalle_mini_impl.evaluate import judges
from dalle_mini_impl.evaluate.generation import EvaluationContext, GenerationSettings
from dalle_mini_impl.evaluate.reference_pictures import build_r_precisions, open_reference_pictures
from dalle_mini_impl.evaluate.unclip import compare_systems, comparison_table, with_prior_of
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

pytestmark = pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only

COARSE = judges.Judge("coarse", "coarse", lambda pixels: judges.resize(pixels, 4).flatten(1))
"""A judge of 48 numbers, whose Fréchet distances take no time."""


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny checkpoint with an autoregressive prior and a transformer that takes embeddings."""
    return add_prior(take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("prior") / "model")), "ar")


@pytest.fixture
def context(store, folder):
    reference = open_reference_pictures(store, (24, 24))
    measures = build_r_precisions(reference, {"coarse": COARSE})
    settings = GenerationSettings(pairs=100, candidates=3)
    return EvaluationContext(DalleMini.from_pretrained(folder, "cpu"), reference, measures, settings)


@pytest.fixture
def drawn(monkeypatch):
    """Have the model draw known pictures, the best one first, and return the arguments that it was called with.

    With a true embedding it draws the prompt's concept and style; by its prior the concept in another style first,
    then the right picture; of the text embedding something else in the right style; of the caption alone nothing.
    """
    calls = []

    def pictures(concept, arguments):
        other = "tree" if concept != "tree" else "sea"
        if arguments.get("image_embed") is not None:
            return [drawing_on_white(concept, "openmoji")] * 3
        if arguments["prior"] == "ar":
            return [drawing_on_white(concept, vendor) for vendor in ("noto", "openmoji", "openmoji")]
        if arguments["prior"] == "text":
            return [drawing_on_white(other, "openmoji")] * 3
        return [Image.new("RGB", (24, 24), (number * 90, 0, 255)) for number in range(3)]

    @functools.wraps(DalleMini.generate)  # `DalleMini.request` reads the signature
    def generate(self, prompt, candidates, keep, seed, **arguments):
        calls.append({"prompt": prompt, "counts": (candidates, keep), "seed": seed, **arguments})
        images = pictures(prompt.split(",")[0], arguments)
        fields = {"score": 0.5, "seed": 1, "image_ids": torch.zeros(1, 1)}
        candidates = tuple(type("Candidate", (), {"image": image, **fields}) for image in images)
        return type("Result", (tuple,), {"prompt": prompt})(candidates)

    monkeypatch.setattr(DalleMini, "generate", generate)
    return calls


def test_systems_are_measured_by_what_their_pictures_show(context, drawn, monkeypatch):
    def nearest(measure, rows):
        """A probe that knows the vendor of every drawing."""
        vendors = lambda features: measure.vendor_ids[measure.nearest(features)]  # noqa: E731
        return type("Probe", (), {"vendors": staticmethod(vendors)})

    monkeypatch.setattr("dalle_mini_impl.evaluate.styles.fit_style_probe", nearest)
    comparison = compare_systems(context, keep=2)
    figures = {system.name: system for system in comparison.systems}
    assert list(figures) == ["caption alone", "text embedding", "AR prior", "true embedding"]

    def top1(name):
        mean, best = figures[name].rows
        assert mean.count == best.count == len(HELD_OUT)
        return [row.shares["coarse"][0].value for row in (mean, best)]

    assert top1("true embedding") == top1("AR prior") == [1, 1]
    assert top1("text embedding") == top1("caption alone") == [0, 0]
    style = {name: system.style.drawn["coarse"].value for name, system in figures.items()}
    together = {name: system.style.together.shares["coarse"][0].value for name, system in figures.items()}
    names = ("true embedding", "text embedding", "AR prior")
    assert [style[name] for name in names] == [1, 1, 0]
    assert [together[name] for name in names] == [1, 0, 0]
    assert figures["true embedding"].diversity["coarse"].value == pytest.approx(0, abs=1e-6)
    assert figures["AR prior"].diversity["coarse"].value > 0.01  # of its two kept pictures, which differ in style
    assert all(system.seconds.value > 0 for system in comparison.systems)
    # Pictures that equal the real ones, each twice, differ from them in their variance alone, which is 4/5 of theirs;
    # others are the farther the more they differ.
    distances = {name: system.frechet for name, system in figures.items()}
    real = COARSE.features(to_pixels([drawing_on_white(name, "openmoji") for name in HELD_OUT], 24))
    expected = float(real.var(0).sum()) * (1 - 0.8**0.5) ** 2
    assert distances["true embedding"] == pytest.approx(expected, rel=0.02)
    assert distances["true embedding"] < distances["AR prior"] < distances["caption alone"]
    for name in figures:
        assert f"{figures[name].frechet:.1f}" in comparison_table(comparison.systems)


def test_a_single_caption_is_refused_before_anything_is_drawn(context, drawn):
    with pytest.raises(UserError, match="expected 2 or more held-out captions for the Fréchet distance, got 1"):
        compare_systems(replace(context, settings=replace(context.settings, pairs=1)), keep=1)
    assert not drawn


def test_systems_draw_the_same_captions_from_the_same_seeds_and_differ_in_their_embeddings(context, drawn):
    comparison = compare_systems(context, keep=1)
    captions = [(call["prompt"], call["seed"]) for call in drawn]
    assert captions == captions[:3] * 4
    assert len(set(captions)) == 3
    assert {call["counts"] for call in drawn} == {(3, 3)}
    assert [call["prior"] for call in drawn[::3]] == ["none", "text", "ar", "none"]
    assert not any("image_embed" in call for call in drawn[:9])
    for call in drawn[9:]:
        concept = call["prompt"].split(",")[0]
        expected = to_pixels([drawing_on_white(concept, "openmoji")], 24)
        torch.testing.assert_close(to_pixels([call["image_embed"]], 24), expected, atol=0.02, rtol=0)
    assert all(system.diversity == {} for system in comparison.systems)  # one picture has no distance


def test_examples_stand_beside_the_real_pictures(context, drawn):
    comparison = compare_systems(context, keep=2)
    assert next(iter(comparison.examples)) == "real picture"
    assert len(comparison.examples) == 5
    real, told = comparison.examples["real picture"], comparison.examples["true embedding"]
    for prompt, *images in zip(comparison.prompts, real, told, strict=True):
        expected = to_pixels([drawing_on_white(prompt.split(",")[0], "openmoji")] * 2, 24)
        torch.testing.assert_close(to_pixels(images, 24), expected, atol=0.02, rtol=0)


def test_what_a_checkpoint_has_no_part_for_is_left_out_and_named(context, drawn, store, tiny_dalle):
    left_out = compare_systems(context, keep=2).left_out
    assert list(left_out) == ["diffusion prior", "diffusion decoder", "diffusion decoder, true embedding"]
    assert left_out["diffusion prior"] == (
        "expected a checkpoint with a prior of kind diffusion, got one of kind ar; train one with dalle train prior, "
        "or choose prior text or none"
    )
    assert left_out["diffusion decoder"].startswith("expected a checkpoint with a diffusion decoder")
    comparison = compare_systems(replace(context, dalle=tiny_dalle), keep=2)
    assert [system.name for system in comparison.systems] == ["caption alone"]
    reasons = list(comparison.left_out.values())
    assert len(reasons) == 6
    assert all("expected a model with positions" in reason for reason in reasons[:4])


def test_a_prior_of_another_checkpoint_is_used_beside_the_own_one(context, drawn, tiny_model, other_scorer, tmp_path):
    pytest.importorskip("diffusers")
    other = add_prior(shutil.copytree(tiny_model, tmp_path / "model"), "diffusion")
    both = with_prior_of(context.dalle, str(other))
    assert (both.prior.kind, context.dalle.prior.kind) == ("diffusion", "ar")
    comparison = compare_systems(context, 2, [both])
    assert list(comparison.left_out) == ["diffusion decoder", "diffusion decoder, true embedding"]
    assert [call["prior"] for call in drawn[::3]] == ["none", "text", "diffusion", "ar", "none"]
    with pytest.raises(UserError, match=r"has no prior\.safetensors"):
        with_prior_of(context.dalle, str(tiny_model))
    with pytest.raises(UserError, match="expected a prior of another kind than the model's own, got diffusion in"):
        with_prior_of(both, str(other))


def test_a_diffusion_decoder_draws_by_the_diffusion_prior_and_by_the_true_embeddings(context, drawn, folder, tmp_path):
    pytest.importorskip("diffusers")
    model = add_diffusion_decoder(shutil.copytree(folder, tmp_path / "model"))
    (model / "prior.safetensors").unlink()
    dalle = DalleMini.from_pretrained(add_prior(model, "diffusion"), "cpu")
    comparison = compare_systems(replace(context, dalle=dalle), keep=2)
    assert list(comparison.left_out) == ["AR prior"]
    systems = [(call["prior"], call["decoder"], "image_embed" in call) for call in drawn[::3]]
    assert systems[-2:] == [("diffusion", "diffusion", False), ("none", "diffusion", True)]
    assert {decoder for _, decoder, _ in systems[:-2]} == {"tokens"}


def test_more_pictures_than_fit_are_refused_before_any_is_drawn(context, drawn, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.util.memory.available_memory", lambda: 3 * 24 * 24 * 9 - 1)
    with pytest.raises(UserError, match=r"expected 9 pictures to fit into .* take fewer --pairs or --candidates"):
        compare_systems(context, keep=2)
    assert drawn == []


def test_the_command_measures_everything(run, folder, store, other_scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: {"coarse": COARSE})
    paths = [tmp_path / name for name in ("figures.json", "sheet.png")]
    options = ("--data", store, "--device", "cpu", "--json", paths[0], "--sheet", paths[1])
    counts = ("--candidates", 2, "--keep", 2, "--pictures", 2, "--steps", 3)
    output = run("evaluate", "unclip", folder, *options, *counts, "--other-scorer", other_scorer)
    figures = json.loads(paths[0].read_text())
    assert [system["name"] for system in figures["systems"]] == [
        "caption alone",
        "text embedding",
        "AR prior",
        "true embedding",
    ]
    assert figures["systems"][0]["rows"][0]["count"] == 3  # all held-out pairs
    assert list(figures["left_out"]) == ["diffusion prior", "diffusion decoder", "diffusion decoder, true embedding"]
    assert "left out: diffusion prior: expected a checkpoint with a prior of kind diffusion" in output
    assert [row["count"] for row in figures["variations"]["rows"]] == [2, 2]
    assert (figures["interpolations"]["count"], figures["interpolations"]["steps"]) == (1, 3)
    assert set(figures["interpolations"]["monotonic"]) == {"own scorer", str(other_scorer)}
    assert set(figures["edits"]["shares"]) == {"own scorer", str(other_scorer), "coarse"}
    assert figures["inversion"]["right"] == figures["inversion"]["count"] == 2
    assert "pictures that come back id for id: 2 of 2" in output
    with Image.open(paths[1]) as sheet:  # three captions, each with the real picture and those of four systems
        assert sheet.width > 5 * 2 * 24
        assert sheet.height > 3 * 2 * 24


def test_the_command_measures_a_diffusion_decoder(run, folder, store, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(judges, "load_judges", lambda device: {"coarse": COARSE})
    model = add_diffusion_decoder(shutil.copytree(folder, tmp_path / "model"))
    (model / "prior.safetensors").unlink()
    add_prior(model, "diffusion")
    counts = ("--candidates", 2, "--keep", 2, "--pairs", 2, "--pictures", 2, "--steps", 2, "--decoder", "diffusion")
    run("evaluate", "unclip", model, "--data", store, "--device", "cpu", *counts, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["left_out"]) == ["AR prior"]
    systems = {system["name"]: system for system in figures["systems"]}
    assert len({systems[name]["frechet"] for name in ("diffusion prior", "diffusion decoder", "true embedding")}) == 3
    assert systems["diffusion decoder"]["rows"][0]["count"] == 2
    assert figures["settings"]["decoder"] == "diffusion"
    assert figures["variations"]["different"]["value"] == 1
    assert (figures["interpolations"]["count"], figures["edits"]["count"], figures["inversion"]["right"]) == (1, 2, 2)


def test_models_without_embeddings_are_measured_as_far_as_they_go(run, refused, tiny_model, store, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: {"coarse": COARSE})
    options = ("evaluate", "unclip", tiny_model, "--data", store, "--device", "cpu")
    output = run(*options, "--candidates", 1, "--pictures", 2, "--json", "-")
    figures = json.loads(output[output.index("\n{\n") :] if "\n{\n" in output else output)
    assert list(figures["left_out"]) == [
        "text embedding",
        "diffusion prior",
        "AR prior",
        "true embedding",
        "diffusion decoder",
        "diffusion decoder, true embedding",
        "variations",
        "interpolations",
        "edits",
    ]
    assert figures["inversion"]["right"] == 2
    output = run(*options, "--only", "inversion", "--pictures", 1)
    assert "systems" not in output
    assert "come back id for id: 1 of 1" in output
    for arguments, message in (
        (("--only", "edits"), "expected a model with positions for an image embedding, got one without"),
        (("--only", "edits", "--decoder", "diffusion"), "expected a checkpoint with a diffusion decoder"),
        (("--only", "variations", "--decoder", "diffusion"), "expected a checkpoint with a diffusion decoder"),
        (("--only", "interpolations", "--decoder", "diffusion"), "expected a checkpoint with a diffusion decoder"),
        (("--only", "inversion", "--sheet", "a.png"), "expected systems in --only with --sheet"),
        (("--only", "edits", "--other-prior", "a"), "expected systems in --only with --other-prior"),
        (
            ("--only", "systems", "--other-scorer", "a"),
            "expected interpolations or edits in --only with --other-scorer",
        ),
        (("--only", "beauty"), "beauty"),
        (("--theta", "1.5"), "--theta"),
        (("--keep", "1", "--only", "variations"), "expected at least 2 variations"),
    ):
        error = refused(*options, *arguments)
        assert message in error
        assert len(error.strip().splitlines()) == 1
