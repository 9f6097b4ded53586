"""Prompts of a training's sample sheets: given by its settings, or captions of its own data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_mini_impl.data.entries import PictureEntries, PictureEntry
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.util.images import contact_sheet
from dalle_mini_impl.util.save_picture import save_picture
from dalle_mini_impl.util.text import printable

PROMPTS_PER_SPLIT = 4
"""Captions that are chosen of the training pictures, and of the held-out ones."""
EXAMINED = 64
"""Pictures of a split among whose captions they are chosen."""
CHOICE = 0x70726F6D
"""Sets the random numbers of the choice apart from those of training steps with the same seed."""


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt of the sample sheets."""

    text: str
    origin: str = ""
    """`trained` or `held out` for captions of the data, empty for prompts of the settings."""


def choose_prompts(
    given: Sequence[str],
    train: PictureEntries,
    validation: PictureEntries,
    language_weights: dict[str, float],
    seed: int,
) -> list[SamplePrompt]:
    """The prompts of all sample sheets of a run.

    Args:
        given: by the settings; if there are none, captions of some pictures are chosen.
        train: pictures that the run learns from.
        validation: pictures that it does not see; those of their captions that no training picture has are preferred.
        language_weights: relative frequency of captions by language code.
        seed: of the run.
    """
    if given:
        return [SamplePrompt(text) for text in given]
    trained, held_out = (_some_captions(entries, language_weights, seed) for entries in (train, validation))
    held_out.sort(key=train.has_caption)  # otherwise in the same order
    chosen = [SamplePrompt(text, "trained") for text in trained[:PROMPTS_PER_SPLIT]]
    return chosen + [SamplePrompt(text, "held out") for text in held_out[:PROMPTS_PER_SPLIT]]


def describe_prompts(prompts: Sequence[SamplePrompt]) -> str:
    """One line that names the prompts, and says which of them are captions of the data."""
    origins = dict.fromkeys(prompt.origin for prompt in prompts)
    parts = []
    for origin in origins:
        texts = ", ".join(repr(printable(prompt.text)) for prompt in prompts if prompt.origin == origin)
        parts.append(f"{origin}: {texts}" if origin else texts)
    return f"prompts of the sample sheets: {'; '.join(parts)}"


def save_sheet(pictures: Sequence[Image.Image], prompts: Sequence[SamplePrompt], path: Path) -> None:
    """Write a sheet of sample pictures.

    Args:
        pictures: equally many for each prompt, all of the first one first.
        prompts: written under their pictures, and whole in the metadata of the PNG.
        path: of the PNG.
    """
    count = len(pictures) // len(prompts)
    labels = []
    for prompt in prompts:
        # A label is not wider than its picture, so that the origin has one to itself.
        labels += [prompt.origin or prompt.text, *[prompt.text] * (count - 1)]
    sheet = contact_sheet(pictures, columns=2 * count, labels=labels)
    save_picture(sheet, path, {"prompts": [asdict(prompt) for prompt in prompts]})


def _some_captions(entries: Sequence[PictureEntry], language_weights: dict[str, float], seed: int) -> list[str]:
    """Different captions of some pictures, in random order."""
    random = np.random.default_rng([seed, CHOICE])
    some = [entries[index] for index in random.permutation(len(entries))[:EXAMINED].tolist()]
    captions = CaptionSampler(some, language_weights)
    return list(dict.fromkeys(captions.sample(index, random).text for index in range(len(some))))
