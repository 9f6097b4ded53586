"""Which emoji the icons of a package are, where the package names them but does not tell their code points.

Icons are matched by name, without case and punctuation: first to the English name of an emoji, then to the name of its
character in Unicode, which is often older. `CORRECTIONS` has what neither gives, or gives wrongly: it was made by
looking at every picture beside the same emoji of another vendor.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from dalle_mini_impl.data.emoji.art import VARIATION_SELECTOR

NOT_USED = ""
"""Stands in `CORRECTIONS` for an icon that shows something else than its name says, or nothing that is an emoji."""

_OLD_NAMES = {
    "directhit": "bullseye", "pistol": NOT_USED, "exclamationmark": "red exclamation mark",
    "questionmark": "red question mark", "poutingface": "enraged face", "ballotboxwithcheck": "check box with check",
    "bearface": "bear", "foxface": "fox", "frogface": "frog", "hamsterface": "hamster", "lionface": "lion",
    "pandaface": "panda", "robotface": "robot", "unicornface": "unicorn", "wolfface": "wolf",
    "schoolbackpack": "backpack", "manandwomanholdinghands": "woman and man holding hands",
    "twomenholdinghands": "men holding hands", "twowomenholdinghands": "women holding hands",
    "maninsuitlevitating": "person in suit levitating", "manwithchinesecap": "person with skullcap",
    "bridewithveil": "person with veil", "catfacewithtearsofjoy": "cat with tears of joy",
    "catfacewithwrysmile": "cat with wry smile", "cryingcatface": "crying cat", "grinningcatface": "grinning cat",
    "grinningcatfacewithsmilingeyes": "grinning cat with smiling eyes", "kissingcatface": "kissing cat",
    "poutingcatface": "pouting cat", "smilingcatfacewithhearteyes": "smiling cat with heart-eyes",
    "wearycatface": "weary cat", "huggingface": "smiling face with open hands",
}  # fmt: skip
"""Names that emoji had in earlier versions of Unicode's list."""

_FXEMOJI = {
    # An animal's plain name is its face there.
    "cat": "cat face", "catside": "cat", "dog": "dog face", "dogside": "dog", "tiger": "tiger face",
    "tigerside": "tiger", "mouse": "mouse face", "mouseside": "mouse", "pig": "pig face", "pigside": "pig",
    "bunny": "rabbit face", "bunnyside": "rabbit", "leopardside": "leopard", "dragonhead": "dragon face",
    "dragonside": "dragon", "frontfacingchick": "front-facing baby chick", "hampster": "hamster",
    "foxsmiling": "fox", "monkeyhear": "hear-no-evil monkey", "monkeysee": "see-no-evil monkey",
    "monkeyspeak": "speak-no-evil monkey", "pigsnout": "pig nose", "spurtingwhale": "spouting whale",
    # Not what the name says.
    "boar": NOT_USED, "kiss": NOT_USED, "tramcar": NOT_USED, "fog": NOT_USED, "window": NOT_USED, "bird": NOT_USED,
    "keyboard": NOT_USED, "wiredkeyboard": "keyboard", "umbrella": "closed umbrella", "sparklingheart": NOT_USED,
    "beatingheart": NOT_USED, "construction": "building construction", "constructionsign": "construction",
    # Spelled differently, or shortened.
    "2hearts": "two hearts", "americasglobe": "globe showing Americas",
    "asiaaustraliaglobe": "globe showing Asia-Australia", "europeafricaglobe": "globe showing Europe-Africa",
    "meridianglobe": "globe with meridians", "anger": "anger symbol", "aok": "OK hand",
    "banknotedollar": "dollar banknote", "banknoteeuro": "euro banknote", "banknotepound": "pound banknote",
    "banknoteyen": "yen banknote", "bellcancellation": "bell with slash", "bolt": "high voltage",
    "boot": "woman’s boot", "bow": "ribbon", "bowing": "person bowing", "bride": "person with veil",
    "bunnyears": "people with bunny ears", "cellphone": "mobile phone", "chartdownwardstrend": "chart decreasing",
    "chartupwardstrend": "chart increasing", "chilipepper": "hot pepper", "clap": "clapping hands",
    "closedmailboxlowered": "closed mailbox with lowered flag", "construct": "construction worker",
    "closedmailboxraised": "closed mailbox with raised flag", "openmailboxlowered": "open mailbox with lowered flag",
    "openmailboxraised": "open mailbox with raised flag", "contact": "bust in silhouette",
    "contact2": "busts in silhouette", "cop": "police officer", "confetti": "confetti ball",
    "controlknob": "control knobs", "dash": "dashing away", "diamondshapewithdotinside": "diamond with a dot",
    "evergreen": "evergreen tree", "fallingleaf": "fallen leaf", "fishcakeswirl": "fish cake with swirl",
    "fistedhand": "oncoming fist", "flexbicep": "flexed biceps", "floppydisk2": "floppy disk",
    "forkknife": "fork and knife with plate", "gem": "gem stone", "girlguy": "woman and man holding hands",
    "girlgirl": "women holding hands", "guyguy": "men holding hands", "gma": "old woman", "gpa": "old man",
    "guapimao": "person with skullcap", "hand": "raised hand", "handheldvideocamera": "video camera",
    "handup": "person raising hand", "headmassage": "person getting massage", "heartarrow": "heart with arrow",
    "heartgreen": "green heart", "heartpurple": "purple heart", "heartyellow": "yellow heart",
    "heartribbon": "heart with ribbon", "heels": "high-heeled shoe", "heavylatincross": "latin cross",
    "high5": "raising hands", "highspeedtrainbulletnose": "bullet train", "hourglassflowingsand": "hourglass not done",
    "index": "index pointing up", "japaneseangrymask": "goblin", "leaffluttering": "leaf fluttering in wind",
    "leftmagnifyingglass": "magnifying glass tilted left", "leftwritinghand": "writing hand",
    "rightmagnifyingglass": "magnifying glass tilted right", "lockandkey": "locked with key",
    "mahjong": "mahjong red dragon", "makeupbag": "clutch bag", "manltepiececlock": "mantelpiece clock",
    "mansshirt": "t-shirt", "mensrunner": "running shoe", "mensshoe": "man’s shoe", "nogesture": "person gesturing NO",
    "okgesture": "person gesturing OK", "outbox": "outbox tray", "pinkwallet": "purse", "poo": "pile of poo",
    "pout": "person pouting", "frown": "person frowning", "pray": "folded hands", "present": "wrapped gift",
    "racecar": "racing car", "raincloud": "cloud with rain", "reminder": "reminder ribbon",
    "running": "person running", "walking": "person walking", "swimming": "person swimming",
    "waitress": "person tipping hand", "sandals": "woman’s sandal", "silhouetteohjapan": "map of Japan",
    "sleuthspy": "detective", "snowcloud": "cloud with snow", "snowmountains": "snow-capped mountain",
    "speakercancellation": "muted speaker", "speechbubble": "speech balloon", "thoughtbaloon": "thought balloon",
    "stormcloud": "cloud with lightning", "studiomic": "studio microphone", "sunrays": "sun",
    "sunraincloud": "sun behind rain cloud", "sweatsplash": "sweat droplets",
    "telephonereceiver2": "telephone receiver",
    "tennisball": "tennis", "tie": "necktie", "toykotower": "Tokyo tower", "turban": "person wearing turban",
    "videocasette": "videocassette", "waningbibbousmoon": "waning gibbous moon", "wave": "water wave",
    "waving": "waving hand", "whitesunsmallcloud": "sun behind small cloud", "womansshirt": "woman’s clothes",
    "blackskullcrossbones": "skull and crossbones", "bookmarktab": "bookmark tabs", "couple": "couple with heart",
    "phonerightarrowleft": "mobile phone with arrow",
    # Faces.
    "angry": "angry face", "pouting": "enraged face", "anguish": "anguished face", "confounded": "confounded face",
    "confused": "confused face", "crying": "crying face", "devilhorns": "smiling face with horns",
    "disappointed": "disappointed face", "expressionless": "expressionless face", "fearful": "fearful face",
    "flushed": "flushed face", "grimacing": "grimacing face", "grinsquint": "grinning squinting face",
    "grinsweat": "grinning face with sweat", "grintears": "face with tears of joy", "halo": "smiling face with halo",
    "hearteyes": "smiling face with heart-eyes", "hushed": "hushed face", "loudlycrying": "loudly crying face",
    "medicalmask": "face with medical mask", "neutral": "neutral face", "nomouth": "face without mouth",
    "openmouth": "face with open mouth", "pensive": "pensive face", "perservere": "persevering face",
    "relieved": "relieved face", "screamfear": "face screaming in fear", "sleeping": "sleeping face",
    "sleepy": "sleepy face", "smallfrown": "slightly frowning face", "smallsmile": "slightly smiling face",
    "smileeyes": "smiling face with smiling eyes", "smirk": "smirking face", "tired": "tired face",
    "triumph": "face with steam from nose", "unamused": "unamused face", "weary": "weary face",
    "winking": "winking face", "worried": "worried face",
}  # fmt: skip

_STREAMLINE = {
    "turkey": NOT_USED, "headphone": NOT_USED, "mapleleaf": NOT_USED, "rightangerbubble": NOT_USED,
    "gamedice": "game die", "crazyface": "zany face", "gesturingok": "person gesturing OK",
}  # fmt: skip

CORRECTIONS: dict[str, dict[str, str]] = {
    "noto-v1": _OLD_NAMES,
    "fxemoji": {**_OLD_NAMES, **_FXEMOJI},
    "streamline": {**_OLD_NAMES, **_STREAMLINE},
}
"""Vendor whose package has no code points -> folded name of an icon -> English name of its emoji, or `NOT_USED`."""


def fold_name(name: str) -> str:
    """A name in lower case, letters and digits only."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub("[^a-z0-9]", "", plain)


def match_icons(icons: Iterable[str], table: Mapping[str, Mapping[str, str]], vendor: str) -> dict[str, str]:
    """Find the icon of each emoji by name.

    Args:
        icons: names of a package's icons, such as `fox-face-2`; of several that differ in a last number alone, the
            first in `icons` counts.
        table: emoji -> English `name`.
        vendor: whose `CORRECTIONS` apply.

    Returns:
        emoji -> name of its icon. A name that fits several emoji equally well fits none.
    """
    by_name = _unambiguous((fold_name(entry["name"]), emoji) for emoji, entry in table.items())
    by_character = _unambiguous(
        (fold_name(unicodedata.name(character, "")), emoji)
        for emoji in table
        if len(character := emoji.replace(VARIATION_SELECTOR, "")) == 1
    )
    found: dict[str, str] = {}
    exact: dict[str, str] = {}
    for icon in icons:
        name = fold_name(icon)
        if name not in CORRECTIONS[vendor] and name not in by_name and name not in by_character:
            name = fold_name(re.sub(r"-\d+$", "", icon))
        corrected = CORRECTIONS[vendor].get(name)
        if corrected is not None:
            name = fold_name(corrected)
        if name in by_name:
            exact.setdefault(by_name[name], icon)
        elif name in by_character:
            found.setdefault(by_character[name], icon)
    return {**found, **exact}


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The emoji of each name, of the names that only one emoji has."""
    found: dict[str, set[str]] = {}
    for name, emoji in pairs:
        found.setdefault(name, set()).add(emoji)
    return {name: next(iter(emojis)) for name, emojis in found.items() if name and len(emojis) == 1}
