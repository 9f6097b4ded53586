import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import IMAGE_TOKENIZER
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.evaluate.common import names, numbers
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.data.picture_store import PictureEntry, build_store
from dalle_mini_impl.evaluate import judges as judges
from dalle_mini_impl.evaluate import paint as paint_evaluation
from dalle_mini_impl.evaluate.generation import (
    EvaluationContext,
    GenerationSettings,
    check,
    draw,
    drawing_rows,
    make_row,
    pick,
    real_rows,
    reconstruction_rows,
    sweep,
)
from dalle_mini_impl.evaluate.intervals import Share, ShareRow, cell, share, table
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision, has_other_art
from dalle_mini_impl.evaluate.reference_pictures import build_banks, open_reference_pictures, prompt_of
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:caption .* cut off")  # the tiny model takes short captions only

VENDORS = {"noto": 0.7, "twemoji": 0.9, "openmoji": 1.0}
CONCEPTS = {
    "red heart": (230, 20, 30), "green apple": (30, 200, 40), "yellow star": (240, 220, 30), "house": (120, 70, 20),
    "tree": (10, 90, 30), "sea": (20, 60, 230), "rose": (250, 120, 180),
}  # fmt: skip
GERMAN = {"red heart": "rotes Herz", "house": "Haus", "sea": "Meer", "tree": "Baum"}


def drawing_of(colour, shade):
    """A disc in a colour, on a transparent ground: each concept its own colour, each vendor its own shade."""
    rgba = np.zeros((24, 24, 4), np.uint8)
    rows, columns = np.mgrid[:24, :24]
    rgba[(rows - 11) ** 2 + (columns - 12) ** 2 < 100] = [*(int(value * shade) for value in colour), 255]
    return Image.fromarray(rgba)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven concepts by three vendors; openmoji's drawings of three are held out; a flag by one vendor."""
    folder = tmp_path_factory.mktemp("emoji")
    lines = []
    for name, colour in CONCEPTS.items():
        for vendor, shade in VENDORS.items():
            drawing_of(colour, shade).save(folder / f"{vendor}-{name}.png")
            texts = [{"text": name, "language": "en"}, {"text": f"{name}, {vendor}", "language": "en"}]
            if name in GERMAN:
                texts.append({"text": GERMAN[name], "language": "de"})
            held_out = vendor == "openmoji" and name in ("red heart", "house", "rose")
            lines.append(
                {
                    "path": f"{vendor}-{name}.png",
                    "captions": texts,
                    "split": "validation" if held_out else "train",
                    "concept": name,
                    "vendor": vendor,
                    "kind": "plain",
                }
            )
    Image.new("RGB", (24, 24), (200, 30, 200)).save(folder / "flag.png")
    lines.append(
        {
            "path": "flag.png",
            "caption": "flag",
            "language": "en",
            "split": "train",
            "concept": "flag",
            "vendor": "noto",
            "kind": "flag",
        }
    )
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    build_store(DataConfig(source=source, store=str(folder), store_size=24))
    return str(folder)


@pytest.fixture(scope="module")
def context(store, tiny_dalle):
    art = open_reference_pictures(store, 24)
    settings = GenerationSettings(pairs=2, candidates=3, temperatures=(0.5, 1.0), guidances=(1.0, 2.0), sweep_pairs=5)
    return EvaluationContext(tiny_dalle, art, build_banks(art, {"pixels": judges.pixel_judge}), settings)


def hand_made_bank():
    """Five drawings of three concepts by three vendors, as directions in a plane."""
    degrees = torch.tensor([0.0, 90.0, 10.0, 50.0, 180.0])
    features = torch.stack([(degrees * math.pi / 180).cos(), (degrees * math.pi / 180).sin()], 1)
    return RPrecision(
        lambda pixels: pixels,
        torch.zeros(2),
        torch.eye(2),
        features,
        concepts=torch.tensor([0, 0, 1, 2, 2]),
        vendors=torch.tensor([0, 1, 1, 0, 2]),
    )


def direction(degrees):
    return torch.tensor([[math.cos(degrees * math.pi / 180), math.sin(degrees * math.pi / 180)]])


def test_a_concept_is_as_near_as_its_nearest_drawing():
    bank = hand_made_bank()
    # At 80° the nearest are concept 0 (its drawing at 90°, though its other is far), 2 (at 50°), then 1 (at 10°).
    features = direction(80).expand(3, -1)
    assert bank.ranks(features, torch.tensor([0, 1, 2])).tolist() == [0, 2, 1]
    assert bank.concept_count == 3


def test_a_vendors_own_art_can_be_left_out():
    bank = hand_made_bank()
    features, concepts = direction(80).expand(3, -1), torch.tensor([0, 0, 0])
    # Without vendor 1, concept 0 has but its drawing at 0°, and concept 1 has none; without vendor 0, concept 2
    # has but its drawing at 180°.
    assert bank.ranks(features, concepts, other_than=torch.tensor([1, 0, 2])).tolist() == [1, 0, 0]
    assert bank.ranks(features, torch.tensor([2, 2, 1]), other_than=torch.tensor([1, 0, 0])).tolist() == [0, 2, 1]


def test_ties_count_against_the_picture():
    bank = hand_made_bank()
    assert bank.ranks(direction(5), torch.tensor([1])).tolist() == [1]
    assert bank.ranks(torch.zeros(1, 2), torch.tensor([0])).tolist() == [2]


def test_ranks_do_not_depend_on_chunks(monkeypatch):
    bank = hand_made_bank()
    generator = torch.Generator().manual_seed(0)
    features, concepts = torch.randn(11, 2, generator=generator), torch.arange(11) % 3
    whole = bank.ranks(features, concepts, concepts)
    monkeypatch.setattr("dalle_mini_impl.evaluate.r_precision.CHUNK", 4)
    assert torch.equal(bank.ranks(features, concepts, concepts), whole)


def test_bank_centres_scales_and_normalises():
    generator = torch.Generator().manual_seed(4)
    embeds = torch.randn(97, 5, generator=generator) * torch.tensor([100.0, 1, 1, 1, 0]) + 7
    bank = build_r_precision(lambda pixels: pixels, embeds, torch.arange(97), torch.zeros(97, dtype=torch.int64))
    assert bank.features.shape == (97, 4)  # the constant dimension tells nothing
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(97))
    torch.testing.assert_close(bank.see(embeds), bank.features)
    scaled = (embeds - bank.centre) @ bank.axes
    assert scaled.mean(0).abs().max() < 1e-3
    # Half whitened: a deviation of 100 becomes 10, one of 1 stays.
    torch.testing.assert_close(
        scaled.std(0).sort().values, embeds[:, :4].std(0).sort().values.sqrt(), rtol=0.05, atol=0
    )


def test_has_other_art():
    concepts, vendors = torch.tensor([0, 1, 0, 2, 2]), torch.tensor([0, 1, 1, 2, 2])
    assert has_other_art(concepts, vendors).tolist() == [True, False, True, False, False]


def test_share_has_wilsons_interval():
    found = share([1.0] * 8 + [0.0] * 2)
    assert found.value == 0.8
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)
    none = share([0.0] * 100)
    assert none.low == 0
    assert 0.03 < none.high < 0.04


def test_row_counts_hits_at_one_and_five():
    row = make_row("x", {"judge": torch.tensor([[0, 4], [5, 0], [9, 9]])})
    assert row.count == 3
    assert [value.value for value in row.shares["judge"]] == pytest.approx([2 / 6, 3 / 6])
    flat = make_row("x", {"judge": torch.tensor([0, 4, 5, 1])})
    assert [value.value for value in flat.shares["judge"]] == [0.25, 0.75]


def test_table_is_aligned():
    half, one = Share(0.5, 0.256, 0.7), Share(1.0, 0.9, 1.0)
    rows = [
        ShareRow("short", 7, {"a": (half, one), "b": (one, half)}),
        ShareRow("a long name", 1234, {"a": (one, one), "b": (half, half)}),
    ]
    lines = table(rows).splitlines()
    assert lines == [
        "                    a                             b",
        "             pairs  top-1          top-5          top-1          top-5",
        "short        7      .50 (.26–.70)  1.0 (.90–1.0)  1.0 (.90–1.0)  .50 (.26–.70)",
        "a long name  1234   1.0 (.90–1.0)  1.0 (.90–1.0)  .50 (.26–.70)  .50 (.26–.70)",
    ]
    assert cell(Share(0.0, 0.0, 0.036)) == ".00 (.00–.04)"


def test_prompt_in_the_words_of_the_captions():
    texts = ["heart", "heart, flat", "a heart", "a heart, flat", "heart, love", "heart, love, flat"]
    entry = PictureEntry("k", "train", True, (*(Caption(text, "en") for text in texts), Caption("Herz", "de")), {})
    assert prompt_of(entry) == "heart, flat"
    assert prompt_of(entry, styled=False) == "heart"
    assert prompt_of(entry, "de") == "Herz"
    assert prompt_of(entry, "nl") is None


def test_art_knows_concepts_and_vendors(context):
    art = context.art
    assert (len(art.store), len(art.vendor_names), int(art.concepts.max()) + 1) == (22, 3, 8)
    held_out = [art.store.entries[number].key for number in art.numbers("validation", ["plain"])]
    assert held_out == sorted(held_out)
    assert len(held_out) == 3
    assert len(art.numbers("train", ["plain"])) == 18
    assert len(art.numbers("train", ["flag"])) == 1
    number = art.numbers("train", ["plain"])[0]
    entry = art.store.entries[number]
    middle = (art.pixels([number])[0, :, 11, 12] + 1) * 127.5
    expected = torch.tensor(CONCEPTS[entry.details["concept"]]) * VENDORS[entry.details["vendor"]]
    assert (middle - expected).abs().max() < 2


def test_real_art_is_matched_without_its_own_vendor(context):
    rows = real_rows(context)
    counts = {row.name: row.count for row in rows}
    assert counts == {
        "real art, noto": 7,
        "real art, openmoji": 7,
        "real art, twemoji": 7,
        "real art, held-out pairs": 3,
    }
    # Colours are far apart and shades near, so the others' art of the same concept is nearest.
    assert all(row.shares["pixels"][1].value == 1 for row in rows)


def test_reconstructions_are_matched_among_all_and_among_others(context, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.evaluate.generation.reconstruct", lambda model, pixels: pixels)
    first, second = reconstruction_rows(context)
    assert (first.count, second.count) == (3, 3)
    assert first.shares["pixels"][0].value == 1  # a perfect copy finds its original
    assert second.shares["pixels"][1].value == real_rows(context)[-1].shares["pixels"][1].value


def test_reconstruction_goes_through_the_tokenizer(context):
    rows = reconstruction_rows(context)
    assert rows[0].shares["pixels"][0].value < 1  # the tokenizer is random


def test_draw_ranks_candidates_and_repeats(context):
    numbers = pick(context.art, context.settings, "validation", 3)
    drawing = draw(context, numbers, "test")
    assert drawing.ranks["pixels"].shape == (3, 3)
    scores = [[candidate.score for candidate in result] for result in drawing.results]
    assert all(row == sorted(row, reverse=True) for row in scores)
    assert len({candidate.seed for result in drawing.results for candidate in result}) == 9
    assert torch.equal(draw(context, numbers, "test").ranks["pixels"], drawing.ranks["pixels"])
    prompts = [result.prompt for result in drawing.results]
    assert all(prompt.endswith(", openmoji") for prompt in prompts)
    plain = draw(context, numbers, "test", styled=False)
    assert [result.prompt for result in plain.results] == [prompt.removesuffix(", openmoji") for prompt in prompts]
    german = draw(context, numbers, "test", "de")
    assert sorted(result.prompt for result in german.results) == ["Haus", "rotes Herz"]
    assert len(german.ranks["pixels"]) == 2


def test_draw_finds_what_the_model_was_asked_for(context, monkeypatch):
    """A model that draws the right picture in every second candidate only, and ranks it first."""

    def generate(self, prompt, candidates, keep, seed, **sampling):
        concept = prompt.split(",")[0]
        wrong = "tree" if concept != "tree" else "sea"
        pictures = [drawing_of(CONCEPTS[concept], 0.8), drawing_of(CONCEPTS[wrong], 0.9)]
        white = [Image.alpha_composite(Image.new("RGBA", p.size, "white"), p).convert("RGB") for p in pictures]
        fields = {"score": 0.5, "seed": 1, "image_ids": torch.zeros(1, 1)}
        return [type("Candidate", (), {"image": image, **fields}) for image in white]

    monkeypatch.setattr(DalleMini, "generate", generate)
    mean, best = drawing_rows("x", draw(context, pick(context.art, context.settings, "train", 9), "test"))
    assert (mean.name, best.name) == ("x, mean of 2", "x, best of 2")
    assert mean.shares["pixels"][0].value == 0.5
    assert best.shares["pixels"][0].value == 1


def test_unranked_candidates_have_no_best_row(context):
    drawing = draw(context, pick(context.art, context.settings, "train", 2), "test", rank="none")
    assert [row.name for row in drawing_rows("x", drawing)] == ["x, mean of 3"]


def test_pick_is_fixed_by_the_seed_and_skips(context):
    everything = pick(context.art, context.settings, "train", 18)
    assert len(set(everything)) == 18
    assert pick(context.art, context.settings, "train", 5) == everything[:5]
    assert pick(context.art, context.settings, "train", 5, skip=5) == everything[5:10]


def test_settings_the_art_cannot_serve_are_refused_at_once(context):
    check(context.art, context.settings)
    refused = {
        "validation has 3 pictures of kind plain, and more than 3 are needed": {"pairs": 3},
        "train has 0 pictures of kind animal": {"kinds": ("animal",)},
        "validation has 0 pictures of kind flag": {"kinds": ("flag",)},
        "no held-out picture has a caption in language 'xx'": {"languages": ("de", "xx")},
    }
    for message, change in refused.items():
        with pytest.raises(UserError, match=message):
            check(context.art, replace(context.settings, **change))
    check(context.art, replace(context.settings, pairs=3, temperatures=()))


def test_sweep_uses_other_pairs_and_every_setting(context):
    cells = sweep(context)
    assert [(cell.temperature, cell.guidance) for cell in cells] == [(0.5, 1), (0.5, 2), (1, 1), (1, 2)]
    assert all(cell.rows[0].count == 1 for cell in cells)  # three are held out, two of them reported
    values = [value.value for value in cells[0].rows[-1].shares["pixels"]]
    assert cells[0].merit == sum(values) / 2
    assert sweep(replace(context, settings=GenerationSettings())) == []


def test_art_needs_a_store_with_concepts(tmp_path):
    with pytest.raises(UserError, match=r"is no store of decoded pictures"):
        open_reference_pictures(tmp_path / "none", 24)
    for number in range(7):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
        split = "train" if number else "validation"
        with (tmp_path / "list.jsonl").open("a") as file:
            file.write(json.dumps({"path": f"{number}.png", "caption": "a", "split": split}) + "\n")
    build_store(DataConfig(source=str(tmp_path / "list.jsonl"), store=str(tmp_path / "store"), store_size=9))
    with pytest.raises(UserError, match=r"tells no concept and vendor"):
        open_reference_pictures(tmp_path / "store", 9)


def run(*arguments):
    result = CliRunner().invoke(dalle, ["evaluate", *map(str, arguments)])
    assert result.exception is None, result.output
    return result.output


def test_evaluate_generation_command(store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: {"pixels": judges.pixel_judge})

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
    facts = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in facts["rows"]][4:] == [
        "reconstructions, held-out pairs",
        "  the same among other vendors' art",
        *(
            f"{group}, {what}"
            for group in ("seen pairs", "held-out pairs", "  no style word", "  in de")
            for what in ("mean of 2", "best of 2")
        ),
    ]
    assert [cell["guidance"] for cell in facts["sweep"]] == [1, 2]
    assert facts["seconds"] > 0
    assert "best: temperature 0.8, guidance" in output
    assert "22 pictures of 8 concepts" in output
    for row in facts["rows"]:
        top1, top5 = row["shares"]["pixels"]
        assert 0 <= top1["low"] <= top1["value"] <= top5["value"] <= top5["high"] <= 1
    assert output.splitlines()[-1] == str(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2 * 2 * IMAGE_TOKENIZER.image_size


def test_evaluate_rerank_command(store, tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(judges, "load_judges", lambda device: {"pixels": judges.pixel_judge})
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
    facts = json.loads((tmp_path / "curve.json").read_text())
    assert Image.open(tmp_path / "curve.png").width > 0
    assert "seconds for a prompt" in output
    assert {point["candidates"] for point in facts["points"]} == {1, 2, 4}
    assert "by likelihood" in output


def test_the_median_place_counts_from_one():
    ranks = {"judge": torch.tensor([[0, 7], [4, 2], [9, 3]])}
    seen = paint_evaluation.Measured("any", torch.zeros(3, 2), torch.zeros(3, 2), ranks)
    assert seen.median_places == {"judge": 4}  # of 0, 2, 3, 4, 7, 9 the lower middle one, 3


def test_evaluate_paint_command(store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_judges", lambda device: {"pixels": judges.pixel_judge})
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
    facts = json.loads((tmp_path / "figures.json").read_text())
    assert [group["name"] for group in facts["groups"]] == [
        "random latents, mean of 5",
        "random latents, best of 5",
        "painted from random",
        "sampled",
        "painted on from the sampled",
    ]
    for group in facts["groups"]:
        assert group["count"] == len(group["guide"]) == 2
        assert group["guide"] == group["second"]  # the same scorer
    mean, best, painted, sampled, on = (group["guide"] for group in facts["groups"])
    assert all(a < b for a, b in zip(mean, best, strict=True))
    assert len({*best, *painted, *sampled, *on}) > 4
    assert "painted from random > random latents, best of 5 by the second scorer:" in output
    places = [group["median_places"]["pixels"] for group in facts["groups"]]
    assert all(1 <= place <= 8 for place in places)
    assert "pixels median place" in output
    assert facts["paint"]["steps"] == 1
    assert facts["paint"]["init_weight"] == 1.0
    assert not any(math.isnan(value) for value in painted)


def test_lists_of_options():
    assert names("de, no,,") == ("de", "no")
    assert names("") == ()
    assert numbers("0.5,1", "--temperatures") == (0.5, 1.0)
    for text in ("", "warm"):
        with pytest.raises(UserError, match=r"--temperatures '.*' was given, expected"):
            numbers(text, "--temperatures")
