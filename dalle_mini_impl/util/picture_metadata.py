"""What written pictures say of how they were made: our own record, and the text that other programs show.

| format | record (JSON) | text |
|---|---|---|
| PNG | iTXt chunk `dalle_mini_impl` | tEXt or iTXt chunk `parameters` |
| JPEG, WebP | XMP, `metadata` in the namespace `XMP_NAMESPACE` | EXIF, UserComment |

The text is the infotext of AUTOMATIC1111's stable-diffusion-webui, which most viewers of generated pictures read:
prompt, `Negative prompt: …`, and in the last line `Steps: …, Sampler: …` and so on.
"""

import hashlib
import html
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from dalle_mini_impl.util.text import printable

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name ending, in lower case -> the format that a picture is written in, by Pillow's name."""
RECORD_KEY = "dalle_mini_impl"
"""Key of the PNG text chunk that holds our record."""
TEXT_KEY = "parameters"
"""Key of the PNG text chunk that other programs read."""
MAX_TEXT = 8000
"""Units of UTF-16 that prompts, and negative ones, take in the text, so that both and the settings fit into EXIF."""
MAX_COMMENT = 32_000
"""Units of UTF-16 of a text in EXIF, which holds 64 KiB."""
XMP_NAMESPACE = "urn:dalle_mini_impl"
XMP_KEY = f"{{{XMP_NAMESPACE}}}metadata"
"""How ElementTree calls the XMP property that holds our record."""
XMP_SIGNATURE = b"http://ns.adobe.com/xap/1.0/\0"
EXTENSION_SIGNATURE = b"http://ns.adobe.com/xmp/extension/\0"
"""First bytes of JPEG segments with XMP; a packet that is too long for one segment continues in extensions."""
MAX_SEGMENT = 65_000
"""Bytes of XMP in one JPEG segment; the format allows a few more."""
NOT_IN_XML = re.compile("[\ufffe\uffff]")
"""Characters that JSON may have as they are and XML may not."""


def infotext(prompts: Iterable[str], negatives: Iterable[str], settings: Mapping[str, Any]) -> str:
    """Prompts and settings as other programs read them.

    Args:
        prompts: each in a line of its own; of equal ones the first.
        negatives: likewise; empty ones are left out.
        settings: name -> value; None leaves one out. Programs look for `Steps`, `Sampler`, `CFG scale`, `Seed`,
            `Size` (`WIDTHxHEIGHT`), `Model hash` and `Model`.
    """
    lines = [_lines(prompts)]
    if negative := _lines(negatives):
        lines.append(f"Negative prompt: {negative}")
    given = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    lines.append(", ".join(f"{name}: {_quoted(given[name])}" for name in settings if settings[name] is not None))
    return "\n".join(line for line in lines if line)


def _lines(texts: Iterable[str]) -> str:
    text = "\n".join(dict.fromkeys(line for text in texts if (line := printable(text))))
    return _cut(text, MAX_TEXT)


def _cut(text: str, units: int) -> str:
    """The beginning of a text that fits into so many units of UTF-16: characters beyond 16 bits take two."""
    content = text.encode("utf-16-be")
    return text if len(content) <= 2 * units else content[: 2 * (units - 1)].decode("utf-16-be", "ignore") + "…"


def _quoted(value: str) -> str:
    """A value as it stands among others: in quotation marks, as JSON has them, where it would end too early."""
    value = printable(value)
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:"') else value


def exif_comment(text: str) -> bytes:
    """An EXIF block whose only entry is a UserComment: the text, or its beginning if it does not fit."""
    comment = b"UNICODE\0" + _cut(text, MAX_COMMENT).encode("utf-16-be")
    first, own = 8, 8 + 2 + 12 + 4  # offsets of the two directories: a count, an entry of 12 bytes, no next one
    entry = struct.Struct(">HHHII I")
    directory = entry.pack(1, 0x8769, 4, 1, own, 0)  # ExifIFD, LONG
    comments = entry.pack(1, 0x9286, 7, len(comment), own + entry.size, 0)  # UserComment, UNDEFINED
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">I", first) + directory + comments + comment


def xmp_packet(properties: str) -> bytes:
    """An XMP packet.

    Args:
        properties: its elements, as XML.
    """
    description = f'<rdf:Description rdf:about="" xmlns:dalle="{XMP_NAMESPACE}">{properties}</rdf:Description>'
    rdf = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{description}</rdf:RDF>'
    meta = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta>'
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{meta}<?xpacket end="r"?>'.encode()


def xmp_record(record: str) -> bytes:
    """An XMP packet that holds a record."""
    text = NOT_IN_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", record)
    return xmp_packet(f"<dalle:metadata>{html.escape(text, quote=False)}</dalle:metadata>")


def jpeg_segments(packet: bytes) -> bytes:
    """The JPEG segments of an XMP packet: one, or several if it is longer (XMP specification, part 3)."""
    if len(packet) <= MAX_SEGMENT:
        return _segment(XMP_SIGNATURE + packet)
    name = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper()
    note = f'<n:HasExtendedXMP xmlns:n="http://ns.adobe.com/xmp/note/">{name}</n:HasExtendedXMP>'
    segments = [_segment(XMP_SIGNATURE + xmp_packet(note))]
    for start in range(0, len(packet), MAX_SEGMENT):
        head = EXTENSION_SIGNATURE + name.encode() + struct.pack(">II", len(packet), start)
        segments.append(_segment(head + packet[start : start + MAX_SEGMENT]))
    return b"".join(segments)


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def xmp_packets(segments: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
    """All XMP packets of a JPEG file.

    Args:
        segments: marker and content of each, as Pillow's `applist`.
    """
    extensions: dict[bytes, dict[bytes, bytes]] = {}
    for marker, content in segments:
        if marker == "APP1" and content.startswith(XMP_SIGNATURE):
            yield content.removeprefix(XMP_SIGNATURE)
        elif marker == "APP1" and content.startswith(EXTENSION_SIGNATURE):
            rest = content.removeprefix(EXTENSION_SIGNATURE)
            extensions.setdefault(rest[:32], {})[rest[36:40]] = rest[40:]  # name, length of all, offset, part
    for parts in extensions.values():
        yield b"".join(parts[offset] for offset in sorted(parts))


def read_xmp_record(packets: Iterable[bytes]) -> str | None:
    """The record in the first of these XMP packets that has one; None where none has."""
    for packet in packets:
        try:
            text = packet.decode("utf-8")
            if "<!DOCTYPE" in text:  # entities, which XMP has none of, could make a short text endlessly long
                continue
            elements = ElementTree.fromstring(text.lstrip("\ufeff")).iter()
        except (ValueError, ElementTree.ParseError):
            continue
        for element in elements:  # programs that edit XMP write a property as an element or as an attribute
            if element.tag == XMP_KEY or XMP_KEY in element.attrib:
                return element.get(XMP_KEY) or element.text
    return None
