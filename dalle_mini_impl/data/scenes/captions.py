"""Captions of scenes in six languages, from templates that are grammatical with names in the nominative.

English has sentences. The other languages have lists, such as "links: Katze, rechts: Hund, Hintergrund: blau": names
come from a table without gender or cases, and only a list is right with each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalle_mini_impl.data.scenes.colours import COLOURS
from dalle_mini_impl.data.scenes.plan import LOOKS, SIZES, TURNS, SceneObject, ScenePlan
from dalle_mini_impl.data.scenes.wearing import WORN

NUMBERS = {2: "two", 3: "three", 4: "four"}
"""Count -> English word."""
_ENGLISH_RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "front": ("in front of", "partly in front of"),
}
"""Relation of the first object to the second -> wordings."""
_BEHIND = ("behind", "partly behind", "partly hidden by")
"""The relation of the second object to a first one in front of it."""
_ENGLISH_SIZES = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
_ENGLISH_TURNS = {
    "upside down": ("an upside-down {name}", "{one} upside down", "{one} turned upside down", "{one}, upside down"),
    "mirrored": ("a mirrored {name}", "{one}, mirrored", "a mirror image of {one}", "{one} facing the other way"),
}
_ENGLISH_LOOKS = {
    "black and white": (
        "a black and white picture of {one}", "{one} in black and white", "a black and white drawing of {one}",
        "{one}, black and white",
    ),
    "outline": (
        "an outline of {one}", "a line drawing of {one}", "an outline drawing of {one}", "{one} as an outline",
        "{one}, outline",
    ),
    "pixel art": (
        "pixel art of {one}", "a pixel art {name}", "{one} as pixel art", "a pixelated {name}", "{one}, pixel art",
    ),
}  # fmt: skip
_ENGLISH_WEARING = (
    "{one} wearing {worn}",
    "{one} with {worn}",
    "{one} that wears {worn}",
    "{one} with {worn} on its {part}",
)
KEYWORD_SHARE = 0.25
"""Share of English captions that are keywords, such as "blue cat, yellow background"."""
_FACE = " face"
"""End of names of heads, which people leave out where the rest is a name as well."""


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
    front: str
    behind: str
    size: str
    sizes: tuple[str, ...]
    """In the order of `SIZES`, as they agree with `size`."""
    turns: tuple[str, ...]
    """In the order of `TURNS`."""
    wearing: str
    """Verb before what is worn."""
    looks: tuple[str, ...]
    """In the order of `LOOKS`."""
    background_colours: tuple[str, ...] = ()
    """As they agree with `background`, where that differs."""

    def both(self, relation: str) -> tuple[str, str]:
        """The words for the places of the first and the second object."""
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind"}
        return getattr(self, relation), getattr(self, opposite[relation])


WORDS = {
    "de": LanguageWords(
        ("rot", "orange", "gelb", "grün", "blau", "lila", "rosa", "braun", "schwarz", "weiß"),
        "Farbe", "Hintergrund", "links", "rechts", "oben", "unten", "vorn", "hinten",
        "Größe", ("groß", "klein"), ("kopfüber", "gespiegelt"), "trägt", ("schwarz-weiß", "Umriss", "Pixelgrafik"),
    ),
    "no": LanguageWords(
        ("rød", "oransje", "gul", "grønn", "blå", "lilla", "rosa", "brun", "svart", "hvit"),
        "farge", "bakgrunn", "venstre", "høyre", "oppe", "nede", "foran", "bak",
        "størrelse", ("stor", "liten"), ("opp ned", "speilvendt"), "har på seg",
        ("svart-hvitt", "omriss", "pikselkunst"),
    ),
    "sl": LanguageWords(
        ("rdeča", "oranžna", "rumena", "zelena", "modra", "vijolična", "rožnata", "rjava", "črna", "bela"),
        "barva", "ozadje", "levo", "desno", "zgoraj", "spodaj", "spredaj", "zadaj",
        "velikost", ("velika", "majhna"), ("obrnjeno na glavo", "zrcalno"), "nosi",
        ("črno-belo", "obris", "pikselska grafika"),
        ("rdeče", "oranžno", "rumeno", "zeleno", "modro", "vijolično", "rožnato", "rjavo", "črno", "belo"),
    ),
    "et": LanguageWords(
        ("punane", "oranž", "kollane", "roheline", "sinine", "lilla", "roosa", "pruun", "must", "valge"),
        "värv", "taust", "vasakul", "paremal", "üleval", "all", "ees", "taga",
        "suurus", ("suur", "väike"), ("tagurpidi", "peegelpildis"), "kannab", ("mustvalge", "piirjoon", "pikslikunst"),
    ),
    "nl": LanguageWords(
        ("rood", "oranje", "geel", "groen", "blauw", "paars", "roze", "bruin", "zwart", "wit"),
        "kleur", "achtergrond", "links", "rechts", "boven", "onder", "voor", "achter",
        "grootte", ("groot", "klein"), ("ondersteboven", "gespiegeld"), "draagt", ("zwart-wit", "omtrek", "pixelkunst"),
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
    are_keywords = bool(random.random() < KEYWORD_SHARE)
    article: Callable[[str], str] = str if are_keywords else with_article
    phrases = [_english_object(one, plan.look, names, article, random) for one in plan.objects]
    if plan.relation == "front" and random.random() < 0.5:
        text = f" {_choice(_BEHIND, random)} ".join(reversed(phrases))
    elif plan.relation:
        text = f" {_choice(_ENGLISH_RELATIONS[plan.relation], random)} ".join(phrases)
    else:
        text = (", " if are_keywords else " and ").join(phrases)
    if not plan.background:
        return text
    ends = [f", {plan.background} background"]
    if not are_keywords:
        ends.append(f" on a {plan.background} background")
    if not are_keywords and plan.relation != "front":
        ends.append(f" in front of a {plan.background} background")
    return text + _choice(ends, random).replace(" a orange", " an orange")


def _english_object(
    one: SceneObject, look: str, names: Mapping[str, str], article: Callable[[str], str], random: np.random.Generator
) -> str:
    """One kind of thing with its article, if any, or number."""
    name = names[one.concept]
    if one.wearing and name.endswith(_FACE) and name.removesuffix(_FACE) in names and random.random() < 0.5:
        name = name.removesuffix(_FACE)
    size = _choice(_ENGLISH_SIZES[one.size], random) if one.size else ""
    name = " ".join(filter(None, (size, one.colour, name)))
    if one.count > 1:
        number = NUMBERS[one.count] if random.random() < 0.7 else str(one.count)
        return f"{number} {plural(name)}"
    templates = _ENGLISH_TURNS.get(one.turn) or _ENGLISH_LOOKS.get(look) or ("{one}",)
    if not one.wearing:
        return _choice(templates, random).format(name=name, one=article(name))
    worn, part = names[one.wearing], "nose"
    if not WORN[one.wearing].on_eyes:
        worn, part = article(worn), "head"
    return _choice(_ENGLISH_WEARING, random).format(one=article(name), worn=worn, part=part)


def _choice(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


def _listed(plan: ScenePlan, names: Mapping[str, str], words: LanguageWords) -> str:
    phrases = []
    for one in plan.objects:
        phrase = names[one.concept] if one.count == 1 else f"{one.count} × {names[one.concept]}"
        if one.colour:
            phrase += f" ({words.colour}: {words.colours[list(COLOURS).index(one.colour)]})"
        if one.size:
            phrase += f" ({words.size}: {words.sizes[SIZES.index(one.size)]})"
        if one.turn:
            phrase += f", {words.turns[TURNS.index(one.turn)]}"
        if one.wearing:
            phrase += f", {words.wearing}: {names[one.wearing]}"
        phrases.append(phrase)
    if plan.relation:
        phrases = [f"{place}: {phrase}" for place, phrase in zip(words.both(plan.relation), phrases, strict=True)]
    if plan.look:
        phrases.append(words.looks[LOOKS.index(plan.look)])
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
