"""What a small picture shows in edges, coverage and colors: fixed features that a few layers learn from quickly.

The picture is first cut to the frame of what stands out from its ground, so that size and place of a thing do not matter. Edges
are sorted by direction as in histograms of oriented gradients (Dalal & Triggs 2005), with the cosine of twice the angle in the
place of bins. Framing alone doubles how often the nearest picture shows the same kind of thing (docs/log.md).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, pad, relu

SIDE, CELLS, DIRECTIONS = 32, 16, 8
LAYERS = DIRECTIONS + 1  # edges by direction, and what stands out
SHADES = 4  # of each color channel in a histogram of colors
EDGES = LAYERS * CELLS**2  # numbers that tell the shape of what the frame holds, in 0..1
TINTS = 3 * (CELLS // 2) ** 2  # numbers that tell colors and where they are, in 0..1; of the frame, then of the whole picture
COVERED = CELLS**2  # numbers that tell where something stands in the whole picture, in 0..1
COLORS = SHADES**3  # numbers that tell how much there is of each color, roots of shares; of what stands out, then of the ground
WIDTH = EDGES + TINTS + COVERED + TINTS + 2 * COLORS
MARGIN = 0.08  # of the frame, around what stands out
APPARENT = 0.25  # share of the farthest color from which a pixel counts as standing out


@torch.no_grad()
def features(pictures: Tensor) -> Tensor:
    """Float (n, WIDTH) in 0..1 of pictures (n, 3, h, w) in -1..1: edges, tints, coverage, tints, colors, as above."""
    x = pictures.float()
    small = x if x.shape[-2:] == (SIDE, SIDE) else interpolate(x, size=(SIDE, SIDE), mode="area")
    frame, apparent = framed(x), standing_out(small)
    ground = (1 - apparent / APPARENT).clamp(min=0)
    parts = [edges(frame), _tints(frame), avg_pool2d(apparent, SIDE // CELLS), _tints(small)]
    parts += [color_shares(frame, relu(standing_out(frame) - APPARENT)), color_shares(small, ground)]
    return torch.cat([part.flatten(1) for part in parts], 1)


def _tints(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2 * SIDE // CELLS) / 2 + 0.5


def color_shares(x: Tensor, weights: Tensor) -> Tensor:
    """Root of each color's share of the pixels of (n, 3, h, w) in -1..1, weighted by (n, 1, h, w): float (n, COLORS).

    A pixel between two shades counts for both, the nearer one more.
    """
    shades = torch.linspace(0, 1, SHADES)[:, None]
    red, green, blue = (relu(1 - (c.flatten(1)[:, None] / 2 + 0.5 - shades).abs() * (SHADES - 1)) for c in x.unbind(1))
    pairs = (red[:, :, None] * green[:, None]).flatten(1, 2)
    counts = (pairs @ (blue * weights.flatten(2)).transpose(1, 2)).flatten(1)
    return (counts / counts.sum(1, keepdim=True).clamp_min(1e-6)).sqrt()


def maps_of(features: Tensor) -> Tensor:
    """The edge maps (n, LAYERS, CELLS, CELLS) that stand first in features (n, WIDTH)."""
    return features[:, :EDGES].reshape(len(features), LAYERS, CELLS, CELLS)


def tints_of(features: Tensor) -> Tensor:
    """The tints of the frame, (n, TINTS), that stand second in features (n, WIDTH)."""
    return features[:, EDGES : EDGES + TINTS]


def mirrored(features: Tensor) -> Tensor:
    """Features (n, WIDTH) of the same pictures seen in a mirror, left and right exchanged."""
    maps, frame, covered, tints, colors = torch.split(features, [EDGES, TINTS, COVERED, TINTS, 2 * COLORS], 1)
    order = [(DIRECTIONS - k) % DIRECTIONS for k in range(DIRECTIONS)]
    flipped = maps.reshape(-1, LAYERS, CELLS, CELLS).flip(-1)[:, [*order, DIRECTIONS]]
    half = CELLS // 2
    sides = [frame.reshape(-1, 3, half, half), covered.reshape(-1, 1, CELLS, CELLS), tints.reshape(-1, 3, half, half)]
    return torch.cat([flipped.flatten(1), *(x.flip(-1).flatten(1) for x in sides), colors], 1)


def turned(x: Tensor, degrees: float) -> Tensor:
    """Pictures (n, 3, h, w) turned about their center; the border goes on beyond it."""
    if not degrees:
        return x
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrices = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(x), 2, 3)
    return grid_sample(x, affine_grid(matrices, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)


def framed(x: Tensor) -> Tensor:
    """The square around what stands out of pictures in -1..1, (n, 3, SIDE, SIDE); a picture's border goes on beyond it."""
    apparent = standing_out(x)[:, 0]
    apparent = torch.where(apparent > APPARENT, apparent, torch.zeros(()))
    (left, right), (top, bottom) = _extent(apparent.sum(1)), _extent(apparent.sum(2))
    half = (torch.maximum(right - left, bottom - top) / 2 * (1 + MARGIN)).clamp(0.15, 1.2)
    none = torch.zeros_like(half)
    matrices = torch.stack([half, none, (left + right) / 2, none, half, (top + bottom) / 2], 1).view(-1, 2, 3)
    fine = 2 * SIDE if x.shape[-1] > SIDE else SIDE  # twice as fine, then halved: a bilinear sample alone would skip pixels
    grid = affine_grid(matrices, [len(x), 3, fine, fine], align_corners=False)
    found = grid_sample(x, grid, padding_mode="border", align_corners=False)
    return avg_pool2d(found, 2) if fine > SIDE else found


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Where all but a hundredth at either end of each row's sum lies, in -1..1."""
    places = profile.shape[1]
    share = profile.cumsum(1) / profile.sum(1, keepdim=True).clamp_min(1e-6)
    low, high = (share < 0.01).sum(1), (share < 0.99).sum(1) + 1
    return low / places * 2 - 1, high / places * 2 - 1


def edges(x: Tensor) -> Tensor:
    """Edge maps (n, LAYERS, CELLS, CELLS) in 0..1, relative to its contrast, of each picture (n, 3, SIDE, SIDE) in -1..1."""
    around = pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2], around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]
    strongest = (across.square() + down.square()).argmax(1, keepdim=True)
    across, down = across.gather(1, strongest), down.gather(1, strongest)
    size = (across.square() + down.square()).sqrt() + 1e-4
    even, odd = (across.square() - down.square()) / size, 2 * across * down / size
    turns = [2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    maps = torch.cat([relu(even * math.cos(t) + odd * math.sin(t)) for t in turns], 1)
    maps = avg_pool2d(maps, SIDE // CELLS)
    strength = maps.sum(1, keepdim=True).square().mean((2, 3), keepdim=True).sqrt() + 0.02
    return torch.cat([(maps / (3 * strength)).clamp(max=1).sqrt(), avg_pool2d(standing_out(x), SIDE // CELLS)], 1)


def histograms(maps: Tensor) -> Tensor:
    """Edge maps in cells of twice the side, as they are and relative to their neighbors: (n, HISTOGRAMS)."""
    cells = avg_pool2d(maps, 2)
    near = avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1).sqrt() + 0.1
    return torch.cat([cells, (cells / near).clamp(max=2)], 1).flatten(1)


HISTOGRAMS = 2 * LAYERS * (CELLS // 2) ** 2


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
