"""What lower precision changes: distance of its predictions and pictures from those of fp32."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.sampling.likelihood import image_logits
from dalle_mini_impl.util.tables import aligned_table

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
"""Prompts of the shipped model's domain, in three languages, two of them with a style word or without an article."""


@dataclass(frozen=True)
class Drift:
    """One precision compared with fp32."""

    precision: str
    nats: float
    """Mean divergence KL(fp32 ‖ this precision) of the next image id's distribution, along pictures sampled in fp32."""
    agreement: float
    """Fraction of positions at which both have the same most likely id."""
    same_ids: float
    """Fraction of image ids that are equal when both sample from the same seeds; one differing id changes all ids
    after it."""
    seconds: float
    """Of sampling pictures for all prompts."""


def measure_drift(
    model: str | Path, precisions: Sequence[str], prompts: Sequence[str], candidates: int, seed: int, device: str
) -> list[Drift]:
    """Compare precisions of one model's transformer with fp32, of captions alone, without a prior.

    Args:
        model: shipped name or checkpoint folder.
        precisions: `bf16`, `int8` or `fp32`, as for `DalleMini.from_pretrained`.
        prompts: to sample for, at the model's sampling settings.
        candidates: pictures per prompt.
        seed: of the pictures.
        device: where to compute.

    Returns:
        fp32 itself, then each precision.
    """
    exact = DalleMini.from_pretrained(model, device, "fp32")
    exact_ids, seconds = _sample_ids(exact, prompts, candidates, seed)
    exact_logs = _log_probabilities(exact, prompts, exact_ids)
    drifts = [Drift("fp32", 0.0, 1.0, 1.0, seconds)]
    for precision in precisions:
        dalle = DalleMini.from_pretrained(model, device, precision)
        ids, seconds = _sample_ids(dalle, prompts, candidates, seed)
        logs = _log_probabilities(dalle, prompts, exact_ids)
        drifts.append(
            Drift(
                precision,
                nats=float((exact_logs.exp() * (exact_logs - logs)).sum(-1).mean()),
                agreement=float((exact_logs.argmax(-1) == logs.argmax(-1)).float().mean()),
                same_ids=float((ids == exact_ids).float().mean()),
                seconds=seconds,
            )
        )
    return drifts


def drift_table(drifts: Sequence[Drift]) -> str:
    """A line for each precision."""
    rows = [["", "nats per id", "same likeliest id", "same ids drawn", "seconds"]]
    rows += [
        [d.precision, f"{d.nats:.5f}", f"{d.agreement:.1%}", f"{d.same_ids:.1%}", f"{d.seconds:.2f}"] for d in drifts
    ]
    return aligned_table(rows, right=(1, 2, 3, 4), min_widths=(6,))


def _sample_ids(dalle: DalleMini, prompts: Sequence[str], candidates: int, seed: int) -> tuple[Tensor, float]:
    """Image ids (prompts, N, h, w) and the seconds of sampling them, after one picture as a warm-up."""
    options: dict[str, Any] = {"seed": seed, "rank": "none", "prior": "none"}
    dalle.generate(prompts[0], candidates=1, **options)
    start = time.perf_counter()
    results = [dalle.generate(text, candidates=candidates, keep=candidates, **options) for text in prompts]
    seconds = time.perf_counter() - start
    return torch.stack([torch.stack([candidate.image_ids for candidate in result]) for result in results]), seconds


def _log_probabilities(dalle: DalleMini, prompts: Sequence[str], image_ids: Tensor) -> Tensor:
    """Log-probabilities (prompts, N, h * w, K) of every id at each position of image ids (prompts, N, h, w)."""
    logits = [
        image_logits(dalle.transformer, dalle.stream, dalle.encode(text), ids)
        for text, ids in zip(prompts, image_ids, strict=True)
    ]
    return F.log_softmax(torch.stack(logits), -1).cpu()
