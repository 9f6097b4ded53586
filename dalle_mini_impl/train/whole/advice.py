"""What to try next, in plain words, decided by what was measured."""

import math
from collections.abc import Sequence
from typing import Any

from dalle_mini_impl.config.presets import load_presets, suited_presets
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.train.whole.folder import Record
from dalle_mini_impl.train.whole.pictures import PictureFacts

FEW_PICTURES = 200
"""Below, a model learns its pictures by heart."""
FEW_HELD_OUT = 10
"""Below, figures of held-out pictures mean little."""
POOR_PSNR = 20.0
"""Decibels below which reconstructions are hard to recognise."""
CLEAR_NATS = 8.0
"""Nats by which a picture should be likelier with its own caption than with another's, at the least."""
MEMORISED = 1.15
"""Ratio of the last held-out loss to the lowest above which the model has begun to recite."""
WELL_LEARNED = 0.5
"""Share of captions of the set whose picture is among the five nearest, above which they count as learned."""
ENOUGH_PASSES = 90
"""Passes over the pictures after which a small model draws most captions of its set (docs/log.md)."""
USEFUL_SCORER = 2.0
"""How many times better than chance a scorer should find captions of held-out pictures."""


def advise(
    record: Record, facts: PictureFacts, logs: dict[str, list[dict[str, float]]], side: int, step_pictures: int
) -> list[str]:
    """Sentences on what to try next, the most important first.

    Args:
        record: of the run; what was measured in the end counts if it is there.
        facts: about the pictures.
        logs: figures of each stage, by its file name.
        side: the shorter one of the model's pictures in pixels.
        step_pictures: pictures of the set in each of the transformer's steps, see `replay.own_pictures`.
    """
    minutes = record.request["minutes"]
    last_step = last(logs["transformer"], "step")
    passes = 0.0 if last_step is None else (last_step + 1) * step_pictures / max(1, facts.train)
    more = f"--minutes {2 * minutes:g}"
    advice: list[str] = []
    psnr = last(logs["image_tokenizer"], "validation_psnr")
    if psnr is not None and psnr < POOR_PSNR:
        advice.append(
            f"Reconstructions are poor ({psnr:.1f} dB on held-out pictures), and a picture that is not encoded well "
            f"cannot be drawn well. Give more time ({more}), or the image tokenizer more of it "
            f"(image_tokenizer.run.steps=…)."
        )
    elif larger := _of_size(record, facts, side):
        advice.append(larger)
    if record.figures:
        advice += _of_figures(record.figures, facts, more, passes, minutes)
    losses = [line["validation_image"] for line in logs["transformer"] if "validation_image" in line]
    if losses and losses[-1] > MEMORISED * min(losses) and facts.held_out >= FEW_HELD_OUT:
        advice.append(
            f"The transformer has begun to recite: its loss on held-out pictures rose from {min(losses):.2f} to "
            f"{losses[-1]:.2f} nats per id. Captions of the set are drawn well, new ones less. More pictures "
            f"help most; more time does not."
        )
    if scorer := _of_scorer(logs["scorer"], facts):
        advice.append(scorer)
    if facts.train < FEW_PICTURES:
        advice.append(
            f"{facts.train} pictures are few: the model can learn them by heart, not much beyond. Some hundreds more, "
            f"with captions that share words, let it combine what it knows."
        )
    if facts.captions < 0.7 * facts.train:
        advice.append(
            f"Many pictures have the same caption ({facts.captions:,} different ones for {facts.train:,} pictures). "
            f"Captions that say what is different, such as a colour or a style, make it possible to ask for it."
        )
    if facts.without_caption:
        advice.append(f"{facts.without_caption:,} pictures have no caption; with one, they would be learned too.")
    return advice or [f"Nothing stands out. More time ({more}) or more pictures should make it better still."]


def _of_size(record: Record, facts: PictureFacts, side: int) -> str:
    request = record.request
    if record.data["side"] <= 3 * side or request.get("preset") or request.get("start_from"):
        return ""
    for preset in suited_presets(load_presets(), math.inf, facts.train, record.data["side"])[::-1]:
        size = load(ImageTokenizerRun, f"configs/{preset.name}/image_tokenizer.yaml").model.image_size
        if size > side:
            minutes = max(preset.least_minutes, 2 * request["minutes"])
            return (
                f"Your pictures are much larger than the {side} pixels of the model, so small details are lost. With "
                f"--minutes {minutes:g} or more there may be time for the preset {preset.name}, which has {size}."
            )
    return ""


def _of_figures(figures: dict[str, Any], facts: PictureFacts, more: str, passes: float, minutes: float) -> list[str]:
    advice = []
    nats = figures["caption_nats"].get("seen")
    if nats is not None and nats < CLEAR_NATS:
        advice.append(
            f"Pictures hardly follow their captions: with its own caption a picture is only {nats:.1f} nats likelier "
            f"than with another. Give more time ({more}); if that changes nothing, raise transformer.id_dropout to 0.7."
        )
    measured = figures.get("r_precision", {})
    seen, held_out = measured.get("seen"), measured.get("held out")
    if seen and seen["top_5"] < WELL_LEARNED:
        advice.append(
            f"Only {seen['top_5']:.0%} of the set's own captions give a picture that is among the five nearest to the "
            f"real one: there was too little time for so many pictures. {_of_passes(passes, minutes) or f'Try {more}.'}"
        )
    if seen and held_out and facts.held_out >= FEW_HELD_OUT and held_out["top_5"] < seen["top_5"] / 3:
        advice.append(
            f"Captions it has not seen are drawn much less well ({held_out['top_5']:.0%} against {seen['top_5']:.0%}). "
            f"Captions that share words with others, and several captions per picture, help most."
        )
    return advice


def _of_passes(passes: float, minutes: float) -> str:
    """How long it would take to see the pictures often enough; empty where they were."""
    if not 0 < passes < ENOUGH_PASSES:
        return ""
    needed = minutes * ENOUGH_PASSES / passes
    unit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return (
        f"The transformer saw each picture {passes:.3g} times; about {ENOUGH_PASSES} times are needed until most of "
        f"them are known. Try --minutes {unit * math.ceil(needed / unit)}, or fewer pictures."
    )


def _of_scorer(log: Sequence[dict[str, float]], facts: PictureFacts) -> str:
    found = last(log, "text_to_image_at_1")
    if found is None or facts.held_out < FEW_HELD_OUT:
        return ""
    chance = 1 / min(facts.held_out, 512)
    if found >= USEFUL_SCORER * chance:
        return ""
    return (
        f"The scorer finds {found:.0%} of the held-out pictures by their caption, hardly more than by chance "
        f"({chance:.0%}), so it ranks new captions badly: draw them with --rank likelihood."
    )


def last(log: Sequence[dict[str, float]], name: str) -> float | None:
    """The last value of a figure in a log; None if it has none."""
    return next((line[name] for line in reversed(log) if name in line), None)
