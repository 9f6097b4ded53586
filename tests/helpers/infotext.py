"""How other programs read the text in a picture: as AUTOMATIC1111's stable-diffusion-webui does, written anew."""

import json
import re

FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def parse_infotext(text: str) -> dict[str, str]:
    """Prompt, negative prompt and settings by name."""
    *lines, last = text.strip().split("\n")
    assert len(FIELD.findall(last)) >= 3, last
    values = {"Prompt": "", "Negative prompt": ""}
    current = "Prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            current, line = "Negative prompt", line.removeprefix("Negative prompt:")
        values[current] += ("\n" if values[current] else "") + line.strip()
    for name, value in FIELD.findall(last):
        values[name] = json.loads(value) if value.startswith('"') and value.endswith('"') else value
    return values


def text_of(image) -> str:
    """The text of an opened picture: of a PNG its parameters, else its EXIF comment."""
    if "parameters" in image.info:
        return image.info["parameters"]
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
