"""Zero-shot naming by the transformer's likelihood: is a held-out picture's name the one with the highest p(image)?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, format_share, mean_share
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.tables import markdown_table


@dataclass(frozen=True)
class CaptionReport:
    """Accuracy of one method of choosing a picture's name."""

    language: str
    method: str
    pictures: int
    names: int
    """To choose among."""
    shares: tuple[Share, ...]
    """Fraction of pictures whose name is among the best k, for each k of `TOP_K`."""


@dataclass(frozen=True, eq=False)
class NamingTask:
    """Pictures and the names to choose among."""

    language: str
    names: list[str]
    picture_indices: np.ndarray
    """(P,) of the pictures in their store."""
    true_names: Tensor
    """(P,) int64, index of each picture's name in `names`."""


def make_naming_task(store: PictureStore, language: str, count: int, seed: int) -> NamingTask:
    """Sample pictures; the names are the first captions of all pictures of the store in one language.

    Args:
        store: pictures, preferably ones the model was not trained on.
        language: of the names; captions without a language count as of this one.
        count: pictures; all where there are fewer.
        seed: determines the sample.

    Raises:
        UserError: no picture has a caption in this language.
    """
    indices = [
        index
        for index, entry in enumerate(store.entries)
        if {language, ""} & {caption.language for caption in entry.captions}
    ]
    if not indices:
        known = sorted({caption.language for entry in store.entries for caption in entry.captions})
        raise UserError(
            f"no picture has a caption in {language!r}; there are {', '.join(known)}; choose one of these languages"
        )
    own_name = {index: caption_in_language(store.entries[index].captions, language).text for index in indices}
    names = sorted(set(own_name.values()))
    sampled = np.random.default_rng(seed).permutation(indices)[:count]
    true_names = torch.tensor([names.index(own_name[index]) for index in sampled.tolist()])
    return NamingTask(language, names, sampled, true_names)


def evaluate_captions(
    dalle: DalleMini, store: PictureStore, task: NamingTask, progress: Callable[[int], object] = lambda pairs: None
) -> list[CaptionReport]:
    """Choose the names of pictures by the transformer's likelihood in several ways, and by the scorer.

    Args:
        dalle: the model.
        store: the store that the task's pictures are in.
        task: pictures and names.
        progress: called with the number of pairs of picture and name each step has processed.

    Returns:
        A report for each method; chance first.

    Raises:
        UserError: the model has no scorer.
    """
    count = len(task.names)
    shares = {"chance": tuple(Share(*[min(1.0, k / count)] * 3) for k in TOP_K)}
    for method, scores in _scores_by_method(dalle, task.names, store.take(task.picture_indices), progress).items():
        shares[method] = top_k_shares(scores, task.true_names)
    return [
        CaptionReport(task.language, method, len(task.picture_indices), count, values)
        for method, values in shares.items()
    ]


def top_k_shares(scores: Tensor, true_names: Tensor) -> tuple[Share, ...]:
    """Fraction of pictures whose own name is among the best k, for each k of `TOP_K`. Ties count against it.

    Args:
        scores: (P, number of names), the higher the better.
        true_names: (P,) int64, column of each picture's own name.
    """
    ranks = (scores >= scores.gather(1, true_names[:, None])).sum(1)  # 1 is the best
    return tuple(mean_share((ranks <= k).double().tolist()) for k in TOP_K)


def report_table(reports: Sequence[CaptionReport]) -> str:
    """A line for each report."""
    return markdown_table(
        [
            {
                "language": report.language,
                "by": report.method,
                "pictures": str(report.pictures),
                "names": str(report.names),
                **{f"top-{k}": _format(report, share) for k, share in zip(TOP_K, report.shares, strict=True)},
            }
            for report in reports
        ]
    )


def _scores_by_method(
    dalle: DalleMini, names: list[str], rgba: np.ndarray, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """Scores (P, number of names) of pictures (P, H, W, 4) by every method."""
    size = dalle.image_tokenizer.config.size
    device = dalle.transformer.device
    image_ids = dalle.image_tokenizer.encode(pixels_on_white(rgba, size).to(device))
    image_embed = dalle.scorer.embed_images(pixels_on_white(rgba, dalle.scorer.image_size))
    likelihood = dalle.caption_model.likelihood_table(names, image_ids, progress=progress)
    return {
        "likelihood": likelihood,
        "likelihood + prior": likelihood + dalle.caption_model.text_nats(names),
        "likelihood, blind": dalle.caption_model.likelihood_table(names, image_ids, blind=True),
        "CLIP scorer": image_embed @ dalle.scorer.embed_texts(names).T,
    }


def _format(report: CaptionReport, share: Share) -> str:
    """A share with its interval; chance has none, and needs more digits."""
    return f"{share.value:.4f}" if report.method == "chance" else format_share(share)
