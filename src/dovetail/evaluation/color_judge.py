"""A judge of colors alone, that looks at pixels: which share of what stands out, or of its ground, has the color named?

It needs no training, and is right where a thing stands on a plain ground. Like any judge it is tried on real pictures first.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dovetail.evaluation import gradients
from dovetail.evaluation.caption_phrases import is_color
from dovetail.evaluation.caption_reading import read
from dovetail.evaluation.caption_words import COLOR_FAMILY, COLORS

SIDE = 64  # pictures are looked at in this size
# The eleven basic color terms (Berlin & Kay 1969), each by a few colors that anyone would call so; sRGB, 0..255.
EXAMPLES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((205, 30, 40), (235, 65, 60), (150, 20, 30)), "orange": ((245, 130, 30), (255, 165, 70), (220, 95, 20)),
    "yellow": ((250, 215, 45), (255, 240, 130), (215, 185, 30)), "green": ((60, 160, 75), (30, 100, 45), (135, 205, 95)),
    "blue": ((50, 90, 210), (110, 175, 245), (20, 40, 110)), "purple": ((125, 55, 175), (165, 115, 215), (75, 30, 110)),
    "pink": ((245, 160, 200), (235, 90, 165), (250, 195, 212)), "brown": ((125, 75, 40), (90, 55, 30), (160, 112, 75)),
    "black": ((12, 12, 14), (40, 38, 42)), "white": ((252, 252, 252), (235, 234, 232)),
    "gray": ((130, 130, 132), (90, 90, 93), (180, 180, 183)),
}  # fmt: skip


class ColorJudge:
    """Scores texts that name the color of one thing, or of the background; other texts score 0."""

    name = "color judge"

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """Percentage of pixels with the color that text i names, in image i (uint8, H x W x 3): float64 (n,)."""
        known: dict[int, NDArray[np.float64]] = {}
        found = np.zeros(len(texts))
        for k, (image, text) in enumerate(zip(images, texts, strict=True)):
            colors, of_ground = named_colors(text)
            if colors:
                if id(image) not in known:
                    known[id(image)] = color_shares(image)
                found[k] = 100 * known[id(image)][int(of_ground), [COLORS.index(c) for c in colors]].sum()
        return found


def named_colors(text: str) -> tuple[tuple[str, ...], bool]:
    """The basic colors that a text names of the first thing it calls colored, and whether that thing is the background."""
    for phrase in read(text).phrases:
        said = [adjective for adjective in phrase.adjectives if is_color(adjective)]
        words = [token.text for adjective in said for token in adjective.tokens]
        families = [COLOR_FAMILY[word].split() for word in words if word in COLOR_FAMILY]
        if families:
            return tuple(dict.fromkeys(color for family in families for color in family)), phrase.is_background
    return (), False


def color_shares(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of the basic colors in what stands out and in its ground: float64 (2, 11), each row's sum 1."""
    from PIL import Image

    small = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    pixels = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
    apparent = gradients.standing_out(pixels)[0, 0].numpy().reshape(-1)
    palette = [(name, rgb) for name in COLORS for rgb in EXAMPLES[name]]
    far = np.linalg.norm(_lab(small.reshape(-1, 1, 3)) - _lab(np.array([rgb for _, rgb in palette], np.float32)[None]), axis=2)
    colors = np.array([COLORS.index(name) for name, _ in palette])[far.argmin(1)]
    found = np.zeros((2, len(COLORS)))
    # What is but a little apparent is an edge, in which colors mix.
    for row, weights in enumerate((apparent > 2 * gradients.APPARENT, apparent < gradients.APPARENT)):
        counts = np.bincount(colors, weights=weights.astype(float), minlength=len(COLORS))
        found[row] = counts / max(1.0, counts.sum())
    return found


def _lab(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """CIELAB (D65) of sRGB in 0..255, in the last axis."""
    x = rgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], np.float32)
    t = xyz / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    lab = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
    return lab.astype(np.float32)
