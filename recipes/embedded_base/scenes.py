"""Scenes: one to three icons on a background, and a caption that says so. Everything follows from (seed, index)."""

import hashlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

COLOURS = {
    "red": (214, 48, 49), "orange": (240, 140, 40), "yellow": (250, 215, 70), "green": (70, 165, 85),
    "blue": (60, 110, 210), "purple": (135, 75, 180), "pink": (245, 160, 195), "white": (248, 248, 248),
    "black": (24, 24, 28), "gray": (140, 142, 146), "brown": (130, 85, 55), "teal": (40, 160, 165),
}  # fmt: skip
BARE = ("cherries", "grapes", "scissors", "glasses", "fries", "corn", "cheese")  # take no article
SIDE = 64
SHARES = (0.62, 0.30, 0.08)  # of scenes with one, two and three objects, before the held-out ones are left out
ROOM = 0.02  # share of the side that stays free at the border
APART = 12  # one pair of things in twelve is never shown together
ONE_STYLE = 0.7  # of scenes with several objects are by one hand
SPOTS = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]  # where one object may be said to stand
TRIPLES = {  # places of three objects, and their sizes
    "row": (((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)), (0.27, 0.32)),
    "pyramid": (((0.5, 0.27), (0.27, 0.73), (0.73, 0.73)), (0.36, 0.43)),
}


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
    layout: str = "single"  # or "across", "down" (two objects), "row", "pyramid" (three)


def article(noun: str) -> str:
    """'an apple', 'a cat', 'big grapes'."""
    if noun.split()[-1] in BARE:
        return noun
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


@cache
def _lot(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:4], "big")


def apart(thing: str) -> str:
    """The background colour on which training never shows `thing`."""
    return list(COLOURS)[_lot(thing) % len(COLOURS)]


def held_out(scene: Scene) -> bool:
    """Whether the scene shows a thing on the colour kept apart from it, or two things that are never shown together."""
    things = sorted({o.thing for o in scene.objects})
    pairs = [(a, b) for k, a in enumerate(things) for b in things[k + 1 :]]
    return any(apart(t) in scene.background for t in things) or any(_lot(*pair) % APART == 0 for pair in pairs)


def draw_scene(
    rng: np.random.Generator, things: list[tuple[str, str]], shares: tuple[float, ...] = SHARES, placed: float = 0.35
) -> Scene:
    """A random scene to learn from (see `draw_any`), none that is held out."""
    while held_out(scene := draw_any(rng, things, shares, placed)):
        pass
    return scene


def draw_any(
    rng: np.random.Generator, things: list[tuple[str, str]], shares: tuple[float, ...] = SHARES, placed: float = 0.35
) -> Scene:
    """A random scene of (thing, set) pairs.

    `shares` of the scenes hold one, two and three objects; `placed` of the single objects stand away from the middle.
    """
    names = list(COLOURS)
    background = tuple(rng.choice(names, size=2 if rng.random() < 0.25 else 1, replace=False).tolist())
    count = int(np.searchsorted(np.cumsum(shares), rng.random() * sum(shares), side="right")) + 1
    if count == 1:
        layout, objects = "single", (_single(rng, things[rng.integers(len(things))], placed),)
    else:
        layout = ("across" if rng.random() < 0.6 else "down") if count == 2 else str(rng.choice(list(TRIPLES)))
        objects = _several(rng, _company(rng, things, count), layout)
    return Scene(objects=objects, background=background, direction=int(rng.integers(2)), layout=layout)


def _single(rng: np.random.Generator, thing: tuple[str, str], placed: float) -> Placed:
    if rng.random() < placed:
        size = rng.uniform(0.4, 0.62)
        room = 0.5 - size / 2 - ROOM
        spots = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)]
        spot = spots[rng.integers(len(spots))]
        centre = tuple(0.5 + s * room * rng.uniform(0.85, 1.0) for s in spot)
    else:
        size = rng.uniform(0.6, 0.95)
        room = min(0.04, max(0.0, 0.5 - size / 2 - ROOM))
        centre = tuple((0.5 + rng.uniform(-room, room, 2)).tolist())
    return Placed(thing=thing[0], style=thing[1], centre=centre, size=size)


def _company(rng: np.random.Generator, things: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """`count` different things, most of them in one style."""
    chosen = [things[rng.integers(len(things))]]
    one_style = rng.random() < ONE_STYLE
    while len(chosen) < count:
        thing = things[rng.integers(len(things))]
        if one_style and (thing[0], chosen[0][1]) in things:
            thing = (thing[0], chosen[0][1])
        if thing[0] not in {t for t, _ in chosen}:
            chosen.append(thing)
    return chosen


def _several(rng: np.random.Generator, things: list[tuple[str, str]], layout: str) -> tuple[Placed, ...]:
    """Objects in reading order: left before right, top before bottom."""
    if layout in TRIPLES:
        spots, sizes = TRIPLES[layout]
    else:
        near, far = (0.26, 0.5), (0.74, 0.5)
        spots, sizes = ((near, far) if layout == "across" else (near[::-1], far[::-1])), (0.37, 0.47)
    return tuple(
        Placed(thing=t, style=s, centre=(x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)), size=rng.uniform(*sizes))
        for (t, s), (x, y) in zip(things, spots, strict=True)
    )


def describe(rng: np.random.Generator, scene: Scene, style_words: dict[str, str]) -> str:
    """A caption in varied wording; it says only what is true of the scene."""
    first = scene.objects[0]
    one_style = len({o.style for o in scene.objects}) == 1
    word = style_words.get(first.style, "") if one_style and rng.random() < 0.6 else ""
    what = _one(rng, first) if scene.layout == "single" else _many(rng, scene)
    form = rng.random()
    if word and form < 0.6:
        what = f"a {word} {'drawing' if form < 0.3 else 'icon'} of {what}"
    elif word:
        what = f"{what}, {word} style" if form < 0.8 else f"{what} in {word} style"
    elif form < 0.25:
        what = f"{'a picture' if form < 0.12 else 'a drawing'} of {what}"
    return what + background_words(rng, scene)


def _one(rng: np.random.Generator, placed: Placed) -> str:
    size = "small " if placed.size < 0.5 else "big " if placed.size > 0.82 else ""
    noun = article((size if rng.random() < 0.4 else "") + placed.thing)
    where = position_of(placed)
    return f"{noun} {where}" if where and rng.random() < 0.8 else noun


def _many(rng: np.random.Generator, scene: Scene) -> str:
    nouns = [article(o.thing) for o in scene.objects]
    form = rng.random()
    if scene.layout == "row":
        return f"{nouns[0]}, {nouns[1]} and {nouns[2]}" + (" in a row" if form < 0.6 else "")
    if scene.layout == "pyramid":
        return f"{nouns[0]} above {nouns[1]} and {nouns[2]}" if form < 0.6 else f"{nouns[0]}, {nouns[1]} and {nouns[2]}"
    before, after = ("to the left of", "to the right of") if scene.layout == "across" else ("above", "below")
    if form < 0.4:
        return f"{nouns[0]} {before} {nouns[1]}"
    if form < 0.65:
        return f"{nouns[1]} {after} {nouns[0]}"
    if form < 0.8 and scene.layout == "across":
        return f"{nouns[0]} on the left and {nouns[1]} on the right"
    if form < 0.8:
        return f"{nouns[0]} at the top and {nouns[1]} at the bottom"
    pair = nouns if rng.random() < 0.5 else nouns[::-1]
    return f"{pair[0]} and {pair[1]}" if form < 0.9 or scene.layout == "down" else f"{pair[0]} next to {pair[1]}"


def altered(rng: np.random.Generator, scene: Scene, things: list[tuple[str, str]], kind: str | None = None) -> Scene:
    """The scene with one fact changed: a "thing", the "style", a background "colour", or the "place" of the objects."""
    kind = kind or str(rng.choice(["thing", "style", "colour", "place"], p=[0.25, 0.35, 0.1, 0.3]))
    objects = scene.objects
    if kind == "thing":
        k = int(rng.integers(len(objects)))
        others = [t for t, s in things if s == objects[k].style and t not in {o.thing for o in objects}]
        changed = replace(objects[k], thing=others[rng.integers(len(others))]) if others else objects[k]
        return replace(scene, objects=(*objects[:k], changed, *objects[k + 1 :]))
    if kind == "style":
        style = things[rng.integers(len(things))][1]
        return replace(scene, objects=tuple(replace(o, style=style) for o in objects))
    if kind == "colour":
        colour = str(rng.choice([c for c in COLOURS if c not in scene.background]))
        return replace(scene, background=(colour, *scene.background[1:]))
    if scene.layout == "single":
        return replace(scene, objects=(replace(objects[0], centre=SPOTS[rng.integers(len(SPOTS))]),))
    return exchanged(scene)


def exchanged(scene: Scene) -> Scene:
    """The scene with its first two things in each other's places."""
    first, second, *rest = scene.objects
    return replace(scene, objects=(replace(first, thing=second.thing), replace(second, thing=first.thing), *rest))


def false_caption(
    rng: np.random.Generator, scene: Scene, things: list[tuple[str, str]], style_words: dict[str, str], wording: int
) -> str | None:
    """What `describe` would say in the same wording of the scene with one fact changed; None where that is still true.

    `wording` seeds the wording of both captions.
    """
    true, other = (describe(np.random.default_rng(wording), s, style_words) for s in (scene, altered(rng, scene, things)))
    # The same words in another order are false only where the order says who stands where.
    ordered = any(word in true for word in (" left", " right", " above ", " below ", " top ", "gradient"))
    same_words = sorted(true.replace(",", "").split()) == sorted(other.replace(",", "").split())
    return None if true == other or (same_words and not ordered) else other


def position_of(placed: Placed) -> str:
    """'on the left', 'in the bottom right corner', or '' near the middle."""
    x, y = placed.centre
    across = "left" if x < 0.42 else "right" if x > 0.58 else ""
    down = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
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
