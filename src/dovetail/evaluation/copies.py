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


class CopyFinding(NamedTuple):
    """How often samples lie nearer to a training picture than held-out pictures do."""

    hits: int
    count: int
    threshold: float  # similarity that one held-out picture in twenty would exceed
    control: float  # the share of held-out pictures above it
    nearest: NDArray[np.int64]  # (samples,): which training picture
    similarities: NDArray[np.float64]  # (samples,): to it


def shape_descriptors(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Unit vectors (n, width) of uint8 images (H, W, 3): gradients by direction in cells of 8 pixels of a 64-pixel square.

    Histograms of oriented gradients (Dalal & Triggs 2005) with the sign of the direction ignored: what is drawn where counts, its
    color and background do not.
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


def mirrored(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The pictures left to right, as training may have seen them."""
    return [np.ascontiguousarray(image[:, ::-1]) for image in images]


def nearest_training(
    vectors: NDArray[np.float32], train: NDArray[np.float32], views: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index of the nearest training picture and cosine similarity to it, of each row.

    `train` is (views x pictures, width): all pictures in one view, then all in the next.
    """
    table = (vectors @ train.T).reshape(len(vectors), views, -1).max(1)
    return table.argmax(1), table.max(1).astype(np.float64)


def find_copies(samples: NDArray[np.float64], nearest: NDArray[np.int64], control: NDArray[np.float64]) -> CopyFinding:
    """How many of `samples` (similarities to the nearest training picture) exceed what a held-out picture would.

    `control` are the same similarities of held-out pictures. The threshold is the bound that a further held-out picture exceeds
    with a probability of 5 %, from mean and spread of the control (a t prediction bound, which holds at small numbers).
    """
    count = len(control)
    spread = float(control.std(ddof=1)) * math.sqrt(1 + 1 / count)
    threshold = float(control.mean()) + float(stats.t.ppf(1 - CONTROL_SHARE, count - 1)) * spread
    hits = int((samples > threshold).sum())
    return CopyFinding(hits, len(samples), threshold, float((control > threshold).mean()), nearest, samples)
