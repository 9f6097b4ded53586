"""Emoji captions in 24 languages, from the Unicode CLDR annotation packages.

CLDR has a short name and a few keywords for each emoji and language. For each language they give three captions: the
name, the name with an indefinite article, and the name with keywords. Each of them appears with and without the
vendor's style word, so prompts work with and without a style.
"""

import hashlib
import json
from pathlib import Path

from dalle_mini_impl.data.emoji.art import VARIATION_SELECTOR

LANGUAGES = (
    "en", "de", "no", "sl", "et", "nl", "es", "fr", "it", "pt", "sv", "fi",
    "pl", "cs", "hu", "tr", "ru", "uk", "el", "ar", "hi", "zh", "ja", "ko",
)  # fmt: skip
"""Language codes of the captions."""

PACKAGES = ("cldr-annotations-full@48.2.0", "cldr-annotations-derived-full@48.2.0")
LICENCE = "Unicode-3.0"

ARTICLES = {
    "en": ("a",), "de": ("ein", "eine"), "no": ("en", "et", "ei"), "nl": ("een",), "es": ("un", "una"),
    "fr": ("un", "une"), "it": ("un", "una"), "pt": ("um", "uma"), "sv": ("en", "ett"), "hu": ("egy",),
}  # fmt: skip
"""Indefinite articles. CLDR does not say which gender a noun has, so the article is chosen by a hash: prompts often
have an article, and the model only has to learn that it carries no meaning.
"""

Annotations = dict[str, dict[str, tuple[str, list[str]]]]
"""language -> emoji -> (name, keywords)."""


def load_annotations(folders: list[Path]) -> Annotations:
    """Read the names and keywords in all `LANGUAGES` from unpacked CLDR packages."""
    table: Annotations = {language: {} for language in LANGUAGES}
    for folder in folders:
        for language in LANGUAGES:
            for kind in ("annotations", "annotationsDerived"):
                path = folder / kind / language / "annotations.json"
                if not path.is_file():
                    continue
                for emoji, entry in json.loads(path.read_text(encoding="utf-8"))[kind]["annotations"].items():
                    if "tts" in entry:
                        name = entry["tts"][0]
                        keywords = [word for word in entry.get("default", []) if word != name]
                        table[language][emoji.replace(VARIATION_SELECTOR, "")] = (name, keywords)
    return table


def stable_hash(*parts: str) -> int:
    """64-bit hash of strings, the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def captions_for(emoji: str, style: str, annotations: Annotations) -> list[dict[str, str]]:
    """All captions of one picture.

    Args:
        emoji: the emoji.
        style: the vendor's style word.
        annotations: names and keywords.

    Returns:
        `{"text": …, "language": …}` of each caption.
    """
    captions = []
    for language in LANGUAGES:
        entry = annotations[language].get(emoji.replace(VARIATION_SELECTOR, ""))
        if entry is None:
            continue
        for text in _plain_captions(*entry, emoji=emoji, language=language, style=style):
            captions.append({"text": text, "language": language})
            captions.append({"text": f"{text}, {style}", "language": language})
    return captions


def _plain_captions(name: str, keywords: list[str], *, emoji: str, language: str, style: str) -> list[str]:
    """Captions without the style word; the style only varies the choice of article and keywords."""
    choice = stable_hash(emoji, language, style)
    captions = [name]
    if language in ARTICLES:
        article = ARTICLES[language][choice % len(ARTICLES[language])]
        if language == "en" and name[0].lower() in "aeio":
            article = "an"
        captions.append(f"{article} {name}")
    if keywords:
        first = choice % len(keywords)
        pair = (keywords[first], keywords[(first + 1) % len(keywords)])
        captions.append(", ".join([name, *dict.fromkeys(pair)]))
    return captions
