"""R-precision of generated, reconstructed and real pictures, and the commands that measure it."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.drawings import CONCEPTS, VENDORS, make_drawing
from helpers.models import IMAGE_TOKENIZER
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.entries import PictureEntry
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import build_store
from dalle_mini_impl.evaluate import judges
from dalle_mini_impl.evaluate import paint as paint_evaluation
from dalle_mini_impl.evaluate.generation import (
    EvaluationContext,
    GeneratedPictures,
    GenerationSettings,
    check_settings,
    generate_pictures,
    generated_rows,
    generation_rows,
    nearest_training_pictures,
    reconstruction_rows,
    reference_rows,
    sample_indices,
    share_row,
    sweep,
)
from dalle_mini_impl.evaluate.intervals import Share, ShareRow, format_share, mean_share, share_table
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision, has_other_vendor
from dalle_mini_impl.evaluate.reference_pictures import (
    build_r_precisions,
    open_reference_pictures,
    prompt_of,
)
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only

JUDGES = {"pixels": judges.pixel_judge()}


@pytest.fixture(scope="module")
def context(store, tiny_dalle):
    reference = open_reference_pictures(store, (24, 24))
    settings = GenerationSettings(pairs=2, candidates=3, temperatures=(0.5, 1.0), guidances=(1.0, 2.0), sweep_pairs=5)
    return EvaluationContext(tiny_dalle, reference, build_r_precisions(reference, JUDGES), settings)


def hand_made_r_precision():
    """Five reference pictures of three concepts by three vendors, as directions in the plane."""
    degrees = torch.tensor([0.0, 90.0, 10.0, 50.0, 180.0])
    features = torch.stack([(degrees * math.pi / 180).cos(), (degrees * math.pi / 180).sin()], 1)
    return RPrecision(
        judges.Judge("identity", "", lambda pixels: pixels),
        torch.zeros(2),
        torch.eye(2),
        features,
        concept_ids=torch.tensor([0, 0, 1, 2, 2]),
        vendor_ids=torch.tensor([0, 1, 1, 0, 2]),
    )


def direction(degrees):
    return torch.tensor([[math.cos(degrees * math.pi / 180), math.sin(degrees * math.pi / 180)]])


def test_a_concept_fits_as_well_as_its_nearest_picture():
    measure = hand_made_r_precision()
    # At 80° the nearest are concept 0 (by its picture at 90°; its other one is far), 2 (at 50°), then 1 (at 10°).
    features = direction(80).expand(3, -1)
    assert measure.ranks(features, torch.tensor([0, 1, 2])).tolist() == [0, 2, 1]
    assert measure.concept_count == 3


def test_pictures_of_one_vendor_can_be_excluded():
    measure = hand_made_r_precision()
    features, concept_ids = direction(80).expand(3, -1), torch.tensor([0, 0, 0])
    # Without vendor 1, concept 0 keeps only its picture at 0°, and concept 1 has none; without vendor 0, concept 2
    # keeps only its picture at 180°.
    assert measure.ranks(features, concept_ids, excluded_vendor_ids=torch.tensor([1, 0, 2])).tolist() == [1, 0, 0]
    excluded = torch.tensor([1, 0, 0])
    assert measure.ranks(features, torch.tensor([2, 2, 1]), excluded).tolist() == [0, 2, 1]


def test_ties_count_against_the_picture():
    measure = hand_made_r_precision()
    assert measure.ranks(direction(5), torch.tensor([1])).tolist() == [1]
    assert measure.ranks(torch.zeros(1, 2), torch.tensor([0])).tolist() == [2]


def test_ranks_do_not_depend_on_chunks(monkeypatch):
    measure = hand_made_r_precision()
    generator = torch.Generator().manual_seed(0)
    features, concept_ids = torch.randn(11, 2, generator=generator), torch.arange(11) % 3
    expected = measure.ranks(features, concept_ids, concept_ids)
    monkeypatch.setattr("dalle_mini_impl.evaluate.r_precision.CHUNK", 4)
    assert torch.equal(measure.ranks(features, concept_ids, concept_ids), expected)


def test_features_are_centred_half_whitened_and_normalised():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(97, 5, generator=generator) * torch.tensor([100.0, 1, 1, 1, 0]) + 7
    judge = judges.Judge("identity", "", lambda pixels: pixels)
    measure = build_r_precision(judge, features, torch.arange(97), torch.zeros(97, dtype=torch.int64))
    assert measure.reference_features.shape == (97, 4)  # the constant dimension is dropped
    torch.testing.assert_close(measure.reference_features.norm(dim=1), torch.ones(97))
    torch.testing.assert_close(measure.features_of(features), measure.reference_features)
    scaled = (features - measure.mean) @ measure.projection
    assert scaled.mean(0).abs().max() < 1e-3
    # Half whitened: a standard deviation of 100 becomes 10, one of 1 stays.
    torch.testing.assert_close(
        scaled.std(0).sort().values, features[:, :4].std(0).sort().values.sqrt(), rtol=0.05, atol=0
    )


def test_has_other_vendor():
    concept_ids, vendor_ids = torch.tensor([0, 1, 0, 2, 2]), torch.tensor([0, 1, 1, 2, 2])
    assert has_other_vendor(concept_ids, vendor_ids).tolist() == [True, False, True, False, False]


def test_mean_share_has_wilsons_interval():
    share = mean_share([1.0] * 8 + [0.0] * 2)
    assert share.value == 0.8
    assert (round(share.low, 4), round(share.high, 4)) == (0.4902, 0.9433)
    none = mean_share([0.0] * 100)
    assert none.low == 0
    assert 0.03 < none.high < 0.04


def test_share_row_counts_hits_at_one_and_five():
    row = share_row("x", {"judge": torch.tensor([[0, 4], [5, 0], [9, 9]])})
    assert row.count == 3
    assert [value.value for value in row.shares["judge"]] == pytest.approx([2 / 6, 3 / 6])
    flat = share_row("x", {"judge": torch.tensor([0, 4, 5, 1])})
    assert [value.value for value in flat.shares["judge"]] == [0.25, 0.75]


def test_share_table_is_aligned():
    half, one = Share(0.5, 0.256, 0.7), Share(1.0, 0.9, 1.0)
    rows = [
        ShareRow("short", 7, {"a": (half, one), "b": (one, half)}),
        ShareRow("a long name", 1234, {"a": (one, one), "b": (half, half)}),
    ]
    lines = share_table(rows).splitlines()
    assert lines == [
        "                    a                             b",
        "             pairs  top-1          top-5          top-1          top-5",
        "short        7      .50 (.26–.70)  1.0 (.90–1.0)  1.0 (.90–1.0)  .50 (.26–.70)",
        "a long name  1234   1.0 (.90–1.0)  1.0 (.90–1.0)  .50 (.26–.70)  .50 (.26–.70)",
    ]
    assert format_share(Share(0.0, 0.0, 0.036)) == ".00 (.00–.04)"


def test_prompts_are_the_first_captions_with_or_without_style():
    texts = ["heart", "heart, flat", "a heart", "a heart, flat", "heart, love", "heart, love, flat"]
    entry = PictureEntry("k", "train", True, (*(Caption(text, "en") for text in texts), Caption("Herz", "de")), {})
    assert prompt_of(entry) == "heart, flat"
    assert prompt_of(entry, with_style=False) == "heart"
    assert prompt_of(entry, "de") == "Herz"
    assert prompt_of(entry, "nl") is None


def test_reference_pictures_have_concepts_and_vendors(context):
    reference = context.reference
    concepts = int(reference.concept_ids.max()) + 1
    assert (len(reference.store), len(reference.vendor_names), concepts) == (22, 3, 8)
    held_out = [reference.store.entries[index].key for index in reference.indices("validation", ["plain"])]
    assert held_out == sorted(held_out)
    assert len(held_out) == 3
    assert len(reference.indices("train", ["plain"])) == 18
    assert len(reference.indices("train", ["flag"])) == 1
    index = reference.indices("train", ["plain"])[0]
    entry = reference.store.entries[index]
    middle = (reference.pixels([index])[0, :, 11, 12] + 1) * 127.5
    expected = torch.tensor(CONCEPTS[entry.details["concept"]]) * VENDORS[entry.details["vendor"]]
    assert (middle - expected).abs().max() < 2


def test_real_pictures_are_matched_without_their_own_vendor(context):
    rows = reference_rows(context)
    counts = {row.name: row.count for row in rows}
    assert counts == {
        "real art, noto": 7,
        "real art, openmoji": 7,
        "real art, twemoji": 7,
        "real art, held-out pairs": 3,
    }
    # Colours differ more than shades, so the other vendors' picture of the same concept is nearest.
    assert all(row.shares["pixels"][1].value == 1 for row in rows)


def test_reconstructions_are_matched_with_and_without_their_own_vendor(context, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.evaluate.generation.reconstruct", lambda model, pixels: pixels)
    first, second = reconstruction_rows(context)
    assert (first.count, second.count) == (3, 3)
    assert first.shares["pixels"][0].value == 1  # a perfect copy finds its original
    assert second.shares["pixels"][1].value == reference_rows(context)[-1].shares["pixels"][1].value


def test_reconstructions_come_from_the_image_tokenizer(context):
    rows = reconstruction_rows(context)
    assert rows[0].shares["pixels"][0].value < 1  # the tokenizer is random


def test_generated_pictures_are_ranked_and_repeatable(context):
    indices = sample_indices(context.reference, context.settings, "validation", 3)
    pictures = generate_pictures(context, indices, "test")
    assert pictures.ranks["pixels"].shape == (3, 3)
    scores = [[candidate.score or 0.0 for candidate in result] for result in pictures.results]
    assert all(0.0 not in row for row in scores)
    assert all(row == sorted(row, reverse=True) for row in scores)
    assert len({candidate.seed for result in pictures.results for candidate in result}) == 9
    assert torch.equal(generate_pictures(context, indices, "test").ranks["pixels"], pictures.ranks["pixels"])
    prompts = [result.prompt for result in pictures.results]
    assert all(prompt.endswith(", openmoji") for prompt in prompts)
    plain = generate_pictures(context, indices, "test", with_style=False)
    assert [result.prompt for result in plain.results] == [prompt.removesuffix(", openmoji") for prompt in prompts]
    german = generate_pictures(context, indices, "test", "de")
    assert sorted(result.prompt for result in german.results) == ["Haus", "rotes Herz"]
    assert len(german.ranks["pixels"]) == 2


def test_generated_rows_are_mean_and_best_of_the_candidates(context, monkeypatch):
    """The model generates the right picture as every second candidate only, and ranks it first."""

    def generate(self, prompt, candidates, keep, seed, **sampling):
        concept = prompt.split(",")[0]
        wrong = "tree" if concept != "tree" else "sea"
        drawings = [make_drawing(CONCEPTS[concept], 0.8), make_drawing(CONCEPTS[wrong], 0.9)]
        on_white = [Image.alpha_composite(Image.new("RGBA", p.size, "white"), p).convert("RGB") for p in drawings]
        fields = {"score": 0.5, "seed": 1, "image_ids": torch.zeros(1, 1)}
        return [type("Candidate", (), {"image": image, **fields}) for image in on_white]

    monkeypatch.setattr(DalleMini, "generate", generate)
    indices = sample_indices(context.reference, context.settings, "train", 9)
    mean, best = generated_rows("x", generate_pictures(context, indices, "test"))
    assert (mean.name, best.name) == ("x, mean of 2", "x, best of 2")
    assert mean.shares["pixels"][0].value == 0.5
    assert best.shares["pixels"][0].value == 1


def test_unranked_candidates_have_no_best_row(context):
    indices = sample_indices(context.reference, context.settings, "train", 2)
    pictures = generate_pictures(context, indices, "test", rank="none")
    assert [row.name for row in generated_rows("x", pictures)] == ["x, mean of 3"]


def test_sampled_indices_are_fixed_by_the_seed_and_skip(context):
    everything = sample_indices(context.reference, context.settings, "train", 18)
    assert len(set(everything)) == 18
    assert sample_indices(context.reference, context.settings, "train", 5) == everything[:5]
    assert sample_indices(context.reference, context.settings, "train", 5, skip=5) == everything[5:10]


def test_settings_that_the_reference_pictures_cannot_serve_are_refused(context):
    check_settings(context.reference, context.settings)
    refused = {
        "expected more than 3 pictures of kind plain in split validation, got 3": {"pairs": 3},
        "more than 0 pictures of kind animal in split train, got 0": {"kinds": ("animal",)},
        "more than 0 pictures of kind flag in split validation, got 0": {"kinds": ("flag",)},
        "expected languages of the held-out captions, got 'xx'": {"languages": ("de", "xx")},
    }
    for message, change in refused.items():
        with pytest.raises(UserError, match=message):
            check_settings(context.reference, replace(context.settings, **change))
    check_settings(context.reference, replace(context.settings, pairs=3, temperatures=()))


def test_sweep_uses_other_pairs_and_every_setting(context):
    results = sweep(context)
    assert [(result.temperature, result.guidance) for result in results] == [(0.5, 1), (0.5, 2), (1, 1), (1, 2)]
    assert all(result.rows[0].count == 1 for result in results)  # three are held out, two of them reported
    values = [value.value for value in results[0].rows[-1].shares["pixels"]]
    assert results[0].objective == sum(values) / 2
    assert sweep(replace(context, settings=GenerationSettings())) == []


def make_captioned_store(folder, captions, held_out=1):
    """A store of pictures with these captions and no other details, the first `held_out` of the validation split."""
    for number, caption in enumerate(captions):
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        split = "train" if number >= held_out else "validation"
        with (folder / "list.jsonl").open("a") as file:
            file.write(json.dumps({"path": f"{number}.png", "caption": caption, "split": split}) + "\n")
    build_store(DataConfig(source=str(folder / "list.jsonl"), store=str(folder / "store"), store_size=9))
    return folder / "store"


def test_without_concepts_pictures_of_equal_captions_belong_together(tmp_path):
    captions = ["a duck", "A  duck.", "a cat", "two ducks", "a cat!", "a duck"]
    reference = open_reference_pictures(make_captioned_store(tmp_path, captions), 9)
    keys = [entry.key for entry in reference.store.entries]
    of_key = dict(zip(keys, reference.concept_ids.tolist(), strict=True))
    concepts = [of_key[key] for key in sorted(keys)]
    assert concepts == [1, 1, 0, 2, 0, 1]
    assert reference.concept_count == 3
    assert sorted(reference.vendor_ids.tolist()) == list(range(6))  # each picture can be left out by itself
    assert not reference.has_vendors


def test_one_caption_alone_is_refused(tmp_path):
    store = make_captioned_store(tmp_path, ["a"] * 7)
    with pytest.raises(UserError, match="expected pictures with at least two different captions"):
        open_reference_pictures(store, 9)


def run(*arguments):
    result = CliRunner().invoke(dalle, ["evaluate", *map(str, arguments)])
    assert result.exception is None, result.output
    return result.output


def test_evaluate_generation_command(store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: JUDGES)

    output = run(
        "generation",
        tiny_model,
        "--data",
        store,
        "--pairs",
        2,
        "--candidates",
        2,
        "--languages",
        "de",
        "--sweep",
        "--temperatures",
        "0.8",
        "--guidances",
        "1,2",
        "--sweep-pairs",
        1,
        "--device",
        "cpu",
        "--json",
        tmp_path / "figures.json",
        "--sheet",
        tmp_path / "sheet.png",
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in figures["rows"]][4:] == [
        "reconstructions, held-out pairs",
        "  the same among other vendors' art",
        *(
            f"{group}, {kind}"
            for group in ("seen pairs", "held-out pairs", "  no style word", "  in de")
            for kind in ("mean of 2", "best of 2")
        ),
    ]
    assert [result["guidance"] for result in figures["sweep"]] == [1, 2]
    assert figures["seconds"] > 0
    assert "best: temperature 0.8, guidance" in output
    assert "22 pictures of 8 concepts" in output
    assert "concept and style together" in output
    assert figures["style"]["together"]["count"] == 2
    assert 0 <= figures["style"]["drawn"]["pixels"]["value"] <= 1
    for row in figures["rows"]:
        top1, top5 = row["shares"]["pixels"]
        assert 0 <= top1["low"] <= top1["value"] <= top5["value"] <= top5["high"] <= 1
    assert output.splitlines()[-1] == str(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2 * 2 * IMAGE_TOKENIZER.image_size


def test_judges_see_all_pictures_at_the_judge_size(store, tiny_model, tmp_path, monkeypatch):
    seen = []

    def features(pixels):
        seen.append(tuple(pixels.shape[-2:]))
        return judges.pixel_features(pixels)

    monkeypatch.setattr(judges, "load_judges", lambda device: {"pixels": judges.Judge("pixels", "x", features)})
    own = shutil.copytree(store, tmp_path / "store")
    counts = ("--pairs", 1, "--candidates", 1, "--sweep-pairs", 1, "--device", "cpu")
    sheet = tmp_path / "sheet.png"
    output = run("generation", tiny_model, "--data", own, *counts, "--judge-size", 20, "--sheet", sheet)
    assert "at 20 px; chance is" in output
    assert set(seen) == {(20, 20)}  # real ones, reconstructions and drawn ones


CAPTIONS = ["a duck", "A  duck.", "a cat", "two ducks", "a cat!", "a red house", "a duck"]
"""Of the set without concepts: four captions; of the three held-out pictures two have the same."""


@pytest.fixture
def own_context(tmp_path, tiny_dalle):
    reference = open_reference_pictures(make_captioned_store(tmp_path, CAPTIONS, held_out=3), 9)
    settings = GenerationSettings(pairs=9, candidates=3)
    return EvaluationContext(tiny_dalle, reference, build_r_precisions(reference, JUDGES), settings)


def test_in_a_set_without_concepts_each_caption_is_drawn_once(own_context):
    rows, pictures = generation_rows(own_context)
    assert {name: len(group.results) for name, group in pictures.items()} == {
        "seen captions": 4,
        "held-out captions": 2,
    }
    prompts = {" ".join(result.prompt.lower().split()).rstrip(".!") for result in pictures["seen captions"].results}
    assert prompts == {"a duck", "a cat", "two ducks", "a red house"}
    # Both held-out captions are seen, too, so that no row is for new ones.
    assert [(row.name, row.count) for row in rows] == [
        ("seen captions, mean of 3", 4),
        ("seen captions, best of 3", 4),
        ("held-out captions, mean of 3", 2),
        ("held-out captions, best of 3", 2),
    ]
    assert pictures["seen captions"].features["pixels"].shape[:2] == (4, 3)


def test_held_out_captions_that_are_new_have_rows_of_their_own(tmp_path, tiny_dalle):
    reference = open_reference_pictures(make_captioned_store(tmp_path, ["a bird", *CAPTIONS], held_out=2), 9)
    context = EvaluationContext(
        tiny_dalle, reference, build_r_precisions(reference, JUDGES), GenerationSettings(candidates=2)
    )
    rows, pictures = generation_rows(context)
    named = {row.name: row for row in rows}
    assert named["  of these, new captions, best of 2"].count == 1
    new = [result.prompt for result in pictures["held-out captions"].results].index("a bird")
    hits = float(pictures["held-out captions"].ranks["pixels"][new, 0] < 1)
    assert named["  of these, new captions, best of 2"].shares["pixels"][0].value == hits


def test_a_set_without_held_out_pictures_has_rows_of_the_seen_ones(tmp_path, tiny_dalle):
    reference = open_reference_pictures(make_captioned_store(tmp_path, CAPTIONS, held_out=0), 9)
    settings = GenerationSettings(candidates=2)
    check_settings(reference, settings)
    context = EvaluationContext(tiny_dalle, reference, build_r_precisions(reference, JUDGES), settings)
    assert [row.name for row in generation_rows(context)[0]] == ["seen captions, mean of 2", "seen captions, best of 2"]
    assert [row.name for row in reference_rows(context)] == ["real pictures, each among the others"]


def test_ceilings_in_a_set_without_concepts(own_context, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.evaluate.generation.reconstruct", lambda model, pixels: pixels)
    real, held_out = reference_rows(own_context)
    assert (real.count, held_out.count) == (5, 3)  # three ducks and two cats, of which three are held out
    rows = {row.name: row for row in reconstruction_rows(own_context)}
    assert rows["reconstructions, seen captions"].count == 4
    assert rows["reconstructions, held-out captions"].count == 2
    assert rows["reconstructions, held-out captions"].shares["pixels"][0].value == 1
    assert "  the same among the other pictures" in rows


def test_nearest_training_pictures(own_context):
    def drawn(index):
        """The real picture itself, as if a model had drawn it."""
        return GeneratedPictures([], [], {"pixels": features[index][None, None]}, {})

    reference, features = own_context.reference, own_context.r_precisions["pixels"].reference_features
    recited = int(reference.of_split("train").nonzero()[0])
    cosines = nearest_training_pictures(own_context, {"copy": drawn(recited)})
    assert cosines["drawn, copy"] == pytest.approx(1)
    held_out = features[reference.of_split("validation")] @ features[reference.of_split("train")].T
    assert cosines["real held-out pictures"] == pytest.approx(float(held_out.amax(1).median()))
    assert cosines["real held-out pictures"] < 1


def test_evaluate_generation_of_a_set_without_concepts(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: JUDGES)
    store = make_captioned_store(tmp_path, CAPTIONS, held_out=3)
    files = ("--json", tmp_path / "figures.json", "--sheet", tmp_path / "sheet.png")
    output = run("generation", tiny_model, "--data", store, "--candidates", 2, "--device", "cpu", *files)
    assert "real pictures: 7 with 4 captions, at 24 px; chance is 0.2500 and 1.0000" in output
    assert "nearest picture of the training split, median cosine of features: drawn, seen captions" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["nearest_training"]) == {
        "drawn, seen captions",
        "drawn, held-out captions",
        "real held-out pictures",
    }
    # Six prompts in three columns of a real and two drawn pictures at twice their size.
    assert Image.open(tmp_path / "sheet.png").width > 3 * 3 * 2 * IMAGE_TOKENIZER.image_size


def test_evaluate_rerank_command(store, tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(judges, "load_judges", lambda device: JUDGES)
    output = run(
        "rerank",
        tiny_model,
        "--data",
        store,
        "--pairs",
        1,
        "--sweep-pairs",
        2,
        "--candidates",
        4,
        "--device",
        "cpu",
        "--json",
        tmp_path / "curve.json",
        "--plot",
        tmp_path / "curve.png",
    )
    figures = json.loads((tmp_path / "curve.json").read_text())
    assert Image.open(tmp_path / "curve.png").width > 0
    assert "seconds for a prompt" in output
    assert {point["candidates"] for point in figures["points"]} == {1, 2, 4}
    assert "by likelihood" in output
    assert "by both, clip_weight 8" in output
    assert {row["count"] for row in figures["weights"]} == {2}


def test_median_ranks_count_from_one():
    ranks = {"judge": torch.tensor([[0, 7], [4, 2], [9, 3]])}
    measured = paint_evaluation.Measured("any", torch.zeros(3, 2), torch.zeros(3, 2), ranks)
    assert measured.median_ranks == {"judge": 4}  # of 0, 2, 3, 4, 7, 9 the lower middle one, 3


def test_evaluate_paint_command(store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: JUDGES)
    output = run(
        "paint",
        tiny_model,
        "--data",
        store,
        "--second-scorer",
        tiny_model,
        "--prompts",
        2,
        "--steps",
        1,
        "--latents",
        5,
        "--candidates",
        2,
        "--device",
        "cpu",
        "--json",
        tmp_path / "figures.json",
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [group["name"] for group in figures["groups"]] == [
        "random latents, mean of 5",
        "random latents, best of 5",
        "painted from random",
        "sampled",
        "painted on from the sampled",
    ]
    for group in figures["groups"]:
        assert group["count"] == len(group["guide"]) == 2
        assert group["guide"] == group["second"]  # the same scorer
    mean, best, painted, sampled, painted_on = (group["guide"] for group in figures["groups"])
    assert all(a < b for a, b in zip(mean, best, strict=True))
    assert len({*best, *painted, *sampled, *painted_on}) > 4
    assert "painted from random > random latents, best of 5 by the second scorer:" in output
    ranks = [group["median_ranks"]["pixels"] for group in figures["groups"]]
    assert all(1 <= rank <= 8 for rank in ranks)
    assert "pixels median rank" in output
    assert figures["paint"]["steps"] == 1
    assert figures["paint"]["init_weight"] == 1.0
    assert not any(math.isnan(value) for value in painted)


@pytest.mark.parametrize("text", ["", "warm"])
def test_temperatures_that_are_no_numbers_are_refused(text):
    result = CliRunner().invoke(dalle, ["evaluate", "generation", "--sweep", "--temperatures", text])
    assert result.exit_code == 2
    assert "Invalid value for '--temperatures'" in result.output
