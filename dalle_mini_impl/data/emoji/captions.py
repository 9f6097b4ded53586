"""Emoji captions in 24 languages, from the Unicode CLDR annotation packages.

CLDR has a short name and a handful of keywords for each emoji and language. From these come, for each
language, a plain name, the name with an indefinite article, and the name with keywords, each with and
without the vendor's style word: about half of the captions name a style, so a prompt works either way.
"""

import hashlib
import json
from pathlib import Path

from dalle_mini_impl.data.emoji.art import VARIATION_SELECTOR

LANGUAGES = (
    "en", "de", "no", "sl", "et", "nl", "es", "fr", "it", "pt", "sv", "fi",
    "pl", "cs", "hu", "tr", "ru", "uk", "el", "ar", "hi", "zh", "ja", "ko",
)  # fmt: skip

PACKAGES = ("cldr-annotations-full@48.2.0", "cldr-annotations-derived-full@48.2.0")
LICENCE = "Unicode-3.0"

# Indefinite articles. CLDR does not tell a noun's gender, so one is drawn at random: what the model should
# learn is that an article carries no meaning, because people will type one.
ARTICLES = {
    "en": ("a",), "de": ("ein", "eine"), "no": ("en", "et", "ei"), "nl": ("een",), "es": ("un", "una"),
    "fr": ("un", "une"), "it": ("un", "una"), "pt": ("um", "uma"), "sv": ("en", "ett"), "hu": ("egy",),
}  # fmt: skip

Annotations = dict[str, dict[str, tuple[str, list[str]]]]
"""language -> emoji -> (name, keywords)."""


def load_annotations(folders: list[Path]) -> Annotations:
    """Read names and keywords of every language in `LANGUAGES` from unpacked CLDR packages."""
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
    """A number that depends on the strings alone: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def captions_for(emoji: str, style: str, annotations: Annotations) -> list[dict[str, str]]:
    """All captions of one picture, as `{"text": …, "language": …}`."""
    captions = []
    for language in LANGUAGES:
        entry = annotations[language].get(emoji.replace(VARIATION_SELECTOR, ""))
        if entry is None:
            continue
        for text in _forms(*entry, emoji=emoji, language=language, salt=style):
            captions.append({"text": text, "language": language})
            captions.append({"text": f"{text}, {style}", "language": language})
    return captions


def _forms(name: str, keywords: list[str], *, emoji: str, language: str, salt: str) -> list[str]:
    number = stable_hash(emoji, language, salt)
    forms = [name]
    if language in ARTICLES:
        article = ARTICLES[language][number % len(ARTICLES[language])]
        if language == "en" and name[0].lower() in "aeio":
            article = "an"
        forms.append(f"{article} {name}")
    if keywords:
        first = number % len(keywords)
        two = (keywords[first], keywords[(first + 1) % len(keywords)])
        forms.append(", ".join([name, *dict.fromkeys(two)]))
    return forms
