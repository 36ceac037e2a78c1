"""Single drawings as features: a pool on disk that the first half of the training draws from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, max_pool2d

from dovetail.evaluation import gradients

from . import lessons

SIDE = gradients.SIDE
LEAST_HANDS = 3  # a name drawn by fewer is no class of its own
PART = 4096  # pictures of a file of the pool
COLORED = 0.4  # of the embedded base's own things, at least this share of the drawings is in color
# How far drawings are distorted, so that a hand never seen is no surprise: standard deviations in radians, of the logarithm of
# width to height, of the slant; the largest strength of bends, in half sides.
TURN, STRETCH, SLANT, BEND = 0.2, 0.15, 0.12, 0.16


def classes_of(art: lessons.Art) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of the names and of the words that single drawings are sorted by."""
    return lessons.classes_of(art, LEAST_HANDS, LEAST_HANDS)


def names_of(art: lessons.Art) -> list[str]:
    """The names that drawings of the pool have, by number."""
    return [name for name in art.names if art.hands[name] >= 2]


class Drawings:
    """All drawings at half the side, by name and hand; a batch of them painted in any colors on any ground."""

    def __init__(self, art: lessons.Art) -> None:
        self.masks, self.colors = _halved(art.masks), _halved(art.colors)
        names = names_of(art)
        weights = np.array([art._weight(name) for name in names]).clip(0, 12)
        self.sums = np.cumsum(weights / weights.sum())
        self.hands = [[[(r.colored, r.index) for r in rows] for rows in art.by_name[name].values()] for name in names]
        self.colored = [
            [kept for hand in hands if (kept := [row for row in hand if row[0]])] if lessons.is_of_the_base(name) else []
            for name, hands in zip(names, self.hands, strict=True)
        ]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, list[int]]:
        """Pictures in -1..1, (size, 3, SIDE, SIDE), and the number of each one's name."""
        chosen = np.searchsorted(self.sums, rng.random(size)).clip(max=len(self.hands) - 1).tolist()
        dice = rng.random((size, 3))
        rows = []
        for k, name in enumerate(chosen):
            hands = self.colored[name] if self.colored[name] and dice[k, 2] < COLORED else self.hands[name]
            hand = hands[int(dice[k, 0] * len(hands))]
            rows.append(hand[int(dice[k, 1] * len(hand))])
        return self._painted(rng, rows), chosen

    def _painted(self, rng: np.random.Generator, rows: list[tuple[bool, int]]) -> Tensor:
        size = len(rows)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        ground, body, inside = uniform(size, 3), uniform(size, 3), uniform(size, 3)
        hidden = (ground - body).square().sum(1) < 0.2
        body[hidden] = (1 - ground[hidden]).round() * 0.9 + 0.05 * body[hidden]
        second = torch.where(uniform(size, 1) < 0.2, inside.roll(1, 0), ground)
        ramp = torch.linspace(0, 1, SIDE)
        ramps = torch.where((uniform(size) < 0.5)[:, None, None], ramp[None, :, None], ramp[None, None])[:, None]
        canvas = ground[:, :, None, None] * (1 - ramps) + second[:, :, None, None] * ramps
        fill = (uniform(size) < 0.45).float()[:, None, None, None]
        sprites = torch.empty(size, 4, SIDE, SIDE)
        flat, own = [k for k, (c, _) in enumerate(rows) if not c], [k for k, (c, _) in enumerate(rows) if c]
        if flat:
            both = torch.from_numpy(self.masks[[rows[k][1] for k in flat]]).float() / 255
            line, whole = _bolder(uniform(len(flat), 1, 1, 1), both[:, :1]), both[:, 1:]
            alpha = line + (1 - line) * whole * fill[flat]
            colors = body[flat][:, :, None, None] * line + inside[flat][:, :, None, None] * (alpha - line)
            sprites[flat] = torch.cat([colors, alpha], 1)
        if own:
            told = torch.from_numpy(self.colors[[rows[k][1] for k in own]]).float() / 255
            tinted = _recolored(uniform(len(own), 5), told[:, :3])
            sprites[own] = torch.cat([tinted * told[:, 3:], told[:, 3:]], 1)
        moved = grid_sample(sprites, _places(generator, size), align_corners=False)
        canvas = canvas * (1 - moved[:, 3:]) + moved[:, :3]
        soft = avg_pool2d(canvas, 3, 1, 1, count_include_pad=False) * 0.6 + 0.4 * canvas
        canvas = torch.where(uniform(size, 1, 1, 1) < 0.3, soft, canvas)
        noise = 0.05 * uniform(size, 1, 1, 1) * torch.randn(canvas.shape, generator=generator)
        return (2 * (canvas + noise) - 1).clamp(-1, 1)


def _bolder(dice: Tensor, line: Tensor) -> Tensor:
    """Lines as they are drawn, thicker in a quarter of the drawings and fainter in another."""
    thick = max_pool2d(line, 3, 1, 1)
    drawn = torch.where(dice < 0.25, line + 4 * dice * (thick - line), line)
    return torch.where(dice > 0.75, line * (1.7 - 0.9 * dice), drawn)


def _recolored(dice: Tensor, colors: Tensor) -> Tensor:
    """Colors (n, 3, h, w) in 0..1 whose channels change places in an eighth of the drawings, and whose brightness varies."""
    orders = torch.tensor([[1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0]])
    order = torch.where(dice[:, :1] < 0.12, orders[(dice[:, 1] * len(orders)).long()], torch.arange(3))
    moved = colors.gather(1, order[:, :, None, None].expand_as(colors))
    return (moved * (0.75 + 0.4 * dice[:, 2:])[:, :, None, None]).clamp(0, 1)


def _places(generator: torch.Generator, size: int) -> Tensor:
    """Where each place of a picture lies in its drawing, (size, SIDE, SIDE, 2).

    Turned, scaled, stretched, slanted, shifted, and bent as one hand draws otherwise than another.
    """
    turn = torch.randn(size, generator=generator) * TURN
    scale = 0.55 + 0.45 * torch.rand(size, generator=generator)
    stretch = torch.exp(STRETCH * torch.randn(size, generator=generator))
    slant = SLANT * torch.randn(size, generator=generator)
    x, y = (1 - scale) * (2 * torch.rand((2, size), generator=generator) - 1) * 0.7
    cos, sin = turn.cos(), turn.sin()
    a, b, c, d = cos / (scale * stretch), sin / (scale * stretch), -sin * stretch / scale, cos * stretch / scale
    b, d = b + slant * a, d + slant * c
    matrices = torch.stack([a, b, -(a * x + b * y), c, d, -(c * x + d * y)], 1).view(size, 2, 3)
    straight = affine_grid(matrices, [size, 4, SIDE, SIDE], align_corners=False)
    bent = interpolate(torch.randn((size, 2, 4, 4), generator=generator), size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    strength = BEND * torch.rand((size, 1, 1, 1), generator=generator)
    return straight + strength * bent.permute(0, 2, 3, 1)


def _halved(pictures: np.ndarray) -> np.ndarray:
    """uint8 (n, channels, SIDE, SIDE) of twice the side; where pixels are clear their color does not count."""
    found = np.empty((*pictures.shape[:2], SIDE, SIDE), np.uint8)
    for start in range(0, len(pictures), 4096):
        part = torch.from_numpy(np.array(pictures[start : start + 4096])).float()
        if part.shape[1] == 4:
            alpha = part[:, 3:] / 255
            less = avg_pool2d(torch.cat([part[:, :3] * alpha, part[:, 3:]], 1), 2)
            less[:, :3] /= (less[:, 3:] / 255).clamp_min(1e-3)
        else:
            less = avg_pool2d(part, 2)
        found[start : start + len(part)] = less.clamp(0, 255).round().to(torch.uint8).numpy()
    return found


def as_bytes(features: Tensor) -> Tensor:
    """Features in 0..1 as uint8."""
    return (features * 255).round().clamp(0, 255).to(torch.uint8)


def fill(folder: Path, art: lessons.Art, parts: int, first: int = 0, step: int = 1) -> None:
    """Write `parts` files of features and names; those that are there are kept. Several processes may share the work."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(first, parts, step) if not (folder / f"{n:05d}.npz").exists()]
    drawings = Drawings(art) if missing else None
    for number in missing:
        assert drawings is not None
        pixels, names = drawings.batch(np.random.default_rng([61, number]), PART)
        features = torch.cat([as_bytes(gradients.features(part)) for part in pixels.split(512)])
        temporary = folder / f"{number:05d}.part.npz"
        np.savez(temporary, features=features.numpy(), names=np.array(names, np.int32))
        temporary.rename(folder / f"{number:05d}.npz")


class Pool:
    """The pool in memory."""

    def __init__(self, folder: Path, parts: int) -> None:
        loaded = [np.load(folder / f"{n:05d}.npz") for n in range(parts)]
        self.features = [x["features"] for x in loaded]
        self.names = [x["names"] for x in loaded]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, list[int]]:
        """Features (size, WIDTH) in 0..1 and numbers of names, from eight parts of the pool."""
        parts = rng.integers(len(self.names), size=8).tolist()
        places = rng.integers(len(self.names[0]), size=(8, size // 8))
        return self._taken(list(zip(parts, places, strict=True)))

    def mixed(self, rng: np.random.Generator, size: int, own: set[int]) -> tuple[Tensor, list[int]]:
        """The same; a quarter are of the names in `own`, which are so told from each other."""
        features, chosen = self.batch(rng, size - size // 4)
        more, names = self.batch_of(rng, size // 4, own)
        return torch.cat([features, more]), [*chosen, *names]

    def batch_of(self, rng: np.random.Generator, size: int, names: set[int]) -> tuple[Tensor, list[int]]:
        """The same of these names alone, each picture of them as likely; from eight parts of the pool."""
        wanted, found = np.array(sorted(names)), []
        for part in rng.integers(len(self.names), size=8).tolist():
            places = np.flatnonzero(np.isin(self.names[part], wanted))
            found.append((part, rng.choice(places, size // 8) if len(places) else places))
        return self._taken(found)

    def _taken(self, chosen: list[tuple[int, np.ndarray]]) -> tuple[Tensor, list[int]]:
        features = np.concatenate([self.features[part][places] for part, places in chosen])
        names = np.concatenate([self.names[part][places] for part, places in chosen])
        return torch.from_numpy(features).float() / 255, names.tolist()
