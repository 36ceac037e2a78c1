"""Whether samples repeat training pictures: a descriptor of shapes, and held-out pictures as the control."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

SIDE, CELL, ORIENTATIONS = 64, 8, 8
CONTROL_SHARE = 0.05  # of held-out pictures that lie above the threshold
MOST_TIMES = 3.0  # the control's share, above which samples copy
MOST_NEARER = 0.8  # of samples may be nearer to training drawings than to as many held-out ones


class CopyFinding(NamedTuple):
    """How near samples lie to training pictures, beside held-out pictures."""

    hits: int  # samples above the threshold
    samples: int
    threshold: float  # similarity that one held-out picture in twenty would exceed
    nearest: NDArray[np.int64]  # (samples,): which training picture
    similarities: NDArray[np.float64]  # (samples,): to it
    nearer_to_training: NDArray[
        np.float64
    ]  # (samples,): chance that as many training drawings hold a nearer one than the held-out


def shape_descriptors(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Unit vectors (n, width) of uint8 images (H, W, 3): gradients by direction in cells of 8 pixels of a 64-pixel square.

    Histograms of oriented gradients (Dalal & Triggs 2005) with the sign of the direction ignored: what is drawn where counts,
    its color and background do not.
    """
    found = []
    for image in images:
        square = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(square, dtype=np.float32)
        down, across = np.gradient(pixels, axis=(0, 1))
        strongest = (down**2 + across**2).argmax(2)[..., None]
        dy, dx = (np.take_along_axis(g, strongest, 2)[..., 0] for g in (down, across))
        size, angle = np.hypot(dy, dx), np.mod(np.arctan2(dy, dx), math.pi) / math.pi * ORIENTATIONS
        histogram = np.zeros((SIDE // CELL, SIDE // CELL, ORIENTATIONS), np.float32)
        low = np.floor(angle).astype(int)
        rows, columns = np.indices((SIDE, SIDE)) // CELL
        for number, weight in ((low, 1 - (angle - low)), (low + 1, angle - low)):
            np.add.at(histogram, (rows, columns, number % ORIENTATIONS), size * weight)
        vector = np.sqrt(histogram.ravel())
        found.append(vector / max(float(np.linalg.norm(vector)), 1e-9))
    return np.array(found, dtype=np.float32).reshape(len(images), -1)


def color_descriptors(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Which colors are where: the mean colors of 4 x 4 cells around mid-gray, unit vectors (n, 48)."""
    cells = [
        np.asarray(Image.fromarray(i).resize((4, 4), Image.Resampling.BOX), np.float32).ravel() / 127.5 - 1 for i in images
    ]
    found = np.array(cells, dtype=np.float32).reshape(len(images), -1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def mirrored(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The pictures left to right, as training may have seen them."""
    return [np.ascontiguousarray(image[:, ::-1]) for image in images]


def similarity_table(vectors: NDArray[np.float32], others: NDArray[np.float32], views: int) -> NDArray[np.float64]:
    """Cosine similarity of each row to each picture, (rows, pictures), in the view that is most alike.

    `others` is (views x pictures, width): all pictures in one view, then all in the next.
    """
    return np.asarray((vectors @ others.T).reshape(len(vectors), views, -1).max(1), dtype=np.float64)


def find_copies(
    to_train: NDArray[np.float64], train_groups: Sequence[str],
    to_held_out: NDArray[np.float64], held_out_groups: Sequence[str], control: NDArray[np.float64],
) -> CopyFinding:  # fmt: skip
    """Two signs of copying, from similarities (samples, pictures) to training and to held-out pictures.

    `control` are the held-out pictures' similarities to their nearest training picture. The threshold is the bound that a
    further held-out picture exceeds with a probability of 5 %, from mean and spread of the control (a t prediction bound, which
    holds at small numbers). The second sign is the three-sample idea of Meehan et al. 2020: a sample that is no copy
    is as near to a held-out drawing as to a training one, where there are as many of both; groups are drawings.
    """
    count = len(control)
    spread = float(control.std(ddof=1)) * math.sqrt(1 + 1 / count)
    threshold = float(control.mean()) + float(stats.t.ppf(1 - CONTROL_SHARE, count - 1)) * spread
    near = to_train.max(1)
    nearer = _chance_of_a_nearer_one(_by_group(to_train, train_groups), _by_group(to_held_out, held_out_groups))
    return CopyFinding(int((near > threshold).sum()), len(near), threshold, to_train.argmax(1), near, nearer)


def _by_group(table: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.float64]:
    """Similarity of each row to each drawing: (rows, drawings)."""
    owners = np.asarray(groups)
    return np.stack([table[:, owners == name].max(1) for name in sorted(set(groups))], axis=1)


def _chance_of_a_nearer_one(train: NDArray[np.float64], held_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that, of equally many drawings of both kinds drawn at random, the nearest to a row is a training one."""
    size = min(train.shape[1], held_out.shape[1])
    found = []
    for near, far in zip(np.sort(train, axis=1), np.sort(held_out, axis=1), strict=True):
        # The nearest of `size` held-out drawings is the one of rank r with the probability of a draw without replacement.
        total = math.comb(len(far), size)
        chance = 0.0
        for rank in range(size - 1, len(far)):  # far is ascending: the nearest drawn one is far[rank]
            of_this = math.comb(rank, size - 1) / total
            below = int((near <= far[rank]).sum())
            chance += of_this * (1 - (math.comb(below, size) / math.comb(len(near), size) if below >= size else 0.0))
        found.append(chance)
    return np.array(found)
