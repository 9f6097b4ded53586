"""Codes of languages: which strings look like one, and which are known."""

import re

LANGUAGE = r"[A-Za-z]{2,3}(?:[-_@][A-Za-z0-9]+)*"
"""Pattern of a language code such as `en`, `pt_BR` or `zh-Hant`."""


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


TWO_LETTERS = _codes(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee
    el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is
    it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms
    mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si
    sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh
    yi yo za zh zu
    """
)
"""The codes of ISO 639-1."""
THREE_LETTERS = _codes(
    """
    afr amh ara arz ast aze bar bel ben bos bul cat ceb ces chi ckb cmn cym cze dan deu dut ell eng est eus fas
    fil fin fra fre gaa ger gla gle glg gom gre grc gsw guj hat hau haw heb hin hmn hrv hsb hun hye ibo ice ilo
    ind isl ita jav jpn kab kan kat kaz khm kmr kor kur lao lat lav lij lim lit ltz lzh mal mar may mkd mlg mlt
    mon mri msa mya nan nap nds nep nld nno nob nor nso oci pan pap pcm pes pol por pus ron rum rus san scn sco
    sin slk slo slv smo sna snd som sot spa sqi srd srp sun swa swe szl tam tat tel tgk tgl tha tib tir tok ton
    tuk tur uig ukr urd uzb vec vie wuu xho yid yor yue zho zsm zul
    """
)
"""Codes of ISO 639-2 and 639-3 for the languages of which there are captions."""


def is_known_language(code: str) -> bool:
    """Whether a code such as `de`, `pt-BR` or `zh_Hant` begins with that of a known language."""
    first = re.split("[-_@]", code, maxsplit=1)[0].lower()
    return first in TWO_LETTERS or first in THREE_LETTERS


def language_of_name(name: str) -> tuple[str, str]:
    """Divide the name of a caption file, without its ending, into the picture's name and a language.

    A known language is taken in any form, and two letters in any case: `data inspect` tells of unknown ones.

    >>> language_of_name("cat.pt_BR")
    ('cat', 'pt_BR')
    >>> language_of_name("cat.big")
    ('cat.big', '')
    """
    stem, _, code = name.rpartition(".")
    if stem and re.fullmatch(LANGUAGE, code) and (len(code) == 2 or is_known_language(code)):
        return stem, code
    return name, ""
