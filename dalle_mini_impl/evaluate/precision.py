"""What coarser arithmetic costs: how far its predictions and pictures are from those of full precision."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.likelihood import image_logits

PROMPTS = (
    "a red heart",
    "a smiling face",
    "a cat",
    "a tomato",
    "a blue circle",
    "een groene appel",
    "pizza, 3d",
    "zon",
)


@dataclass(frozen=True)
class Drift:
    """One precision beside fp32."""

    precision: str
    nats: float
    """Mean divergence KL(fp32 ‖ this) of the next image id's distribution, along pictures drawn in fp32."""
    agreement: float
    """Share of places where both find the same id likeliest."""
    same: float
    """Share of image ids that are the same when both draw from the same seeds; one that differs changes the rest."""
    seconds: float
    """Of drawing, all prompts."""


def drift(
    model: str | Path, precisions: Sequence[str], prompts: Sequence[str], candidates: int, seed: int, device: str
) -> list[Drift]:
    """Compare precisions of one model.

    Args:
        model: shipped name or checkpoint folder.
        precisions: what to compare with fp32.
        prompts: to draw for, at the model's sampling settings.
        candidates: pictures per prompt.
        seed: of the run.
        device: to run on.
    """
    exact = DalleMini.from_pretrained(model, device, "fp32")
    drawn, seconds = _draw(exact, prompts, candidates, seed)
    expected = _log_shares(exact, prompts, drawn)
    found = [Drift("fp32", 0.0, 1.0, 1.0, seconds)]
    for precision in precisions:
        dalle = DalleMini.from_pretrained(model, device, precision)
        ids, seconds = _draw(dalle, prompts, candidates, seed)
        shares = _log_shares(dalle, prompts, drawn)
        found.append(
            Drift(
                precision,
                nats=float((expected.exp() * (expected - shares)).sum(-1).mean()),
                agreement=float((expected.argmax(-1) == shares.argmax(-1)).float().mean()),
                same=float((ids == drawn).float().mean()),
                seconds=seconds,
            )
        )
    return found


def _draw(dalle: DalleMini, prompts: Sequence[str], candidates: int, seed: int) -> tuple[Tensor, float]:
    """Image ids (prompts, N, h, w) and the seconds they took; one picture goes before, which does not count."""
    dalle.generate(prompts[0], candidates=1, rank="none")
    start = time.perf_counter()
    results = [dalle.generate(text, candidates=candidates, keep=candidates, seed=seed, rank="none") for text in prompts]
    seconds = time.perf_counter() - start
    return torch.stack([torch.stack([candidate.image_ids for candidate in result]) for result in results]), seconds


def _log_shares(dalle: DalleMini, prompts: Sequence[str], drawn: Tensor) -> Tensor:
    """Log-probabilities (prompts, N, h * w, K) of every id at each place of what was drawn."""
    logits = [
        image_logits(dalle.transformer, dalle.stream, dalle.encode(text), ids)
        for text, ids in zip(prompts, drawn, strict=True)
    ]
    return F.log_softmax(torch.stack(logits), -1).cpu()


def table(found: Sequence[Drift]) -> str:
    """A line for each precision."""
    lines = [f"{'':6}{'nats per id':>13}{'same likeliest id':>19}{'same ids drawn':>16}{'seconds':>9}"]
    lines += [f"{d.precision:6}{d.nats:13.5f}{d.agreement:19.1%}{d.same:16.1%}{d.seconds:9.2f}" for d in found]
    return "\n".join(lines)
