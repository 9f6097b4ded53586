"""What a scorer knows: how well held-out pictures and their names find each other, language by language."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore, concept_indices
from dalle_mini_impl.evaluate.recall import recalls
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.plots import new_figure, save_figure

CHUNK = 64


@dataclass(frozen=True)
class LanguageReport:
    """Recalls of one language."""

    language: str
    """Empty where the captions do not say."""
    pictures: int
    """With a name in this language: what each is to be found among."""
    recalls: dict[str, float]
    """See `dalle_mini_impl.scorer.recalls`."""


def evaluate_scorer(scorer: Scorer, store: PictureStore, languages: Sequence[str] = ()) -> list[LanguageReport]:
    """Recalls of each language's first captions.

    Args:
        scorer: to be measured.
        store: pictures, best ones it has not been trained on.
        languages: those to measure; none given, all, by how many pictures have them.

    Raises:
        UserError: no picture has a caption in one of the languages.
    """
    counts = Counter(language for entry in store.entries for language in {one.language for one in entry.captions})
    if missing := [language for language in languages if language not in counts]:
        raise UserError(f"no picture has a caption in {missing[0]!r}; there are {', '.join(sorted(counts))}")
    chosen = languages or [language for language, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    image_embed, numbers = embed_store(scorer, store), torch.from_numpy(concept_indices(store))
    reports = []
    for language in chosen:
        rows = [row for row, entry in enumerate(store.entries) if language in {one.language for one in entry.captions}]
        captions = [caption_in_language(store.entries[row].captions, language).text for row in rows]
        text_embed = scorer.embed_texts(captions)
        reports.append(LanguageReport(language, len(rows), recalls(image_embed[rows] @ text_embed.T, numbers[rows])))
    return reports


def embed_store(scorer: Scorer, store: PictureStore) -> Tensor:
    """Embeddings (n, D) of all pictures."""
    chunks = [np.arange(start, min(start + CHUNK, len(store))) for start in range(0, len(store), CHUNK)]
    return torch.cat([scorer.embed_images(pixels_on_white(store.take(chunk), scorer.image_size)) for chunk in chunks])


def figures(report: LanguageReport) -> dict[str, str]:
    """One row of the table."""
    shares = {name.replace("_", " "): f"{value:.3f}" for name, value in report.recalls.items()}
    return {"language": report.language or "unknown", "pictures": str(report.pictures), **shares}


def plot(reports: Sequence[LanguageReport], path: str | Path) -> Path:
    """Draw recall at all depths from text to image, a group of bars for each language.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(max(6.0, 0.45 * len(reports)), 3.6)
    panel, places = figure.subplots(), np.arange(len(reports))
    for depth in (10, 5, 1):  # each over the next, which is never higher
        heights = [report.recalls[f"text_to_image_at_{depth}"] for report in reports]
        panel.bar(places, heights, label=f"recall@{depth}")
    panel.set_xticks(places, [report.language or "?" for report in reports])
    panel.set_ylabel("held-out pictures found by name")
    panel.set_ylim(0, 1)
    panel.legend()
    return save_figure(figure, path)
