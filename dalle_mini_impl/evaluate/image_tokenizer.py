"""Reconstruction quality, codebook use and speed of image tokenizers on the same pictures."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.evaluate.batches import ReservoirSample, comparison_sheet
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, usage
from dalle_mini_impl.evaluate.reconstruction import ReconstructionMetrics
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """Quality of an image tokenizer on one set of pictures."""

    pictures: int
    size: int
    """Side of the pictures in pixels."""
    factor: int
    """Pixels per image id along each side."""
    codebook_size: int
    """K."""
    bits_per_pixel: float
    """Of the image ids, at log2 K bits each."""
    psnr: float
    """dB, mean over pictures."""
    ssim: float
    """Mean over pictures, at most 1."""
    perceptual_distance: float
    """`efficientnet-lite0`, as training can minimise it; mean over pictures, 0 to 4, lower is better."""
    fd_efficientnet_lite0: float
    """Fréchet distance between the sets of pictures before and after, on EfficientNet-Lite0's 192 features; lower is
    better. Comparable for equal numbers of pictures only: small sets overestimate it."""
    usage: float
    """Fraction of the codebook that occurs, in [0, 1]."""
    perplexity: float
    """Effective number of ids in use, 1 to K."""
    dead_entries: int
    """Ids that do not occur in these pictures."""
    encode_per_second: float
    """Pictures per second."""
    decode_per_second: float
    """Pictures per second."""


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Measurements of one image tokenizer, with example pictures."""

    name: str
    report: TokenizerReport
    examples: list[tuple[Image.Image, Image.Image]]
    """(before, after), the same pictures for every tokenizer measured on the same data."""


def evaluate_image_tokenizer(
    name: str, tokenizer: ImageTokenizer, batches: Iterable[Tensor], examples: int = 24
) -> TokenizerEvaluation:
    """Encode and decode pictures.

    Args:
        name: title of the tokenizer in tables and sheets.
        tokenizer: in evaluation mode.
        batches: pixels (B, 3, H, W) in [-1, 1], H and W multiples of its factor and at least 11.
        examples: most pictures to keep for a sheet.

    Raises:
        UserError: there are fewer than two pictures, or the `eval` extra is not installed.
    """
    metrics = ReconstructionMetrics(tokenizer.device)
    sample = ReservoirSample(examples)
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    encode_seconds = 0.0
    decode_seconds = 0.0
    for before in batches:
        if not sample.count:
            time_round_trip(tokenizer, before)  # warm-up: one-time costs are not part of the speed
        ids, after, seconds = time_round_trip(tokenizer, before)
        encode_seconds += seconds[0]
        decode_seconds += seconds[1]
        counts += count_ids(ids, tokenizer.codebook_size).cpu()
        metrics.update(before, after)
        sample.add(before, after)
    if sample.count < 2:
        raise UserError(
            f"expected at least 2 pictures in the data, got {sample.count}; name a set or a split that holds more"
        )
    report = TokenizerReport(
        pictures=sample.count,
        size=max(before.shape[2:]),
        factor=tokenizer.config.factor,
        codebook_size=tokenizer.codebook_size,
        bits_per_pixel=math.log2(tokenizer.codebook_size) / tokenizer.config.factor**2,
        usage=usage(counts),
        perplexity=perplexity(counts),
        dead_entries=int((counts == 0).sum()),
        encode_per_second=sample.count / encode_seconds,
        decode_per_second=sample.count / decode_seconds,
        **metrics.compute(),
    )
    return TokenizerEvaluation(name, report, sample.pairs)


def time_round_trip(tokenizer: ImageTokenizer, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Encode and decode pixels (B, 3, H, W).

    Returns:
        Image ids (B, h, w) and decoded pixels (B, 3, H, W), both on the CPU, and the seconds of encoding and decoding.
    """
    device = tokenizer.device
    start = time.perf_counter()
    ids = tokenizer.encode(pixels.to(device)).cpu()
    middle = time.perf_counter()
    after = tokenizer.decode(ids.to(device)).cpu()
    return ids, after, (middle - start, time.perf_counter() - middle)


def examples_sheet(evaluations: Sequence[TokenizerEvaluation]) -> Image.Image:
    """The original examples and their reconstructions by each image tokenizer, a row each."""
    largest = max(evaluations, key=lambda evaluation: evaluation.report.size)
    rows = [("original", [before for before, _ in largest.examples])]
    rows += [(evaluation.name, [after for _, after in evaluation.examples]) for evaluation in evaluations]
    return comparison_sheet(rows)


def table_cells(report: TokenizerReport) -> dict[str, str]:
    """A report as a table row: column title -> cell."""
    return {
        "px": str(report.size),
        "f": str(report.factor),
        "K": str(report.codebook_size),
        "bits/px": f"{report.bits_per_pixel:.3f}",
        "PSNR dB": f"{report.psnr:.2f}",
        "SSIM": f"{report.ssim:.3f}",
        "perceptual distance": f"{report.perceptual_distance:.3f}",
        "FD-efficientnet-lite0": f"{report.fd_efficientnet_lite0:.2f}",
        "usage": f"{report.usage:.1%}",
        "perplexity": f"{report.perplexity:.0f}",
        "dead": str(report.dead_entries),
        "encode/s": f"{report.encode_per_second:.0f}",
        "decode/s": f"{report.decode_per_second:.0f}",
    }


def table_notes(reports: Sequence[TokenizerReport]) -> str:
    """What limits the comparison of a table's rows."""
    counts = {report.pictures for report in reports}
    sizes = {report.size for report in reports}
    text = f"{max(counts)} pictures; usage and dead entries are those of these pictures."
    if len(sizes) > 1:
        text += " Figures of different picture sizes cannot be compared: small pictures are easier."
    return text
