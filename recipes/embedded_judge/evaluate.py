"""What the judge knows of sets and kinds that were kept back: right caption among 64, nearest picture among 64 kinds."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import lessons, painting, render, selection, wording

AMONG = 64
TWIN = 0.985  # cosine of coarse masks from which two drawings of one name count as near copies
SPELLED = lessons._SPELLED


def coarse(row: render.Drawn, masks: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """A unit vector of what a drawing covers, in 16 x 16 cells."""
    alpha = colors[row.index, 3] if row.colored else masks[row.index, 0]
    cells = alpha.reshape(16, render.SIDE // 16, 16, render.SIDE // 16).mean(axis=(1, 3)).astype(np.float32).ravel()
    return np.asarray(cells / max(1e-6, float(np.linalg.norm(cells))))


def in_full(facts: wording.Facts) -> str:
    """A caption that says everything."""
    noun = wording.article(f"{facts.color} {facts.name}" if facts.color else facts.name)
    return f"a drawing of {noun} on {wording.article(facts.background[0])} background"


def _apart(one: wording.Facts, other: wording.Facts) -> bool:
    a, b = wording.canon(one.name), wording.canon(other.name)
    return not (a <= b or b <= a)


class Trial:
    """Drawings that training never saw, near copies of training drawings left out."""

    def __init__(self, folder: Path, art: lessons.Art, draws: int = 5) -> None:
        rows, self.masks, self.colors = render.load(folder)
        self.draws, self.side = draws, render.SIDE
        kinds = list(selection.LISTS["held_out"]["kinds"])
        by_name: dict[str, list[render.Drawn]] = defaultdict(list)
        self.copies = 0
        for row in rows:
            if row.icon.part != "held-out set" or row.icon.name not in art.by_name:
                continue
            own = coarse(row, self.masks, self.colors)
            trained = [r for hand in art.by_name[row.icon.name].values() for r in hand]
            if any(float(own @ coarse(r, self.masks, self.colors)) > TWIN for r in trained):
                self.copies += 1
                continue
            by_name[row.icon.name].append(row)
        self.by_name = {n: by_name[n] for n in sorted(by_name)}
        self.hands = {n: art.hands[n] for n in self.by_name}
        self.things: dict[str, dict[str, list[render.Drawn]]] = defaultdict(lambda: defaultdict(list))  # hand -> thing
        for row in rows:
            thing = SPELLED.get(row.icon.icon) or SPELLED.get(row.icon.name.replace(" ", "-"))
            if row.icon.part == "held-out set" and thing:
                self.things[row.icon.family][thing].append(row)
        self.kinds: dict[str, dict[str, list[render.Drawn]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.icon.part == "held-out kind" and row.icon.name in kinds:
                self.kinds[row.icon.name][row.icon.family].append(row)
        self.kinds = {k: by for k, by in sorted(self.kinds.items()) if len(by) > 1}

    def pictures(self, rng: np.random.Generator, rows: list[render.Drawn]) -> Tensor:
        """Painted as in training on plain backgrounds, softened a little; (n, 3, 64, 64) in -1..1."""
        placed = [lessons.one_thing(rng, k, row, True) for k, row in enumerate(rows)]
        painted = painting.paint([p for p, _, _ in placed], [g for _, g, _ in placed], self.masks, self.colors)
        if self.side != render.SIDE:
            painted = torch.nn.functional.interpolate(painted, size=(self.side, self.side), mode="area")
        return (painted / 127.5 - 1).clamp(-1, 1)

    def names(self, least: int = 1) -> list[str]:
        """Names known from at least `least` hands that sets never seen draw, too."""
        return [n for n in self.by_name if self.hands[n] >= least]

    def captions(
        self, rng: np.random.Generator, score: Callable[[Tensor, list[str]], Tensor], by_name: dict[str, list[render.Drawn]],
        names: list[str], apart: bool = False, among: list[str] | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """(right, asked): one picture of each name against its own caption and 63 of other names, of those `among` if given.

        No false caption is true in other words (one name's words all among the other's, synonyms counted as one word); with
        `apart` it shares no word at all.
        """
        rows = [by_name[n][rng.integers(len(by_name[n]))] for n in names]
        said = [*names, *(n for n in among or () if n not in by_name)]
        texts = [f"a drawing of {wording.article(n)}" for n in said]
        scores = torch.cat([score(self.pictures(rng, rows[k : k + 128]), texts) for k in range(0, len(rows), 128)]).numpy()
        canon = [wording.canon(n) for n in said]
        right = 0
        for k in range(len(names)):
            others: list[int] = []
            for other in rng.permutation(len(said)).tolist():
                a, b = canon[k], canon[other]
                if not (a & b if apart else (a <= b or b <= a)):
                    others.append(other)
                if len(others) == AMONG - 1:
                    break
            right += bool(scores[k, k] > scores[k, others].max())
        return right, len(names)

    def nearest(
        self, rng: np.random.Generator, embed: Callable[[Tensor], Tensor], per_kind: int | None = None
    ) -> tuple[float, int]:
        """(right, asked): whether the picture nearest to one of each of 64 kinds shows the same kind.

        The nearest is looked for among pictures of all 64 kinds by other hands than the one that drew the picture asked for:
        one drawing of every hand, or `per_kind` of a kind. Every hand of a kind is asked for once and they share its vote.
        """
        chosen = rng.permutation(list(self.kinds))[:AMONG].tolist()
        rows, kinds, hands = [], [], []
        for number, kind in enumerate(chosen):
            drawn = list(self.kinds[kind].items())
            order = rng.permutation(len(drawn))[: None if per_kind is None else per_kind + 1]
            for hand, drawings in (drawn[k] for k in order):
                rows.append(drawings[rng.integers(len(drawings))])
                kinds.append(number), hands.append(hand)
        vectors = torch.cat([embed(self.pictures(rng, rows[k : k + 256])) for k in range(0, len(rows), 256)])
        near = vectors @ vectors.T
        kind_of, numbers = torch.tensor(kinds), {hand: k for k, hand in enumerate(sorted(set(hands)))}
        hand_of = torch.tensor([numbers[h] for h in hands])
        near[hand_of[:, None] == hand_of[None]] = -2
        right = (kind_of[near.argmax(1)] == kind_of).float()
        return float(sum(right[kind_of == k].mean() for k in range(len(chosen)))), len(chosen)

    def one_word(
        self, rng: np.random.Generator, score: Callable[[Tensor, list[str]], Tensor], names: list[str], what: str
    ) -> tuple[int, int]:
        """(right, asked): the whole caption against the same with its thing, color or background made wrong; chance is half."""
        right = asked = 0
        for start in range(0, len(names), 64):
            rows = [self.by_name[n][rng.integers(len(self.by_name[n]))] for n in names[start : start + 64]]
            placed = [lessons.one_thing(rng, k, row, True) for k, row in enumerate(rows)]
            painted = painting.paint([p for p, _, _ in placed], [g for _, g, _ in placed], self.masks, self.colors)
            texts: list[str] = []
            kept = []
            for k, (_, _, told) in enumerate(placed):
                if len(told.background) != 1 or (what == "color" and not told.color):
                    continue
                facts = replace(told, name=rows[k].icon.name)
                other = facts
                while other == facts or (wording.canon(other.name) != wording.canon(facts.name) and not _apart(other, facts)):
                    if what == "thing":
                        other = replace(facts, name=str(rng.choice(names)))
                    elif what == "color":
                        other = replace(facts, color=str(rng.choice(wording.PLAIN_COLORS)))
                    else:
                        other = replace(facts, background=(str(rng.choice(wording.PLAIN_COLORS)),))
                    same_color = other.color in facts.color or facts.color in other.color
                    same_ground = any(a in b or b in a for a in other.background for b in facts.background)
                    if (what == "color" and same_color) or (what == "background" and same_ground):
                        other = facts
                kept.append(k)
                texts += [in_full(facts), in_full(other)]
            if not kept:
                continue
            scores = score((painted[kept] / 127.5 - 1).clamp(-1, 1), texts)
            own = torch.arange(len(kept))
            right += int((scores[own, 2 * own] > scores[own, 2 * own + 1]).sum())
            asked += len(kept)
        return right, asked
