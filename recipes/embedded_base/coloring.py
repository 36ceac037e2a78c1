"""Single-color icons of televisions, drawn anew in colors: body, screen, and lines each get one of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyvips
from PIL import Image

from . import scenes

SIDE = 384  # pixels of the longer side while drawing
PAD = 32  # free pixels around it, so that thickened lines stay whole
STROKE = 0.05  # of the longer side: thinner lines vanish at 64 pixels
SPECK = 0.0008  # of the square: a smaller hole is no area
RIM = 0.055  # of the longer side: how broad a body is drawn within a thin frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Paint:
    """The colors of one television, by the names of `scenes.COLOURS`, and how it is drawn."""

    body: str
    screen: str
    line: str  # antennas, feet, and outlines where there are some
    outlined: bool  # lines around the body, else the icon's lines are the body
    ringed: bool  # where the frame is a thin line around a screen, a broad body is drawn within it
    shine: bool  # a light stripe across the screen


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """`mask` (bool) widened by a disc of `radius` pixels."""
    out = mask.copy()
    for dy in range(-radius, radius + 1):
        reach = int((radius * radius - dy * dy) ** 0.5)
        sums = np.cumsum(np.pad(mask, ((0, 0), (reach + 1, reach))), axis=1, dtype=np.int32)
        wide = sums[:, 2 * reach + 1 :] > sums[:, : -2 * reach - 1]
        low, high = max(0, dy), min(len(mask), len(mask) + dy)
        out[low:high] |= wide[low - dy : high - dy]
    return out


def areas(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of `mask` (bool), largest first, specks left out."""
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(mask, np.uint8).data, mask.shape[1], mask.shape[0], 1, "uchar")
    labels = image.labelregions().numpy()
    parts = [labels == k for k in np.unique(labels[mask])]
    return sorted((p for p in parts if p.sum() > SPECK * mask.size), key=lambda p: -int(p.sum()))


def encloses(outer: np.ndarray, inner: np.ndarray) -> bool:
    """Whether `inner`, no mere mark, lies within a ring `outer`."""
    (y0, x0, y1, x1), (v0, u0, v1, u1) = (
        (r.min(), c.min(), r.max(), c.max()) for r, c in (np.nonzero(outer), np.nonzero(inner))
    )
    return bool(y0 < v0 and x0 < u0 and v1 < y1 and u1 < x1) and inner.sum() > 0.15 * outer.sum()


def shade(rng: np.random.Generator, name: str) -> np.ndarray:
    """A color called `name`, not quite the same each time."""
    return np.clip(np.array(scenes.COLOURS[name]) + rng.uniform(-10, 10, 3), 0, 255)


def boxed(shape: tuple[int, int], box: Sequence[float], radius: float = 0.06) -> np.ndarray:
    """Mask of a rectangle with round corners; `box` is x, y, right, bottom in shares of the unpadded picture."""
    height, width = shape[0] - 2 * PAD, shape[1] - 2 * PAD
    x0, y0, x1, y1 = (PAD + v * n for v, n in zip(box, (width, height, width, height), strict=True))
    r = radius * SIDE
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    dx, dy = np.maximum(np.maximum(x0 + r - xs, xs - x1 + r), 0), np.maximum(np.maximum(y0 + r - ys, ys - y1 + r), 0)
    return dx * dx + dy * dy <= r * r


def colored(
    rng: np.random.Generator,
    alpha: np.ndarray,
    paint: Paint,
    stroke: float = STROKE,
    case: Sequence[float] | None = None,
    glass: Sequence[float] | None = None,
) -> tuple[np.ndarray, str]:
    """RGBA (uint8) of a single-color icon, given by its `alpha` (uint8), in the colors of `paint`; and the color of most of
    its body, "" where there is no such color.

    The largest closed area that encloses none is the screen; the others are the body's. Where lines are not closed, the boxes
    `case` and `glass` (x, y, right, bottom in shares) say where body and screen lie.
    """
    ink = np.pad(alpha > 127, PAD)
    inside = ink & np.roll(ink, 1, 0) & np.roll(ink, -1, 0) & np.roll(ink, 1, 1) & np.roll(ink, -1, 1)
    width = 2 * ink.sum() / max(1, (ink & ~inside).sum())  # of a line: twice its area over the length of its border
    if width < stroke * SIDE:
        ink = grown(ink, round((stroke * SIDE - width) / 2))
    closed = ink | boxed(ink.shape, case) if case else ink
    outside = next(p for p in areas(~closed) if p[0, 0])
    solid = ~outside
    holes = [p for p in areas(~ink & solid) if glass is None]
    counts = solid.sum(1)
    broad = np.flatnonzero(counts > 0.72 * counts.max())
    top, bottom = int(broad[0]), int(broad[-1])
    screens = [h for h in holes if not any(encloses(h, g) for g in holes if g is not h)]
    screen = max(screens, key=lambda h: int(h.sum())) if screens else np.zeros_like(ink)
    if glass:
        screen = boxed(ink.shape, glass) & ~ink

    body, pane, line = (shade(rng, name) for name in (paint.body, paint.screen, paint.line))
    canvas = np.zeros((*ink.shape, 3))
    canvas[solid] = body
    canvas[ink] = line if paint.outlined else body
    limbs = ink.copy()
    limbs[top : bottom + 1] = False
    canvas[limbs] = line
    if paint.ringed and screen.sum() > 0.45 * counts.max() * (bottom - top):
        canvas[screen] = body
        screen = ~grown(~screen, round(RIM * SIDE))
        canvas[grown(screen, round(0.02 * SIDE))] = line
    canvas[screen] = pane
    block = solid.copy()
    block[:top], block[bottom + 1 :] = False, False
    shares = {
        name: ((np.abs(canvas - c).sum(2) < 1) & block & ~screen).sum() for name, c in ((paint.body, body), (paint.line, line))
    }
    named = [name for name, share in shares.items() if share > 0.6 * (block & ~screen).sum()]
    if paint.shine and screen.any():
        rows, columns = np.nonzero(screen)
        ys, xs = np.mgrid[: ink.shape[0], : ink.shape[1]]
        across = (xs - columns.min()) / (np.ptp(columns) + 1) + 0.45 * (ys - rows.min()) / (np.ptp(rows) + 1)
        canvas[screen & (across > 0.45) & (across < 0.68)] = pane + (255 - pane) * 0.4
    picture = np.dstack([canvas, 255.0 * solid]).round().astype(np.uint8)
    rows, columns = (np.flatnonzero(solid.any(axis=a)) for a in (1, 0))
    cut = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).convert("RGBa")
    scale = 256 / max(cut.size)
    small = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BOX).convert("RGBA")
    return np.asarray(small), named[0] if named else ""
