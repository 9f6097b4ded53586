"""Captions of scenes in six languages, from templates that are grammatical with names in the nominative.

English has sentences. The other languages have lists, such as "links: Katze, rechts: Hund, Hintergrund: blau": names
come from a table without gender or cases, and only a list is right with each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.plan import ScenePlan

NUMBERS = {2: "two", 3: "three", 4: "four"}
"""Count -> English word."""
_ENGLISH_RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
"""Relation of the first object to the second -> wordings."""


@dataclass(frozen=True)
class LanguageWords:
    """Words of the list templates of one language."""

    colours: tuple[str, ...]
    """In the order of `COLOURS`, as they agree with `colour`."""
    colour: str
    background: str
    left: str
    right: str
    above: str
    below: str
    background_colours: tuple[str, ...] = ()
    """As they agree with `background`, where that differs."""

    def both(self, relation: str) -> tuple[str, str]:
        """The words for the places of the first and the second object."""
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        return getattr(self, relation), getattr(self, opposite[relation])


WORDS = {
    "de": LanguageWords(
        ("rot", "orange", "gelb", "grün", "blau", "lila", "rosa", "braun", "schwarz", "weiß"),
        "Farbe", "Hintergrund", "links", "rechts", "oben", "unten",
    ),
    "no": LanguageWords(
        ("rød", "oransje", "gul", "grønn", "blå", "lilla", "rosa", "brun", "svart", "hvit"),
        "farge", "bakgrunn", "venstre", "høyre", "oppe", "nede",
    ),
    "sl": LanguageWords(
        ("rdeča", "oranžna", "rumena", "zelena", "modra", "vijolična", "rožnata", "rjava", "črna", "bela"),
        "barva", "ozadje", "levo", "desno", "zgoraj", "spodaj",
        ("rdeče", "oranžno", "rumeno", "zeleno", "modro", "vijolično", "rožnato", "rjavo", "črno", "belo"),
    ),
    "et": LanguageWords(
        ("punane", "oranž", "kollane", "roheline", "sinine", "lilla", "roosa", "pruun", "must", "valge"),
        "värv", "taust", "vasakul", "paremal", "üleval", "all",
    ),
    "nl": LanguageWords(
        ("rood", "oranje", "geel", "groen", "blauw", "paars", "roze", "bruin", "zwart", "wit"),
        "kleur", "achtergrond", "links", "rechts", "boven", "onder",
    ),
}  # fmt: skip
"""Language code -> words, for the languages other than English."""


def scene_caption(
    plan: ScenePlan, names: Mapping[str, str], language: str, random: np.random.Generator, style: str = ""
) -> str:
    """One wording of a scene.

    Args:
        plan: what the scene shows.
        names: English concept -> its name in `language`.
        language: `en` or one of `WORDS`.
        random: chooses the wording.
        style: style word that is added; empty for none.
    """
    text = _english(plan, names, random) if language == "en" else _listed(plan, names, WORDS[language])
    return f"{text}, {style}" if style else text


def _english(plan: ScenePlan, names: Mapping[str, str], random: np.random.Generator) -> str:
    phrases = []
    for one in plan.objects:
        name = " ".join(filter(None, (one.colour, names[one.concept])))
        if one.count == 1:
            phrases.append(with_article(name))
        else:
            number = NUMBERS[one.count] if random.random() < 0.7 else str(one.count)
            phrases.append(f"{number} {plural(name)}")
    if plan.relation:
        words = _ENGLISH_RELATIONS[plan.relation]
        text = f" {words[random.integers(len(words))]} ".join(phrases)
    else:
        text = " and ".join(phrases)
    if not plan.background:
        return text
    places = (f"on a {plan.background} background", f"in front of a {plan.background} background")
    commas = (f", {plan.background} background",)
    ends = [f" {place}" for place in places] + list(commas)
    ends = [end.replace(" a orange", " an orange") for end in ends]
    return text + ends[random.integers(len(ends))]


def _listed(plan: ScenePlan, names: Mapping[str, str], words: LanguageWords) -> str:
    phrases = []
    for one in plan.objects:
        phrase = names[one.concept] if one.count == 1 else f"{one.count} × {names[one.concept]}"
        if one.colour:
            phrase += f" ({words.colour}: {words.colours[list(COLOURS).index(one.colour)]})"
        phrases.append(phrase)
    if plan.relation:
        phrases = [f"{place}: {phrase}" for place, phrase in zip(words.both(plan.relation), phrases, strict=True)]
    if plan.background:
        colours = words.background_colours or words.colours
        phrases.append(f"{words.background}: {colours[list(COLOURS).index(plan.background)]}")
    return ", ".join(phrases)


def with_article(name: str) -> str:
    """The name after "a" or "an", by its first letter, as in the captions of single pictures."""
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def plural(name: str) -> str:
    """Regular English plural of a name's last word, or of the word before "of", "with" and "in"."""
    irregular = {
        "mouse": "mice", "man": "men", "woman": "women", "child": "children", "tooth": "teeth", "foot": "feet",
        "goose": "geese", "leaf": "leaves", "wolf": "wolves", "knife": "knives", "loaf": "loaves", "fish": "fish",
        "sheep": "sheep", "deer": "deer", "octopus": "octopuses", "ox": "oxen", "tomato": "tomatoes",
        "potato": "potatoes", "mango": "mangoes", "shrimp": "shrimp",
    }  # fmt: skip
    words = name.split(" ")
    stops = [index for index, word in enumerate(words) if word in ("of", "with", "in", "on", "without", "from")]
    last = (stops[0] if stops and stops[0] > 0 else len(words)) - 1
    word = words[last]
    if word in irregular:
        words[last] = irregular[word]
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        words[last] = word + "es"
    elif word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        words[last] = word[:-1] + "ies"
    else:
        words[last] = word + "s"
    return " ".join(words)
