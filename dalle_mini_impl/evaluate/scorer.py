"""Retrieval by a scorer: how well held-out pictures and their names match, language by language."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.entries import concept_indices
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.evaluate.recall import DEPTHS, recalls
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.plots import new_figure, save_figure

BATCH_SIZE = 64


@dataclass(frozen=True)
class LanguageReport:
    """Retrieval in one language."""

    language: str
    """Empty where the captions have no language."""
    pictures: int
    """With a caption in this language: the number of pairs to match."""
    recalls: dict[str, float]
    """See `dalle_mini_impl.evaluate.recall.recalls`."""


def evaluate_scorer(scorer: Scorer, store: PictureStore, languages: Sequence[str] = ()) -> list[LanguageReport]:
    """Match each language's pictures with their first captions.

    Args:
        scorer: to be measured.
        store: pictures, preferably ones it was not trained on.
        languages: to measure; by default all, by descending number of pictures.

    Raises:
        UserError: no picture has a caption in one of the languages.
    """
    entry_languages = [{caption.language for caption in entry.captions} for entry in store.entries]
    counts = Counter(language for languages_of_one in entry_languages for language in languages_of_one)
    if missing := [language for language in languages if language not in counts]:
        raise UserError(
            f"no picture has a caption in {missing[0]!r}; there are {', '.join(sorted(counts))}; "
            f"choose among these languages"
        )
    by_count = [language for language, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    image_embed = embed_store(scorer, store)
    concept_ids = torch.from_numpy(concept_indices(store.entries))
    reports = []
    for language in languages or by_count:
        rows = [row for row, known in enumerate(entry_languages) if language in known]
        text_embed = scorer.embed_texts(
            [caption_in_language(store.entries[row].captions, language).text for row in rows]
        )
        similarity = image_embed[rows] @ text_embed.T
        reports.append(LanguageReport(language, len(rows), recalls(similarity, concept_ids[rows])))
    return reports


def embed_store(scorer: Scorer, store: PictureStore) -> Tensor:
    """Embeddings (n, D) of all pictures."""
    batches = [np.arange(start, min(start + BATCH_SIZE, len(store))) for start in range(0, len(store), BATCH_SIZE)]
    return torch.cat([scorer.embed_images(pixels_on_white(store.take(batch), scorer.image_size)) for batch in batches])


def table_cells(report: LanguageReport) -> dict[str, str]:
    """A report as a table row: column title -> cell."""
    shares = {name.replace("_", " "): f"{value:.3f}" for name, value in report.recalls.items()}
    return {"language": report.language or "unknown", "pictures": str(report.pictures), **shares}


def plot_recalls(reports: Sequence[LanguageReport], path: str | Path) -> Path:
    """Plot text-to-image recall at all depths, a group of bars for each language.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(max(6.0, 0.45 * len(reports)), 3.6)
    axes = figure.subplots()
    positions = np.arange(len(reports))
    for depth in reversed(DEPTHS):  # the bar of a smaller depth, which is never higher, covers the larger one's
        heights = [report.recalls[f"text_to_image_at_{depth}"] for report in reports]
        axes.bar(positions, heights, label=f"recall@{depth}")
    axes.set_xticks(positions, [report.language or "?" for report in reports])
    axes.set_ylabel("held-out pictures found by name")
    axes.set_ylim(0, 1)
    axes.legend()
    return save_figure(figure, path)
