"""What image tokenizers keep of pictures, how much of their codebooks they use, and how fast they are."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.evaluate.batches import Choice, comparison_sheet
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, usage
from dalle_mini_impl.evaluate.reconstruction import Fidelity
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.errors import UserError

SPLITS = ("validation", "train", "all")


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """Quality of an image tokenizer on one set of pictures."""

    pictures: int
    size: int
    """Side of the pictures in pixels."""
    factor: int
    """Pixels per id along each side."""
    codebook_size: int
    """K."""
    bits_per_pixel: float
    """Of the ids, each taking log2 K bits."""
    psnr: float
    """dB, mean over pictures."""
    ssim: float
    """Mean over pictures, at most 1."""
    perceptual_distance: float
    """By EfficientNet-Lite0, as training can minimise it; mean over pictures, 0 to 4, less is better."""
    fd_efficientnet_lite0: float
    """Fréchet distance between the sets of pictures before and after, on EfficientNet-Lite0's 192 features; less is
    better. Of the same number of pictures only, as few of them overstate it."""
    usage: float
    """Share of the codebook that occurs, 0 to 1."""
    perplexity: float
    """Effective number of ids in use, 1 to K."""
    dead_entries: int
    """Ids that do not occur in these pictures."""
    encode_per_second: float
    """Pictures a second."""
    decode_per_second: float
    """Pictures a second."""


@dataclass(frozen=True)
class Evaluation:
    """What was found out about one image tokenizer."""

    name: str
    report: TokenizerReport
    shown: list[tuple[Image.Image, Image.Image]]
    """Some pictures before and after."""


def evaluate_image_tokenizer(
    name: str, tokenizer: ImageTokenizer, batches: Iterable[Tensor], shown: int = 24
) -> Evaluation:
    """Encode and decode pictures.

    Args:
        name: what to call it.
        tokenizer: in evaluation mode.
        batches: pixels (B, 3, H, W) in [-1, 1], H and W multiples of its factor and at least 11.
        shown: pictures to keep for a sheet.

    Raises:
        UserError: there are fewer than two pictures, or the `eval` extra is not installed.
    """
    fidelity, choice = Fidelity(tokenizer.device), Choice(shown)
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    encoding = decoding = 0.0
    for before in batches:
        if not choice.count:
            run(tokenizer, before)  # what is done once only should not count as slowness
        ids, after, seconds = run(tokenizer, before)
        encoding, decoding = encoding + seconds[0], decoding + seconds[1]
        counts += count_ids(ids, tokenizer.codebook_size)
        fidelity.add(before, after)
        choice.offer(before, after)
    if choice.count < 2:
        raise UserError(
            f"there are {choice.count} pictures in the data, expected at least 2; "
            f"name a set, or a split of it, that holds more"
        )
    report = TokenizerReport(
        pictures=choice.count,
        size=before.shape[-1],
        factor=tokenizer.config.factor,
        codebook_size=tokenizer.codebook_size,
        bits_per_pixel=math.log2(tokenizer.codebook_size) / tokenizer.config.factor**2,
        usage=usage(counts),
        perplexity=perplexity(counts),
        dead_entries=int((counts == 0).sum()),
        encode_per_second=choice.count / encoding,
        decode_per_second=choice.count / decoding,
        **fidelity.figures(),
    )
    return Evaluation(name, report, choice.kept)


def run(tokenizer: ImageTokenizer, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Ids and decoded pixels on the CPU, and the seconds that encoding and decoding took."""
    device = tokenizer.device
    start = time.perf_counter()
    ids = tokenizer.encode(pixels.to(device)).cpu()
    middle = time.perf_counter()
    after = tokenizer.decode(ids.to(device)).cpu()
    return ids, after, (middle - start, time.perf_counter() - middle)


def sheet(evaluations: Sequence[Evaluation]) -> Image.Image:
    """The same pictures before and after each image tokenizer, a row each."""
    largest = max(evaluations, key=lambda evaluation: evaluation.report.size)
    rows = [("original", [before for before, _ in largest.shown])]
    return comparison_sheet([*rows, *((one.name, [after for _, after in one.shown]) for one in evaluations)])


def figures(report: TokenizerReport) -> dict[str, str]:
    """A report as the cells of a table."""
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


def notes(reports: Sequence[TokenizerReport]) -> str:
    """What to keep in mind when reading the table."""
    counts, sizes = ({getattr(report, name) for report in reports} for name in ("pictures", "size"))
    text = f"{max(counts)} pictures; usage and dead entries are those of these pictures."
    if len(sizes) > 1:
        text += " Figures of different picture sizes cannot be compared: small pictures are easier."
    return text
