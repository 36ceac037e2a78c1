"""Batches of pictures painted at once from masks and colored icons, and disturbed as a small generator's pictures are soft."""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, interpolate, pad

Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """A drawing put on a picture."""

    picture: int  # number in the batch
    layer: int  # 0 is painted first
    colored: bool
    index: int  # row of the masks or of the colored drawings
    center: tuple[float, float] = (0.5, 0.5)  # share of the side, from the top left
    size: float = 0.8  # longer side of the drawing, share of the picture's side
    turn: float = 0.0  # degrees
    stretch: float = 1.0  # width to height
    body: Color = (0.0, 0.0, 0.0)  # 0..255, of drawings of one color
    inside: Color | None = None  # what fills an outline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A background: from one color to another, or two zones that meet at `horizon`."""

    first: Color
    second: Color
    across: bool = False
    horizon: float | None = None  # share of the side, from the top


def backgrounds(grounds: list[Ground], side: int) -> Tensor:
    """Float (n, 3, side, side) in 0..255."""
    first = torch.tensor([g.first for g in grounds])[:, :, None, None]
    second = torch.tensor([g.second for g in grounds])[:, :, None, None]
    ramp = torch.linspace(0, 1, side)
    ramps = torch.stack(
        [
            (
                (ramp > g.horizon).float()[:, None] if g.horizon is not None else ramp[None] if g.across else ramp[:, None]
            ).expand(side, side)
            for g in grounds
        ]
    )[:, None]
    return first * (1 - ramps) + second * ramps


def paint(puts: list[Put], grounds: list[Ground], masks: np.ndarray, colors: np.ndarray, side: int = 64) -> Tensor:
    """Float (n, 3, side, side) in 0..255."""
    canvas = backgrounds(grounds, side)
    if not puts:
        return canvas
    sprites = torch.empty(len(puts), 4, masks.shape[-1], masks.shape[-1])  # premultiplied color, alpha
    flat, own = [k for k, p in enumerate(puts) if not p.colored], [k for k, p in enumerate(puts) if p.colored]
    if flat:
        both = torch.from_numpy(np.stack([masks[puts[k].index] for k in flat])).float() / 255
        line, whole = both[:, :1], both[:, 1:]
        body = torch.tensor([puts[k].body for k in flat])[:, :, None, None]
        inside = torch.tensor([puts[k].inside or (0.0, 0.0, 0.0) for k in flat])[:, :, None, None]
        has = torch.tensor([float(puts[k].inside is not None) for k in flat])[:, None, None, None]
        alpha = line + (1 - line) * whole * has
        sprites[flat] = torch.cat([body * line + inside * (alpha - line), alpha], 1)
    if own:
        told = torch.from_numpy(np.stack([colors[puts[k].index] for k in own])).float()
        alpha = told[:, 3:] / 255
        sprites[own] = torch.cat([told[:, :3] * alpha, alpha], 1)
    moved = torch.empty(len(puts), 4, side, side)
    for small in (True, False):
        chosen = [k for k, p in enumerate(puts) if (p.size * side < 0.55 * masks.shape[-1]) is small]
        if chosen:
            source = avg_pool2d(sprites[chosen], 2) if small else sprites[chosen]
            matrices = torch.tensor([_matrix(puts[k]) for k in chosen])
            grid = affine_grid(matrices, [len(chosen), 4, side, side], align_corners=False)
            moved[chosen] = grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    for layer in range(max(p.layer for p in puts) + 1):
        chosen = [k for k, p in enumerate(puts) if p.layer == layer]
        where = [puts[k].picture for k in chosen]
        canvas[where] = canvas[where] * (1 - moved[chosen, 3:]) + moved[chosen, :3]
    return canvas


def _matrix(put: Put) -> list[list[float]]:
    """From places of the picture to places of the drawing, both in -1..1."""
    turn, x, y = radians(put.turn), 2 * put.center[0] - 1, 2 * put.center[1] - 1
    wide, high = put.size * min(1.0, put.stretch), put.size * min(1.0, 1 / put.stretch)
    a, b, c, d = cos(turn) / wide, sin(turn) / wide, -sin(turn) / high, cos(turn) / high
    return [[a, b, -(a * x + b * y)], [c, d, -(c * x + d * y)]]


def disturb(rng: np.random.Generator, pictures: Tensor) -> Tensor:
    """Softness, coarseness, noise and wrong contrast, each in some of the pictures; float 0..255 in and out."""
    count, _, side, _ = pictures.shape
    sigma = torch.from_numpy(np.where(rng.random(count) < 0.5, rng.uniform(0.3, 1.4, count), 0.05)).float()
    reach = torch.arange(-3, 4).float()
    taps = torch.exp(-0.5 * (reach[None] / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = pad(pictures.reshape(1, count * 3, side, side), (3, 3, 3, 3), mode="replicate")
    flat = conv2d(conv2d(flat, taps[:, None, :, None], groups=count * 3), taps[:, None, None, :], groups=count * 3)
    soft = flat.view(count, 3, side, side)
    coarse = np.flatnonzero(rng.random(count) < 0.12)
    if len(coarse):
        less = interpolate(soft[coarse], scale_factor=float(rng.uniform(0.45, 0.7)), mode="area", recompute_scale_factor=True)
        soft[coarse] = interpolate(less, size=(side, side), mode="bilinear", align_corners=False)
    noise = torch.from_numpy(np.where(rng.random(count) < 0.4, rng.uniform(0, 13, count), 0)).float()[:, None, None, None]
    contrast = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 1, 1, 1))).float()
    light = torch.from_numpy(rng.uniform(-10, 10, (count, 1, 1, 1))).float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    soft = (soft - 128) * contrast + 128 + light + noise * torch.randn(soft.shape, generator=generator)
    # Blotches of a few pixels, as a small generator leaves them.
    blotches = torch.randn((count, 3, side // 8, side // 8), generator=generator)
    strength = torch.from_numpy(np.where(rng.random(count) < 0.3, rng.uniform(0, 9, count), 0)).float()[:, None, None, None]
    return (soft + strength * interpolate(blotches, size=(side, side), mode="bilinear", align_corners=False)).clamp(0, 255)
