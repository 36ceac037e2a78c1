"""What a judge is: something that says how well a picture and a text go together, and something that embeds pictures."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Judge(Protocol):
    """Scores pairs of a picture and a text."""

    name: str

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """How well image i goes with text i: float64 (n,), higher is better, NaN where the judge gave no number.

        `images` are uint8 (H, W, 3); there are as many texts. Raises ModelError where the judge cannot answer at all.
        """
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Embeds pictures in a space where alike pictures are near."""

    name: str

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit vectors, float32 (n, width), of uint8 images (H, W, 3)."""
        ...


@runtime_checkable
class KnowsWords(Protocol):
    """A judge that can say which words it learned."""

    def knows(self, word: str) -> bool:
        """Whether the judge learned this word, or this name of several words."""
        ...
