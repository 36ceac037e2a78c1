"""Scenes: one or two icons on a background, and a caption that says so. Everything follows from (seed, index)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS = {
    "red": (214, 48, 49), "orange": (240, 140, 40), "yellow": (250, 215, 70), "green": (70, 165, 85),
    "blue": (60, 110, 210), "purple": (135, 75, 180), "pink": (245, 160, 195), "white": (248, 248, 248),
    "black": (24, 24, 28), "gray": (140, 142, 146), "brown": (130, 85, 55), "teal": (40, 160, 165),
}  # fmt: skip
PLURALS = ("cherries", "grapes")
SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    thing: str
    style: str
    centre: tuple[float, float]  # share of the side, from the top left
    size: float  # longer side of the object, share of the picture's side


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    objects: tuple[Placed, ...]
    background: tuple[str, ...]  # one colour name, or two of a gradient
    direction: int  # of the gradient: 0 top to bottom, 1 left to right


def article(noun: str) -> str:
    """'an apple', 'a cat', 'big grapes'."""
    if noun.split()[-1] in PLURALS:
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def draw_scene(rng: np.random.Generator, things: list[tuple[str, str]], pair_share: float = 0.05) -> Scene:
    """A random scene of (thing, set) pairs; `pair_share` of the scenes hold two objects."""
    names = list(COLOURS)
    background = tuple(rng.choice(names, size=2 if rng.random() < 0.25 else 1, replace=False).tolist())
    if rng.random() < pair_share:
        first, second = (things[i] for i in rng.choice(len(things), 2, replace=False))
        if rng.random() < 0.7:  # most pairs share a style, as a picture by one hand would
            second = (second[0], first[1]) if (second[0], first[1]) in things else second
        offset, wobble = rng.uniform(0.24, 0.27), rng.uniform(-0.06, 0.06, 4)
        across = rng.random() < 0.6
        spots = ((0.5 - offset, 0.5), (0.5 + offset, 0.5)) if across else ((0.5, 0.5 - offset), (0.5, 0.5 + offset))
        objects = tuple(
            Placed(
                thing=t,
                style=s,
                centre=(x + wobble[2 * k] * 0.4, y + wobble[2 * k + 1] * 0.4),
                size=rng.uniform(0.36, 0.45),
            )
            for k, ((t, s), (x, y)) in enumerate(zip((first, second), spots, strict=True))
        )
    else:
        thing, style = things[rng.integers(len(things))]
        size = rng.uniform(0.6, 0.92)
        room = max(0.0, 0.5 - size / 2 - 0.02)
        centre = tuple((0.5 + rng.uniform(-room, room, 2) * (1 if rng.random() < 0.25 else 0.15)).tolist())
        objects = (Placed(thing=thing, style=style, centre=centre, size=size),)
    return Scene(objects=objects, background=background, direction=int(rng.integers(2)))


def describe(rng: np.random.Generator, scene: Scene, style_words: dict[str, str]) -> str:
    """A caption in varied wording; it says only what is true of the scene."""
    first = scene.objects[0]
    nouns = [o.thing for o in scene.objects]
    one_style = len({o.style for o in scene.objects}) == 1
    word = style_words.get(first.style, "") if one_style and rng.random() < 0.6 else ""
    if len(nouns) == 1:
        size = "small " if first.size < 0.66 else "big " if first.size > 0.86 else ""
        size = size if rng.random() < 0.4 else ""
        what = article(size + nouns[0])
        where = position_of(first) if rng.random() < 0.5 else ""
        what += f" {where}" if where else ""
    else:
        dx = scene.objects[1].centre[0] - first.centre[0]
        relation = "to the left of" if dx > 0.3 else "above"
        joint = relation if rng.random() < 0.6 else "and"
        what = f"{article(nouns[0])} {joint} {article(nouns[1])}"
    form = rng.random()
    if word and form < 0.7:
        what = f"a {word} {'drawing' if form < 0.35 else 'icon'} of {what}"
    elif word:
        what = f"{what}, {word} style"
    elif form < 0.25:
        what = f"{'a picture' if form < 0.12 else 'a drawing'} of {what}"
    return what + background_words(rng, scene)


def position_of(placed: Placed) -> str:
    """'on the left', 'in the bottom right corner', or '' near the middle."""
    x, y = placed.centre
    across = "left" if x < 0.40 else "right" if x > 0.60 else ""
    down = "top" if y < 0.40 else "bottom" if y > 0.60 else ""
    if across and down:
        return f"in the {down} {across} corner"
    return f"on the {across}" if across else f"at the {down}" if down else ""


def background_words(rng: np.random.Generator, scene: Scene) -> str:
    if rng.random() < 0.1:
        return ""
    if len(scene.background) == 2:
        a, b = scene.background
        return f" on a gradient from {a} to {b}" if rng.random() < 0.5 else f" on {article(a)} to {b} gradient"
    colour = scene.background[0]
    return f" on {article(colour)} background" if rng.random() < 0.7 else f" on {colour}"


def background_pixels(rng: np.random.Generator, scene: Scene, side: int, jitter: float = 10.0) -> np.ndarray:
    """uint8 array (side, side, 3)."""
    colours = [np.array(COLOURS[c]) + rng.uniform(-jitter, jitter, 3) for c in scene.background]
    ramp = np.linspace(0, 1, side)[:, None]
    line = colours[0] * (1 - ramp) + colours[-1] * ramp
    plane = np.broadcast_to(line[:, None] if scene.direction == 0 else line[None, :], (side, side, 3))
    return np.clip(plane, 0, 255).astype(np.uint8)


def paint_scene(
    rng: np.random.Generator, scene: Scene, icons: dict[tuple[str, str], np.ndarray], side: int = SIDE
) -> np.ndarray:
    """uint8 array (side, side, 3) of the scene: drawn at twice the size, then scaled down."""
    drawn = 2 * side
    canvas = Image.fromarray(background_pixels(rng, scene, drawn))
    for placed in scene.objects:
        icon = Image.fromarray(icons[placed.thing, placed.style])
        scale = placed.size * drawn / max(icon.size)
        icon = icon.resize((max(1, round(icon.width * scale)), max(1, round(icon.height * scale))), Image.Resampling.BOX)
        corner = (round(placed.centre[0] * drawn - icon.width / 2), round(placed.centre[1] * drawn - icon.height / 2))
        canvas.paste(icon, corner, icon)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))
