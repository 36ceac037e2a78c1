"""Things that the embedded base has no word for, as SVG: parts, proportions and ways of drawing chosen by chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Way = Literal["solid", "outlined", "line"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ink:
    """How a drawing is painted: its colors as hexadecimal, and the way."""

    body: str
    dark: str
    light: str
    ground: str
    way: Way
    width: float  # of outlines, hundredths of the side

    def of(self, part: Literal["body", "dark", "light"] = "body") -> str:
        """Attributes of a closed part. A line drawing is not filled with the part's color but outlined with the body's."""
        if self.way == "line":
            return f'fill="{self.ground}" stroke="{self.body}" stroke-width="{self.width + 2:.1f}" stroke-linejoin="round"'
        edge = f'stroke="{self.dark}" stroke-width="{self.width:.1f}" stroke-linejoin="round"' if self.way == "outlined" else ""
        return f'fill="{getattr(self, part)}" {edge}'

    def bar(self, points: str, width: float, part: Literal["body", "dark", "light"] = "body", cap: str = "round") -> str:
        """A thick open line; outlined where the drawing is."""
        ends = f'fill="none" stroke-linecap="{cap}" stroke-linejoin="round"'
        if self.way == "line":
            return f'<path d="{points}" {ends} stroke="{self.body}" stroke-width="{min(width, self.width + 2):.1f}"/>'
        inner = f'<path d="{points}" {ends} stroke="{getattr(self, part)}" stroke-width="{width:.1f}"/>'
        if self.way == "solid":
            return inner
        return f'<path d="{points}" {ends} stroke="{self.dark}" stroke-width="{width + 2 * self.width:.1f}"/>' + inner


def track(*steps: str | float) -> str:
    """The letters and numbers of an SVG path, in hundredths of the side."""
    return " ".join(step if isinstance(step, str) else f"{step:.1f}" for step in steps) + " "


def closed(points: str, attributes: str) -> str:
    """An SVG path."""
    return f'<path d="{points}" {attributes}/>'


def stroke(points: str, color: str, width: float) -> str:
    """An open SVG line with round ends."""
    ends = 'fill="none" stroke-linecap="round" stroke-linejoin="round"'
    return f'<path d="{points}" {ends} stroke="{color}" stroke-width="{width:.1f}"/>'


def rect(x: float, y: float, width: float, height: float, corner: float, attributes: str) -> str:
    """An SVG rectangle with round corners."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{corner:.1f}" {attributes}/>'


def ellipse(x: float, y: float, rx: float, ry: float, attributes: str) -> str:
    """An SVG ellipse."""
    return f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" {attributes}/>'


def polygon(points: Sequence[tuple[float, float]], attributes: str) -> str:
    """An SVG polygon."""
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {attributes}/>'


def headphones(rng: np.random.Generator, ink: Ink) -> str:
    """A band over two cups; cushions, a second band, a microphone and a cable by chance."""
    half, top, cups = rng.uniform(26, 36), rng.uniform(8, 22), rng.uniform(58, 70)
    thick = rng.uniform(5, 12)
    rx, ry = rng.uniform(8, 13), rng.uniform(14, 22)
    rise = cups - top
    curve = track("M", 50 - half, cups, "C", 50 - half * 1.05, cups - rise * 1.3)
    curve += track(50 + half * 1.05, cups - rise * 1.3, 50 + half, cups)
    parts = []
    if rng.random() < 0.25:
        parts.append(ink.bar(track("M", 50 - half, cups + 10, "q", 2, 26, 24, 27), 3, "dark"))  # the cable
    parts.append(ink.bar(curve, thick, "body" if rng.random() < 0.7 else "dark"))
    cushion, shape = rng.random() < 0.7, rng.choice(["round", "square", "half"])
    for sign in (-1, 1):
        x = 50 + sign * half
        if cushion:
            parts.append(rect(x - sign * rx * 0.9 - 4.5, cups - ry * 0.85, 9, ry * 1.7, 4, ink.of("dark")))
        if shape == "round":
            parts.append(ellipse(x, cups, rx, ry, ink.of()))
        elif shape == "square":
            parts.append(rect(x - rx, cups - ry, 2 * rx, 2 * ry, rx * rng.uniform(0.3, 0.9), ink.of()))
        else:
            bow = track("M", x - sign * rx * 0.5, cups - ry, "q", sign * rx * 2.4, ry, 0, 2 * ry, "Z")
            parts.append(closed(bow, ink.of()))
    if rng.random() < 0.3:
        parts.append(
            ink.bar(track("M", 50 - half, cups + ry * 0.6, "q", 4, rng.uniform(12, 18), 26, rng.uniform(10, 16)), 3.5, "dark")
        )
    return "".join(parts)


def chair(rng: np.random.Generator, ink: Ink) -> str:
    """A back, a seat and legs, seen a little from the side; slats and arms by chance."""
    wide, seat, floor = rng.uniform(40, 58), rng.uniform(50, 62), rng.uniform(88, 93)
    left, right = 50 - wide / 2, 50 + wide / 2
    top, deep = rng.uniform(8, 20), rng.uniform(7, 12)
    leg, splay = rng.uniform(5, 8), rng.uniform(0, 7)
    inset = rng.uniform(0, 5)
    parts = []
    for x, sign in ((left + 5 + inset, -1), (right - 5 - inset, 1)):
        parts.append(ink.bar(track("M", x - sign * 5, seat, "L", x - sign * 6, floor - 7), leg * 0.8, "dark", "butt"))
    back = rng.choice(["full", "slats", "rungs", "round"], p=[0.35, 0.25, 0.2, 0.2])
    corner = rng.uniform(2, 12)
    if back == "full":
        gap = rng.choice([0.0, 10.0])
        parts.append(rect(left + inset, top, wide - 2 * inset, seat - top - gap, corner, ink.of()))
        if gap:
            for x in (left + inset + 8, right - inset - 8):
                parts.append(ink.bar(track("M", x, seat - gap, "V", seat), 5, "dark", "butt"))
    elif back == "round":
        parts.append(ellipse(50, (top + seat) / 2 - 2, wide / 2 - inset, (seat - top) / 2, ink.of()))
    else:
        for x in (left + inset + 3, right - inset - 3):
            parts.append(ink.bar(track("M", x, top, "V", seat), 6, "body"))
        if back == "slats":
            for x in np.linspace(left + inset + 3, right - inset - 3, int(rng.integers(4, 6)))[1:-1]:
                parts.append(ink.bar(track("M", x, top + 4, "V", seat), 4, "body"))
            parts.append(ink.bar(track("M", left + inset + 3, top + 2, "H", right - inset - 3), 7, "body"))
        else:
            for y in np.linspace(top + 4, seat - 10, int(rng.integers(2, 4))):
                parts.append(ink.bar(track("M", left + inset + 3, y, "H", right - inset - 3), 6, "body"))
    for x, sign in ((left + 4, -1), (right - 4, 1)):
        parts.append(ink.bar(track("M", x, seat + 4, "L", x + sign * splay, floor), leg, "body", "butt"))
    if rng.random() < 0.3:
        for x, sign in ((left, -1), (right, 1)):
            parts.append(ink.bar(track("M", x + sign * 2, seat + 3, "V", seat - 17, "H", x - sign * 8), 5, "dark"))
    part = ink.of("light" if rng.random() < 0.4 else "body")
    parts.append(rect(left - 2, seat - deep * 0.3, wide + 4, deep, min(corner, deep / 2), part))
    return "".join(parts)


def teapot(rng: np.random.Generator, ink: Ink) -> str:
    """A belly with spout, handle, lid and knob; a band, dots and a foot by chance."""
    rx, ry = rng.uniform(24, 29), rng.uniform(19, 27)
    y = rng.uniform(57, 64)
    thick = rng.uniform(5, 8)
    parts = []
    up = rng.random() < 0.25
    if up:  # a handle over the top
        low, high, x = y - ry * 0.5, y - ry - 34, rx * 0.8
        parts.append(ink.bar(track("M", 50 - x, low, "C", 50 - rx, high, 50 + rx, high, 50 + x, low), thick * 0.8, "dark"))
    else:
        reach, low = rng.uniform(17, 24), y + ry * rng.uniform(0.2, 0.6)
        x, far = 50 + rx, 50 + rx + reach
        handle = track("M", x - rx * 0.2, y - ry * 0.6, "C", far, y - ry * 0.9, far, low, x - rx * 0.3, low)
        parts.append(ink.bar(handle, thick, "dark" if rng.random() < 0.4 else "body"))
    tip = y - ry * rng.uniform(0.6, 1.05)
    lean, wide = rng.uniform(16, 20), rng.uniform(8, 12)
    x = 50 - rx * 0.75
    spout = track("M", x, y + wide, "C", x - lean * 0.9, y + wide * 0.6, x - lean * 0.6, tip + 8, x - lean, tip)
    spout += track("l", rng.uniform(5, 8), -3, "C", x - 3, tip + 8, x - 4, y - wide * 0.8, x + 6, y - wide, "Z")
    parts.append(closed(spout, ink.of()))
    if rng.random() < 0.5:
        parts.append(rect(50 - rx * 0.6, y + ry - 4, rx * 1.2, 8, 2, ink.of("dark")))
    shape = rng.choice(["round", "square", "cone"], p=[0.55, 0.2, 0.25])
    if shape == "round":
        parts.append(ellipse(50, y, rx, ry, ink.of()))
    elif shape == "square":
        parts.append(rect(50 - rx, y - ry, 2 * rx, 2 * ry, rng.uniform(7, 13), ink.of()))
    else:
        top = ((50 - rx * 0.6, y - ry), (50 + rx * 0.6, y - ry))
        parts.append(polygon([*top, (50 + rx, y + ry), (50 - rx, y + ry)], ink.of()))
    lid = rx * rng.uniform(0.5, 0.7)
    cover = track("M", 50 - lid, y - ry + 2.5, "Q", 50, y - ry - rng.uniform(10, 17), 50 + lid, y - ry + 2.5, "Z")
    parts.append(closed(cover, ink.of("light" if rng.random() < 0.5 else "dark")))
    parts.append(ellipse(50, y - ry - rng.uniform(7, 9), 4.5, rng.uniform(3.5, 5), ink.of("dark")))
    mark = rng.random()
    if mark < 0.25:
        parts.append(rect(50 - rx * 0.93, y - 3, rx * 1.86, rng.uniform(5, 9), 1, f'fill="{ink.light}"'))
    elif mark < 0.45:
        parts += [ellipse(50 + k * 13, y + 1, 4, 4, f'fill="{ink.light}"') for k in (-1, 0, 1)]
    return "".join(parts)


def lamp(rng: np.random.Generator, ink: Ink) -> str:
    """A table lamp: shade, stem and foot."""
    top, low = rng.uniform(8, 16), rng.uniform(42, 54)
    narrow, wide = rng.uniform(8, 20), rng.uniform(26, 38)
    foot = rng.uniform(14, 26)
    parts = [ink.bar(track("M", 50, low, "V", 88), rng.uniform(4, 8), "dark", "butt")]
    stem = rng.choice(["bare", "ball", "vase"], p=[0.45, 0.25, 0.3])
    if stem == "ball":
        parts.append(ellipse(50, rng.uniform(66, 74), 10, 10, ink.of("dark")))
    elif stem == "vase":
        vase = track("M", 44, low, "C", 26, low + 14, 30, 82, 42, 88, "H", 58, "C", 70, 82, 74, low + 14, 56, low, "Z")
        parts.append(closed(vase, ink.of("dark")))
    parts.append(rect(50 - foot, 86, 2 * foot, rng.uniform(5, 8), 3, ink.of("dark")))
    if rng.random() < 0.35:
        parts.append(ink.bar(track("M", 50 + wide * 0.55, low, "v", rng.uniform(9, 16)), 2.5, "dark"))
    if rng.random() < 0.3:
        dome = track("M", 50 - wide, low, "C", 50 - wide, top - 6, 50 + wide, top - 6, 50 + wide, low, "Z")
        parts.append(closed(dome, ink.of()))
    else:
        parts.append(polygon([(50 - narrow, top), (50 + narrow, top), (50 + wide, low), (50 - wide, low)], ink.of()))
    if rng.random() < 0.4:
        parts.append(rect(50 - wide * 0.97, low - 8, wide * 1.94, 5, 1, f'fill="{ink.light}"'))
    return "".join(parts)


def ladder(rng: np.random.Generator, ink: Ink) -> str:
    """Two rails and rungs, upright, leaning or standing on two pairs of legs."""
    low, high = rng.uniform(13, 24), rng.uniform(9, 20)
    thick, rungs = rng.uniform(4.5, 8), int(rng.integers(3, 7))
    slant = rng.uniform(-14, 14)
    parts = []
    if rng.random() < 0.3:
        for sign in (-1, 1):
            parts.append(ink.bar(track("M", 50 + sign * high, 12, "L", 50 + sign * (low + 13), 88), thick * 0.7, "dark"))
    for t in np.linspace(0.12, 0.88, rungs):
        x, half = 50 + slant * (0.5 - t), high + (low - high) * t
        rung, width = track("M", x - half, 8 + 84 * t, "H", x + half), thick * rng.uniform(0.75, 0.95)
        parts.append(ink.bar(rung, width, "body" if rng.random() < 0.8 else "light"))
    for sign in (-1, 1):
        parts.append(ink.bar(track("M", 50 + slant / 2 + sign * high, 8, "L", 50 - slant / 2 + sign * low, 92), thick, "body"))
    return "".join(parts)


def wristwatch(rng: np.random.Generator, ink: Ink) -> str:
    """A strap, a case with a crown, a face with hands."""
    half, size = rng.uniform(9, 15), rng.uniform(20, 27)
    parts = []
    for sign in (-1, 1):
        end = half * rng.uniform(0.75, 1)
        y = 50 + sign * 44
        parts.append(polygon([(50 - half, 50), (50 + half, 50), (50 + end, y), (50 - end, y)], ink.of()))
    if rng.random() < 0.6:
        parts.append(rect(50 + size - 2, 46, 7, 8, 2, ink.of("dark")))
    face = f'fill="{ink.ground if ink.way == "line" else "#f8f8f4"}" stroke="{ink.dark}" stroke-width="2"'
    if rng.random() < 0.6:
        parts += [ellipse(50, 50, size, size, ink.of("dark")), ellipse(50, 50, size * 0.78, size * 0.78, face)]
    else:
        tall = size * rng.uniform(0.9, 1.15)
        parts.append(rect(50 - size, 50 - tall, 2 * size, 2 * tall, 6, ink.of("dark")))
        parts.append(rect(50 - size * 0.76, 50 - tall * 0.76, size * 1.52, tall * 1.52, 4, face))
    for length, thick in ((size * 0.42, 4.0), (size * 0.62, 3.0)):
        turn = rng.uniform(0, 2 * np.pi)
        hand = track("M", 50, 50, "L", 50 + length * np.cos(turn), 50 + length * np.sin(turn))
        parts.append(stroke(hand, "#26262c", thick))
    return "".join(parts)


def backpack(rng: np.random.Generator, ink: Ink) -> str:
    """A bag with a flap or zip, a front pocket, a handle and straps."""
    half, top, low = rng.uniform(23, 30), rng.uniform(17, 25), rng.uniform(86, 91)
    parts = [ink.bar(track("M", 40, top + 4, "C", 40, top - 14, 60, top - 14, 60, top + 4), rng.uniform(4, 6), "dark")]
    if rng.random() < 0.65:
        for sign in (-1, 1):
            near, far = 50 + sign * half, 50 + sign * (half + 14)
            strap = track("M", near - sign * half * 0.2, top + 12, "C", far + sign * 2, top + 18)
            strap += track(far - sign * 2, low - 14, near - sign * half * 0.1, low - 8)
            parts.append(ink.bar(strap, rng.uniform(5, 8), "dark"))
    round_top = rng.uniform(14, half)
    left, right, shoulder = 50 - half, 50 + half, top + round_top
    bag = track("M", left, low - 6, "V", shoulder, "Q", left, top, left + round_top, top, "H", right - round_top)
    bag += track("Q", right, top, right, shoulder, "V", low - 6, "Q", right, low, right - 6, low)
    bag += track("H", left + 6, "Q", left, low, left, low - 6, "Z")
    parts.append(closed(bag, ink.of()))
    pocket = rng.uniform(0.55, 0.8) * half
    high = rng.uniform(54, 62)
    corner, part = rng.uniform(3, 8), ink.of("light" if rng.random() < 0.6 else "dark")
    parts.append(rect(50 - pocket, high, 2 * pocket, low - high - 6, corner, part))
    if rng.random() < 0.5:
        parts.append(stroke(track("M", 50 - half * 0.7, top + 18, "H", 50 + half * 0.7), ink.dark, 3.5))
    else:
        parts.append(ink.bar(track("M", 50, high - 6, "v", 12), 6, "dark"))
    return "".join(parts)


def bicycle(rng: np.random.Generator, ink: Ink) -> str:
    """Two wheels, a frame, a saddle and a handlebar, to the left or to the right."""
    r, y, apart = rng.uniform(13, 21), rng.uniform(60, 74), rng.uniform(23, 29)
    tire, tube = rng.uniform(3.5, 5.5), rng.uniform(4.5, 6.5)
    left, right = 50 - apart, 50 + apart
    dark = ink.body if ink.way == "line" else ink.dark
    parts = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="none" stroke="{dark}" stroke-width="{tire:.1f}"/>'
        for x in (left, right)
    ]
    saddle, bar = y - rng.uniform(26, 36), y - rng.uniform(30, 44)
    pedal, seat_x, head = 50 + rng.uniform(-3, 1), 40 + rng.uniform(-2, 2), right - rng.uniform(8, 11)
    frame = track("M", left, y, "L", pedal, y, "L", seat_x, saddle + 5, "Z", "M", pedal, y, "L", head, bar + 12)
    if rng.random() < 0.7:
        frame += track("M", seat_x + 1, saddle + 10, "L", head, bar + 10)
    frame += track("M", right, y, "L", head - 2, bar)
    parts.append(stroke(frame, ink.body, tube))
    grip = "l-8 -3" if rng.random() < 0.5 else "l8 -4 q5 4 1 9"
    for points in (track("M", head - 2, bar, grip), track("M", seat_x - 8, saddle, "h", 14)):
        parts.append(stroke(points, dark, 5))
    if rng.random() < 0.25:
        parts.append(rect(head + 1, bar - 1, 15, 12, 2, ink.of("light")))
    turned = "" if rng.random() < 0.5 else "translate(100 0) scale(-1 1)"
    return f'<g transform="{turned}">{"".join(parts)}</g>'


def bucket(rng: np.random.Generator, ink: Ink) -> str:
    """A bucket with a rim and a handle, up or down."""
    wide, narrow, top, low = rng.uniform(27, 36), rng.uniform(17, 25), rng.uniform(38, 46), rng.uniform(84, 91)
    parts = []
    thick = rng.uniform(3, 5)
    if rng.random() < 0.65:
        rise = rng.uniform(34, 46)
        handle = track("M", 50 - wide, top, "C", 50 - wide, top - rise, 50 + wide, top - rise, 50 + wide, top)
        parts.append(ink.bar(handle, thick, "dark"))
    parts.append(polygon([(50 - wide, top), (50 + wide, top), (50 + narrow, low), (50 - narrow, low)], ink.of()))
    if rng.random() < 0.4:
        y = top + (low - top) * rng.uniform(0.35, 0.6)
        parts.append(rect(50 - (wide + narrow) / 2 * 0.95, y, (wide + narrow) * 0.95, 6, 1, f'fill="{ink.light}"'))
    if rng.random() < 0.55:
        parts.append(ellipse(50, top, wide, rng.uniform(5, 9), ink.of("dark")))
    else:
        parts.append(rect(50 - wide - 3, top - 4, 2 * wide + 6, 9, 3, ink.of("light" if rng.random() < 0.4 else "body")))
    if len(parts) < 3 or rng.random() < 0.15:
        parts.append(ink.bar(track("M", 50 - wide, top + 2, "Q", 50, top + 34, 50 + wide, top + 2), thick, "dark"))
    return "".join(parts)


def bottle(rng: np.random.Generator, ink: Ink) -> str:
    """A bottle with a cap; a label by chance."""
    half, neck = rng.uniform(13, 21), rng.uniform(5, 8)
    shoulder, top = rng.uniform(36, 52), rng.uniform(16, 22)
    bow = rng.uniform(0.2, 0.9) * (shoulder - top - 6)
    body = track(
        "M", 50 - neck, top, "V", shoulder - bow, "C", 50 - neck, shoulder - 4, 50 - half, shoulder - 6, 50 - half, shoulder + 4
    )
    body += track(
        "V", 86, "Q", 50 - half, 92, 50 - half + 6, 92, "H", 50 + half - 6, "Q", 50 + half, 92, 50 + half, 86, "V", shoulder + 4
    )
    body += track("C", 50 + half, shoulder - 6, 50 + neck, shoulder - 4, 50 + neck, shoulder - bow, "V", top, "Z")
    parts = [closed(body, ink.of()), rect(50 - neck - 2, 7, 2 * neck + 4, top - 6, 2, ink.of("dark"))]
    if rng.random() < 0.7:
        high = rng.uniform(shoulder + 8, 64)
        parts.append(rect(50 - half + 1.5, high, 2 * half - 3, rng.uniform(12, 22), 1, f'fill="{ink.light}"'))
    return "".join(parts)


THINGS: dict[str, Callable[[np.random.Generator, Ink], str]] = {
    "headphones": headphones, "chair": chair, "teapot": teapot, "lamp": lamp, "ladder": ladder, "wristwatch": wristwatch,
    "backpack": backpack, "bicycle": bicycle, "bucket": bucket, "bottle": bottle,
}  # fmt: skip
