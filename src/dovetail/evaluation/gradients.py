"""What a small picture shows in gradients, coverage and colors: fixed features that a few layers learn from quickly.

Histograms of oriented gradients (Dalal & Triggs 2005) in cells of 4 pixels of a 32-pixel picture. A convolutional tower would
have to learn them first: on two CPU cores it told 3 % of names apart where these features told 66 % (docs/log.md).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

SIDE, CELL, BINS = 32, 4, 8
SHAPE = 2 * BINS * (SIDE // CELL) ** 2 + (SIDE // 2) ** 2  # numbers that tell the shape, in 0..1
COLOR = 3 * (SIDE // CELL) ** 2  # numbers that tell colors and where they are, in 0..1
WIDTH = SHAPE + COLOR


@torch.no_grad()
def features(pictures: Tensor) -> Tensor:
    """Float (n, WIDTH) in 0..1 of pictures (n, 3, h, w) in -1..1."""
    x = pictures.float()
    if x.shape[-1] != SIDE or x.shape[-2] != SIDE:
        x = interpolate(x, size=(SIDE, SIDE), mode="area")
    around = pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2], around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]
    strongest = (across.square() + down.square()).argmax(1, keepdim=True)
    across, down = across.gather(1, strongest)[:, 0], down.gather(1, strongest)[:, 0]
    size = (across.square() + down.square()).sqrt()
    angle = torch.atan2(down, across).remainder(math.pi) / math.pi * BINS
    low = angle.floor()
    share = angle - low
    low = low.long().remainder(BINS)
    maps = torch.zeros(len(x), BINS, SIDE, SIDE)
    maps.scatter_(1, low[:, None], ((1 - share) * size)[:, None])
    maps.scatter_add_(1, ((low + 1) % BINS)[:, None], (share * size)[:, None])
    cells = avg_pool2d(maps, CELL)
    energy = cells.square().sum(1, keepdim=True)
    local = (avg_pool2d(energy, 3, 1, 1) + 1e-3).sqrt()
    whole = (energy.mean((2, 3), keepdim=True) + 1e-3).sqrt()
    near, far = (cells / local).clamp(max=1).sqrt(), (cells / whole).clamp(max=4).div(4).sqrt()
    covered = avg_pool2d(standing_out(x), 2)
    colors = avg_pool2d(x, CELL) / 2 + 0.5
    return torch.cat([near.flatten(1), far.flatten(1), covered.flatten(1), colors.flatten(1)], 1)


def standing_out(x: Tensor) -> Tensor:
    """How far each pixel is from what the picture's border lets expect there, (n, 1, h, w) in 0..1 of the farthest.

    The border is carried inward as a Coons patch, so that a plain ground, a gradient and a horizon all vanish, and a thing of
    whatever color leaves its outline.
    """
    edge = avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    left, right, top, bottom = edge[..., :, :1], edge[..., :, -1:], edge[..., :1, :], edge[..., -1:, :]
    across = torch.linspace(0, 1, x.shape[-1])
    down = torch.linspace(0, 1, x.shape[-2])[:, None]
    sides = left * (1 - across) + right * across
    ends = top * (1 - down) + bottom * down
    corners = (top[..., :1] * (1 - across) + top[..., -1:] * across) * (1 - down)
    corners = corners + (bottom[..., :1] * (1 - across) + bottom[..., -1:] * across) * down
    far = (x - (sides + ends - corners)).square().sum(1, keepdim=True).sqrt()
    return far / far.amax((2, 3), keepdim=True).clamp_min(0.1)
