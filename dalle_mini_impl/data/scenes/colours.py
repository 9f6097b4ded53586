"""Ten named colours in the perceptual space OKLab: recolouring art, and naming the colour that it has."""

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (250, 215, 50), "green": (60, 165, 70),
    "blue": (40, 110, 225), "purple": (140, 70, 190), "pink": (245, 130, 180), "brown": (125, 75, 40),
    "black": (35, 35, 38), "white": (250, 250, 250),
}  # fmt: skip
"""English name -> sRGB, 0 to 255."""
NEUTRAL = ("black", "white")
"""Colours without a hue."""
OPAQUE = 128
"""Alpha, of 255, from which a pixel belongs to the drawing."""
MIN_SHARE = 0.5
"""Least share of a drawing that must have the named colour after recolouring."""
LEAST_CHROMA = 0.045
"""Chroma below which a pixel is grey, black or white."""
CONTRAST = 0.75
"""How much of the differences in lightness recolouring keeps."""
_TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
_TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Lightness 0 to 1, a and b (…, 3) of sRGB values 0 to 255 (…, 3)."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """The sRGB values uint8 (…, 3) of OKLab values (…, 3); those that no screen has are clipped."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = linear.clip(0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(value * 255).astype(np.uint8)


def name_shares(rgba: np.ndarray) -> dict[str, float]:
    """Which share of a drawing's pixels has each named colour; the rest is grey or between names.

    Args:
        rgba: (H, W, 4) uint8.

    Returns:
        Colour -> share, 0 to 1; all 0 for a picture without a drawn pixel.
    """
    lab = to_oklab(rgba[rgba[..., 3] >= OPAQUE][:, :3])
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    grey = chroma < LEAST_CHROMA
    warm = (hue >= 15) & (hue < 85)
    brown = ~grey & warm & (lightness < 0.6) & (chroma < 0.15)
    pink = ~grey & ((hue >= 335) | (hue < 20)) & (lightness > 0.68)
    rest = ~grey & ~brown & ~pink
    masks = {
        "red": rest & ((hue >= 350) | (hue < 40)) & (lightness > 0.35),
        "orange": rest & (hue >= 45) & (hue < 80),
        "yellow": rest & (hue >= 83) & (hue < 115) & (lightness > 0.7),
        "green": rest & (hue >= 125) & (hue < 170),
        "blue": rest & (hue >= 225) & (hue < 280),
        "purple": rest & (hue >= 288) & (hue < 330),
        "pink": pink,
        "brown": brown,
        "black": grey & (lightness < 0.36),
        "white": grey & (lightness > 0.88),
    }
    return {name: float(mask.sum()) / max(1, len(lab)) for name, mask in masks.items()}


def recolour(rgba: np.ndarray, colour: str) -> np.ndarray | None:
    """Give a drawing a named colour; small dark and white parts, such as eyes, keep theirs.

    Args:
        rgba: (H, W, 4) uint8.
        colour: one of `COLOURS`.

    Returns:
        (H, W, 4) uint8; None where the named colour would not be what most of the drawing has.
    """
    drawn = rgba[..., 3] > 0
    lab = to_oklab(rgba[drawn][:, :3])
    if not len(lab):
        return None
    target = to_oklab(np.array(COLOURS[colour]))
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    detail = (chroma < LEAST_CHROMA) & ((lab[:, 0] < 0.36) | (lab[:, 0] > 0.93))
    body = ~detail if detail.mean() < MIN_SHARE else np.ones_like(detail)
    middle = np.median(lab[body, 0])
    lightness = target[0] + CONTRAST * (lab[:, 0] - middle)
    if colour in NEUTRAL:
        # Shades must stay within the lightness that has the name.
        lightness = target[0] + CONTRAST / 3 * (lab[:, 0] - middle)
    new = np.stack([lightness.clip(0.02, 1), np.full_like(chroma, target[1]), np.full_like(chroma, target[2])], 1)
    # Lights and shadows are less colourful than the colour itself.
    new[:, 1:] *= (1 - 1.2 * np.abs(new[:, :1] - target[0])).clip(0.4, 1)
    result = rgba.copy()
    result[drawn, :3] = np.where(body[:, None], from_oklab(new), rgba[drawn][:, :3])
    shares = name_shares(result)
    return result if shares[colour] >= MIN_SHARE and max(shares, key=lambda name: shares[name]) == colour else None
