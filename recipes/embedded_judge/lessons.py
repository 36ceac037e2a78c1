"""The lessons of one step: pictures, right and wrong captions, names. The same for the same step."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.embedded_base import icons as base_icons
from recipes.embedded_base import scenes, televisions

from . import painting, render, selection, wording

SIDE = 64
SHARES = {"plain": 0.4, "facts": 0.35, "scene": 0.15, "wide": 0.1}  # of a batch
ALONE = 0.05  # weight of a name that only one hand drew
BASE_WEIGHT = 4.0  # how much oftener the base's own things come
TELEVISION_WEIGHT = 80.0  # of each of the names of a television, few of whose drawings are the judge's
FACES = frozenset(
    ["cat", "dog", "pig", "cow", "tiger", "monkey", "rabbit", "horse", "mouse", "bear", "lion", "fox", "panda", "unicorn"]
)
EMOJI = frozenset(base_icons.SETS) | {"noto-v1", "fluent-emoji", "fluent-emoji-high-contrast", "streamline-emojis"}
THING_OF = {icon: thing for thing, icon in base_icons.THINGS.items()}


def is_of_the_base(name: str) -> bool:
    """Whether drawings of that name show what the embedded base draws, or what its example teaches it: televisions."""
    return name in base_icons.THINGS or name.replace(" ", "-") in THING_OF or name in televisions.NAMES


def spoken(rng: np.random.Generator, name: str) -> str:
    """A name in other words: a synonym, or what the embedded base calls the thing."""
    if name.replace(" ", "-") in THING_OF and rng.random() < 0.5:
        return THING_OF[name.replace(" ", "-")]
    return wording.other_words(rng, name)


@dataclass(slots=True)
class Batch:
    """What one step learns from."""

    pixels: Tensor  # uint8 (n, 3, side, side)
    captions: list[str]  # right ones
    wrong: list[tuple[int, str]]  # picture, a caption that is false of it
    extra: list[str]  # names of other things
    names: list[str]  # the one thing of a picture, "" where it shows several
    allowed: Tensor  # bool (n, n + wrong + extra): texts that count as false for a picture


class Art:
    """All drawings, sorted by name and hand."""

    def __init__(self, folder: Path, part: str = "train") -> None:
        rows, self.masks, self.colors = render.load(folder)
        barred = set(selection.LISTS["televisions"]["near_copies"])
        self.rows = [r for r in rows if r.icon.part == part and f"{r.icon.set}:{r.icon.icon}" not in barred]
        by_name: dict[str, dict[str, list[render.Drawn]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            by_name[row.icon.name][row.icon.family].append(row)
        self.by_name = {name: {f: hands[f] for f in sorted(hands)} for name, hands in sorted(by_name.items())}
        self.names = list(self.by_name)
        self.hands = {name: len(hands) for name, hands in self.by_name.items()}
        weights = np.array([self._weight(name) for name in self.names])
        self.sums = np.cumsum(weights / weights.sum())
        self.drawable = [n for n in self.names if self.hands[n] > 1]
        # The embedded base's own scenes: (thing, set) -> drawing.
        self.base: dict[tuple[str, str], render.Drawn] = {}
        for row in self.rows:
            for spelled in (row.icon.icon, row.icon.icon.replace("-", "")):
                if row.icon.set in base_icons.SETS and spelled in _SPELLED:
                    self.base.setdefault((_SPELLED[spelled], row.icon.set), row)
        self.base_pairs = sorted(self.base)

    def _weight(self, name: str) -> float:
        hands = self.hands[name]
        weight = ALONE if hands == 1 else min(hands, 12) ** 0.5
        if is_of_the_base(name):
            weight *= BASE_WEIGHT
        return TELEVISION_WEIGHT if name in televisions.NAMES else weight

    def draw_name(self, rng: np.random.Generator) -> str:
        """A name, one that many hands drew oftener."""
        return self.names[min(int(np.searchsorted(self.sums, rng.random())), len(self.names) - 1)]

    def draw(self, rng: np.random.Generator, name: str) -> render.Drawn:
        """A drawing of that name, every hand as often."""
        hands = list(self.by_name[name].values())
        rows = hands[rng.integers(len(hands))]
        return rows[rng.integers(len(rows))]


_SPELLED = {s: thing for thing, icon in base_icons.THINGS.items() for s in (icon, icon.replace("-", ""))}


def classes_of(art: Art, least: int = 2, least_words: int = 3) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of names (drawn by `least` hands) and of single words (by `least_words`), which the picture tower sorts by."""
    names = {n: k for k, n in enumerate(sorted(n for n, h in art.hands.items() if h >= least))}
    hands: dict[str, set[str]] = defaultdict(set)
    for name, by in art.by_name.items():
        for word in name.split():
            hands[word].update(by)
    words = sorted(w for w, h in hands.items() if len(h) >= least_words and len(w) > 2)
    return names, {w: len(names) + k for k, w in enumerate(words)}


def targets(names: list[str], classes: tuple[dict[str, int], dict[str, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Soft targets as (row, class, weight): half on the name, half on its words; nothing for a picture of several things."""
    rows, columns, weights = [], [], []
    for row, name in enumerate(names):
        own = [classes[0][name]] if name in classes[0] else []
        parts = [classes[1][w] for w in name.split() if w in classes[1]]
        whole = 0.6 if own and parts else 1.0
        for column in own:
            rows.append(row), columns.append(column), weights.append(whole)
        for column in parts:
            rows.append(row), columns.append(column), weights.append((1 - whole if own else 1.0) / len(parts))
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(weights)


def near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two colors are too alike to see one on the other."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 < 90


def jittered(rng: np.random.Generator, color: tuple[int, int, int], by: float = 10.0) -> painting.Color:
    """A color near the one named."""
    return tuple(np.clip(np.array(color) + rng.uniform(-by, by, 3), 0, 255).tolist())


def _paint_kind(rng: np.random.Generator, ground: painting.Color) -> tuple[painting.Color, painting.Color | None, str]:
    """Body, inside and the color word that is true of a drawing of one color on a ground of that color."""
    names = list(wording.COLORS)
    while True:
        word = names[rng.integers(len(names))] if rng.random() < 0.4 else wording.PLAIN_COLORS[rng.integers(12)]
        color = jittered(rng, wording.COLORS[word])
        if not near(color, ground):
            break
    form = rng.random()
    if form < 0.5:
        return color, None, word
    dark = jittered(rng, (30, 30, 34), 20.0) if rng.random() < 0.6 else tuple(0.45 * c for c in color)
    if form < 0.8 and not near(dark, color):
        return dark, color, word
    other = jittered(rng, wording.COLORS[names[rng.integers(len(names))]])
    return color, None if near(other, color) else other, "" if not near(other, color) else word


def one_thing(
    rng: np.random.Generator, picture: int, row: render.Drawn, plain: bool
) -> tuple[painting.Put, painting.Ground, wording.Facts]:
    """A picture of one thing and what is true of it."""
    ground_kind = "" if plain or rng.random() > 0.2 else str(rng.choice(list(wording.GROUNDS)))
    names = list(wording.COLORS)
    if ground_kind:
        low = jittered(rng, wording.GROUNDS[ground_kind][0])
        high = jittered(rng, wording.COLORS[str(rng.choice(["white", "light blue", "cream", "light gray", "beige"]))])
        ground, background, behind = painting.Ground(first=high, second=low, horizon=float(rng.uniform(0.5, 0.72))), (), high
    else:
        background = tuple(rng.choice(names, size=2 if rng.random() < 0.2 else 1, replace=False).tolist())
        ends = [jittered(rng, wording.COLORS[b]) for b in background]
        behind = tuple(((np.array(ends[0]) + np.array(ends[-1])) / 2).tolist())
        ground = painting.Ground(first=ends[0], second=ends[-1], across=bool(rng.integers(2)))
    place = ""
    if not plain and not ground_kind and rng.random() < 0.35:
        placed = scenes._single(rng, ("", ""), 1.0)
        center, size, place = placed.centre, placed.size, scenes.position_of(placed)
    else:
        size = float(rng.uniform(0.5, 0.97))
        room = min(0.06, 0.5 - size / 2)
        center = tuple((0.5 + rng.uniform(-room, room, 2)).tolist())
    body, inside, word = _paint_kind(rng, behind) if not row.colored else ((0.0, 0.0, 0.0), None, "")
    style = ""
    if not row.colored and inside is None:
        style = {"outline": "outline", "line": "outline", "linear": "outline", "fill": "silhouette", "filled": "silhouette",
                 "solid": "silhouette"}.get(row.icon.style, "")  # fmt: skip
    put = painting.Put(picture=picture, layer=0, colored=row.colored, index=row.index, center=center, size=size, body=body,
                       turn=float(rng.normal(0, 4)), stretch=float(np.exp(rng.normal(0, 0.06))), inside=inside)  # fmt: skip
    said = called(rng, row)
    facts = wording.Facts(name=said, color=word, background=background, ground=ground_kind, place=place, style=style)
    return put, ground, facts


def called(rng: np.random.Generator, row: render.Drawn) -> str:
    """What a drawing is called: its name, the base's word for it, or a synonym."""
    name = row.icon.name
    if row.icon.set in EMOJI and row.icon.icon in THING_OF and rng.random() < 0.7:
        return THING_OF[row.icon.icon]
    words = name.split()
    if len(words) == 2 and words[1] == "face" and words[0] in FACES and rng.random() < 0.6:
        return words[0]
    return wording.other_words(rng, name)


def batch_of(step: int, size: int, art: Art, extra: int = 144, seed: int = 41, side: int = SIDE) -> Batch:
    """The lessons of one step. `extra` names of other things serve as further false texts."""
    rng = np.random.default_rng([seed, step])
    puts: list[painting.Put] = []
    grounds: list[painting.Ground] = []
    captions: list[str] = []
    names: list[str] = []
    said: list[str] = []
    wrong: list[tuple[int, str]] = []
    wrong_names: list[str] = []
    counts = {kind: int(size * share) for kind, share in SHARES.items()}
    counts["plain"] += size - sum(counts.values())
    group = int(rng.integers(2**32))
    for kind, count in counts.items():
        for k in range(count):
            if k % 16 == 0:
                group = int(rng.integers(2**32))
            number = len(captions)
            if kind in ("plain", "facts"):
                name = art.draw_name(rng)
                row = art.draw(rng, name)
                put, ground, facts = one_thing(rng, number, row, kind == "plain")
                puts.append(put), grounds.append(ground)
                if kind == "plain":
                    caption = facts.name if rng.random() < 0.5 else wording.describe(group, wording.Facts(name=facts.name))
                    false = None
                else:
                    own = group if k % 32 < 16 else int(rng.integers(2**32))
                    caption = wording.describe(own, facts)
                    for other in wording.alterations(rng, facts, near_name(rng, art, facts.name)):
                        if (false := wording.describe(own, other)) != caption:
                            wrong.append((number, false))
                            wrong_names.append("" if other.name == facts.name else other.name)
                names.append(name), said.append(facts.name)
            else:
                pairs, drawn = art.base_pairs, art.base
                styles = base_icons.STYLE_WORDS
                if kind == "wide" or not pairs:
                    chosen = {art.draw_name(rng) for _ in range(12)}
                    drawn = {(n, n): art.draw(rng, n) for n in sorted(chosen)}
                    pairs, styles = [(n, "") for n, _ in drawn], {}
                distinct = len({name for name, _ in pairs})  # a scene of more things than there are would never be found
                scene = scenes.draw_any(rng, pairs, (0.25, 0.6, 0.15)[:distinct])
                own = int(rng.integers(2**32))
                caption = scenes.describe(np.random.default_rng(own), scene, styles)
                false = scenes.false_caption(rng, scene, pairs, styles, own)
                ends = [jittered(rng, scenes.COLOURS[c]) for c in scene.background]
                grounds.append(painting.Ground(first=ends[0], second=ends[-1], across=scene.direction == 1))
                for layer, placed in enumerate(scene.objects):
                    row = drawn.get((placed.thing, placed.style)) or drawn.get((placed.thing, placed.thing))
                    if row is None:  # another thing in a style that lacks it
                        row = art.base[next(p for p in pairs if p[0] == placed.thing)]
                    behind = tuple(((np.array(ends[0]) + np.array(ends[-1])) / 2).tolist())
                    body, inside, _ = _paint_kind(rng, behind)
                    puts.append(
                        painting.Put(picture=number, layer=layer, colored=row.colored, index=row.index, center=placed.centre,
                                     size=placed.size, body=body, inside=inside, turn=float(rng.normal(0, 3)))
                    )  # fmt: skip
                if false:
                    wrong.append((number, false)), wrong_names.append("")
                names.append(scene.objects[0].thing if len(scene.objects) == 1 else "")
                said.append(" ".join(o.thing for o in scene.objects))
            captions.append(caption)
    others = [art.draw_name(rng) for _ in range(extra)]
    extras = [wording.other_words(rng, name) for name in others]
    pixels = painting.disturb(rng, painting.paint(puts, grounds, art.masks, art.colors))
    allowed = allowed_texts(said, [*said, *[w or said[p] for (p, _), w in zip(wrong, wrong_names, strict=True)], *others])
    for column, (picture, _) in enumerate(wrong):
        allowed[picture, size + column] = True
    allowed[torch.arange(size), torch.arange(size)] = True
    if side != SIDE:
        pixels = torch.nn.functional.interpolate(pixels, size=(side, side), mode="area")
    return Batch(pixels.round().to(torch.uint8), captions, wrong, extras, names, allowed)


def near_name(rng: np.random.Generator, art: Art, name: str) -> str:
    """Another name."""
    while True:
        other = art.drawable[rng.integers(len(art.drawable))]
        if not (wording.canon(other) <= wording.canon(name) or wording.canon(name) <= wording.canon(other)):
            return other


def allowed_texts(pictures: list[str], texts: list[str]) -> Tensor:
    """Bool (pictures, texts): whether a text may count as false: not where one name's words are all among the other's."""
    sides = [[wording.canon(n) for n in pictures], [wording.canon(n) for n in texts]]
    number = {w: k for k, w in enumerate(sorted({w for side in sides for words in side for w in words}))}
    hot = [torch.zeros(len(side), len(number)) for side in sides]
    for side, table in zip(sides, hot, strict=True):
        for row, words in enumerate(side):
            table[row, [number[w] for w in words]] = 1
    shared = hot[0] @ hot[1].T
    return (shared < hot[0].sum(1)[:, None]) & (shared < hot[1].sum(1)[None])


def corpus(art: Art, captions: int = 30_000) -> list[str]:
    """What the tokenizer learns from: every name, oftener where more hands drew it, and captions of all kinds."""
    lines = []
    for name in art.names:
        lines += [name] * min(6, art.hands[name])
    lines += [w for words in wording.SYNONYMS.values() for w in words for _ in range(5)]
    rng = np.random.default_rng(43)
    for _ in range(captions):
        row = art.draw(rng, art.draw_name(rng))
        _, _, facts = one_thing(rng, 0, row, False)
        lines.append(wording.describe(int(rng.integers(2**32)), facts))
        if art.base_pairs:
            scene = scenes.draw_any(rng, art.base_pairs)
            lines.append(scenes.describe(rng, scene, base_icons.STYLE_WORDS))
    return lines


def counts(art: Art) -> dict[str, int]:
    """How much there is, for the log."""
    sets = Counter(r.icon.set for r in art.rows)
    return {"drawings": len(art.rows), "sets": len(sets), "names": len(art.names), "names of two hands": len(art.drawable)}
