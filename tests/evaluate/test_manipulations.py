"""Figures of variations, interpolations, text differences and inversion, on pictures whose content is known."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.drawings import CONCEPTS, HELD_OUT, drawing_on_white
from helpers.priors import take_embeddings
from helpers.scorers import AngleModel, make_scorer
from PIL import Image

from dalle_mini_impl.evaluate import judges, manipulations
from dalle_mini_impl.evaluate.generation import EvaluationContext, GenerationSettings
from dalle_mini_impl.evaluate.manipulations import (
    edit_shares,
    forward_share,
    is_monotonic,
    measure_edits,
    measure_interpolations,
    measure_inversion,
    measure_variations,
    random_pictures,
)
from dalle_mini_impl.evaluate.reference_pictures import build_r_precisions, open_reference_pictures
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only


@pytest.fixture(scope="module")
def context(store, tiny_model, tmp_path_factory):
    """A model that takes embeddings, and the drawings."""
    folder = take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("told") / "model"))
    reference = open_reference_pictures(store, (24, 24))
    measures = build_r_precisions(reference, {"pixels": judges.pixel_judge()})
    return EvaluationContext(DalleMini.from_pretrained(folder, "cpu"), reference, measures, GenerationSettings())


def shown_by(image):
    """The concept whose drawing by openmoji is the most like a picture."""
    middle = image.getpixel((12, 11))
    return min(CONCEPTS, key=lambda name: sum(abs(a - b) for a, b in zip(CONCEPTS[name], middle, strict=True)))


def test_variations_are_compared_with_random_pictures_of_the_style(context, monkeypatch):
    def generate(self, prompt, candidates, keep, seed, image_embed, **arguments):
        assert (prompt, candidates, keep) == ("", 4, 4)
        assert (arguments["prior"], arguments["decoder"]) == ("none", "diffusion")
        concept = shown_by(image_embed)
        images = [drawing_on_white(concept, vendor) for vendor in ("noto", "twemoji", "openmoji", "noto")]
        if concept == "rose":
            images[3] = images[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return [type("Candidate", (), {"image": image, "score": None}) for image in images]

    monkeypatch.setattr(DalleMini, "generate", generate)
    figures = measure_variations(context, pictures=9, count=4, decoder="diffusion")
    varied, random = figures.rows
    assert (varied.name, varied.count) == ("variations", 3)
    assert varied.shares["pixels"][0].value == 1
    assert random.name == "random pictures of the same style"
    assert random.shares["pixels"][0].value == 0  # they show other things
    assert figures.different.value == pytest.approx(1 / 3)
    distances = {name: value["pixels"].value for name, value in figures.distances.items()}
    assert 0 < distances["variations"] < distances["random pictures of the same style"]


def test_random_pictures_are_others_of_the_same_vendor(context):
    reference = context.reference
    indices = reference.indices("validation", ["plain"])
    found = random_pictures(context, indices, 5)
    assert found.shape == (3, 5)
    for row, index in zip(found, indices, strict=True):
        assert len(set(row.tolist()) - {index}) == 5
        assert (reference.vendor_ids[row] == reference.vendor_ids[index]).all()
    assert torch.equal(found, random_pictures(context, indices, 5))
    assert random_pictures(context, indices, 30).shape == (3, 30)  # of six others


def test_one_variation_alone_has_no_distance(context):
    with pytest.raises(UserError, match="expected at least 2 variations of each picture"):
        measure_variations(context, pictures=1, count=1)


@pytest.mark.parametrize(
    ("first", "second", "monotonic", "forward"),
    [
        ([1, 0.5, 0.1], [0.1, 0.5, 1], True, 1.0),
        ([1, 1, 0.1], [0.1, 0.1, 1], True, 0.5),  # a step without a change does not go back
        ([1, 0.2, 0.3], [0.1, 0.5, 1], False, 1.0),
        ([1, 0.5, 0.1], [0.1, 0.9, 0.8], False, 1.0),
        ([1, 0.1, 0.9], [0.1, 0.9, 0.2], False, 0.5),
        ([1, 1, 1], [0.1, 0.1, 0.1], False, 0.0),  # nothing changes at all
    ],
)
def test_a_strip_is_monotonic_if_it_never_goes_back_and_arrives_elsewhere(first, second, monotonic, forward):
    cosines = torch.tensor([first, second]).T
    assert is_monotonic(cosines) == monotonic
    assert forward_share(cosines) == forward


class GreenModel(AngleModel):
    """As `AngleModel`, by the green value."""

    def encode_image(self, pixels):
        return super().encode_image(pixels.roll(-1, 1))


def test_strips_are_measured_by_every_scorer(context, monkeypatch):
    """A strip on which red rises from one end to the other, and green rises beyond the other end and comes back."""
    strip = [Image.new("RGB", (24, 24), colour) for colour in ((10, 10, 0), (60, 200, 0), (120, 100, 0))]
    asked = []

    def mix(dalle, first, second, *, steps, seed, decoder):
        asked.append((first, second, steps, decoder))
        return [[type("Candidate", (), {"image": image})] for image in strip]

    monkeypatch.setattr(manipulations, "mix", mix)
    monkeypatch.setattr(manipulations, "to_images", lambda pixels: [strip[0], strip[2]])
    scorers = {"red": make_scorer(AngleModel()), "green": make_scorer(GreenModel())}
    figures = measure_interpolations(context, scorers, strips=5, steps=3, decoder="diffusion")
    assert asked == [(strip[0], strip[2], 3, "diffusion")]  # three pictures are held out, so that there is one pair
    assert (figures.count, figures.steps) == (1, 3)
    assert {name: share.value for name, share in figures.monotonic.items()} == {"red": 1, "green": 0}
    assert figures.both.value == 0
    assert {name: mean.value for name, mean in figures.forward.items()} == {"red": 1, "green": 0.5}
    assert measure_interpolations(context, {"red": scorers["red"]}, strips=1, steps=3).both is None


def test_interpolations_go_from_one_held_out_picture_to_another(context):
    figures = measure_interpolations(context, {"own": context.dalle.scorer}, strips=1, steps=2)
    assert figures.count == 1
    assert 0 <= figures.forward["own"].value <= 1


class ColourScorer:
    """Rates a picture by how near its middle is to a concept's colour."""

    def cosines(self, images, text):
        middles = [image.getpixel((12, 11)) for image in images]
        return torch.tensor(
            [-float(sum(abs(a - b) for a, b in zip(CONCEPTS[text], each, strict=True))) for each in middles]
        )


@pytest.mark.parametrize(("shown", "right"), [("target", 1), ("source", 0), ("reversed", 0)])
def test_edits_are_right_if_the_target_rises_and_the_source_falls(context, monkeypatch, shown, right):
    asked = []

    def edit(dalle, picture, source, target, *, theta, steps, decoder):
        assert (theta, steps, decoder) == (0.3, 2, "diffusion")
        assert shown_by(picture) == source
        asked.append((source, target))
        before, after = {"target": (source, target), "source": (source, source), "reversed": (target, source)}[shown]
        return type("Edit", (), {"images": [drawing_on_white(each, "openmoji") for each in (before, after)]})

    monkeypatch.setattr(manipulations, "edit", edit)
    figures = measure_edits(context, {"colours": ColourScorer()}, edits=7, theta=0.3, decoder="diffusion")
    assert figures.count == len(asked) == 3
    assert all(source != target and {source, target} <= {*HELD_OUT} for source, target in asked)
    for name in ("colours", "pixels"):
        shares = figures.shares[name]
        assert (shares.both.value, shares.target.value, shares.source.value) == (right, right, right)


def test_shares_of_edits_count_both_scores():
    # Target, another name and source before; the same after.
    scores = [
        [[0, 0, 1], [1, 0, 0]],
        [[0, 0, 1], [1, 0, 1]],
        [[0, 0, 1], [0, 1, 0]],
        [[1, 1, 0], [0, 0, 1]],
    ]
    shares = edit_shares(torch.tensor(scores, dtype=torch.float64))
    values = [share.value for share in (shares.both, shares.target, shares.source, shares.other)]
    assert values == [0.25, 0.5, 0.5, 0.25]


def test_judges_compare_edits_with_the_drawings_of_other_vendors_alone(context, monkeypatch):
    """A worse picture of the source is no edit, although the picture itself is nearer to itself than it."""
    worse = {name: drawing_on_white(name, "twemoji") for name in HELD_OUT}

    def edit(dalle, picture, source, target, **options):
        return type("Edit", (), {"images": [drawing_on_white(source, "openmoji"), worse[source]]})

    monkeypatch.setattr(manipulations, "edit", edit)
    figures = measure_edits(context, {}, edits=3, theta=0.5)
    assert figures.shares["pixels"].source.value == 0  # it is a drawing by twemoji, which counts


def test_judges_do_not_count_edits_of_what_no_other_vendor_drew(context, monkeypatch):
    reference = context.reference

    def edit(dalle, picture, source, target, **options):
        return type("Edit", (), {"images": [drawing_on_white(each, "openmoji") for each in (source, target)]})

    def shares(is_alone):
        """Edits where the drawings of some concepts are all by openmoji."""
        vendor = reference.vendor_names.index("openmoji")
        vendor_ids = torch.where(is_alone[reference.concept_ids], vendor, reference.vendor_ids)
        measures = {name: replace(one, vendor_ids=vendor_ids) for name, one in context.r_precisions.items()}
        changed = replace(context, reference=replace(reference, vendor_ids=vendor_ids), r_precisions=measures)
        return measure_edits(changed, {}, edits=3, theta=0.5).shares

    monkeypatch.setattr(manipulations, "edit", edit)
    nothing = torch.zeros(reference.concept_count, dtype=torch.bool)
    assert shares(nothing)["pixels"].both.value == 1
    one = nothing.clone()
    one[reference.concept_ids[reference.indices("validation", ("plain",))[0]]] = True
    assert shares(one) == {}  # each edit has the names of all three held-out pictures


def test_edits_need_three_concepts_with_names_of_their_own(context, monkeypatch):
    reference = replace(context.reference, concept_ids=torch.zeros_like(context.reference.concept_ids))
    with pytest.raises(UserError, match="expected held-out pictures of at least 3 concepts"):
        measure_edits(replace(context, reference=reference), {}, edits=1, theta=0.5)
    monkeypatch.setattr(manipulations, "prompt_of", lambda entry, with_style: "a thing")
    with pytest.raises(UserError, match="expected held-out pictures of at least 3 concepts"):
        measure_edits(context, {}, edits=1, theta=0.5)


def test_pictures_come_back_id_for_id(context, tiny_dalle, monkeypatch):
    figures = measure_inversion(context, pictures=3)
    assert (figures.count, figures.right, figures.exact.value, figures.different_ids) == (3, 3, 1, 0)
    without = EvaluationContext(tiny_dalle, context.reference, context.r_precisions, context.settings)
    assert measure_inversion(without, pictures=2).right == 2
    redraw, calls = manipulations.redraw, []

    def wrong_once(*arguments):
        calls.append(1)
        ids = redraw(*arguments)
        return ids if len(calls) != 2 else ids.roll(1) + 1

    monkeypatch.setattr(manipulations, "redraw", wrong_once)
    figures = measure_inversion(context, pictures=3)
    assert (figures.right, figures.exact.value) == (2, pytest.approx(2 / 3))
    assert figures.different_ids > 0
