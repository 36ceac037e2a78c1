"""The reader: from a prompt with weights to text states. For serving; captions and the painter's prompts have no weights."""

import torch
from torch import Tensor

from dovetail.core import prompts
from dovetail.edges.models import Models


def pieces(models: Models, text: str) -> int:
    """How many passes of the text encoder a prompt takes, without its brackets and with its BREAKs."""
    return models.pieces(prompts.parsed(text))


@torch.no_grad()
def read(models: Models, text: str, pieces: int = 1) -> tuple[Tensor, Tensor | None]:
    """Text states, float32 (1, pieces x tokens, width), and in Stable Diffusion XL the pooled ones, which have no weights.

    A prompt without weights has the states that `Models.embed` and `Models.pooled` give, to the last bit.
    """
    parts = prompts.parsed(text)
    if not prompts.weighs(parts):
        return models.read([parts[0].text], pieces)
    states, whole = models.read([parts], pieces)
    told = models.weights(parts, pieces)
    of_each = states.unflatten(1, (pieces, -1))[0].split([width for width, _ in told], dim=-1)
    weighed = [prompts.weighed(own, weights) for own, (_, weights) in zip(of_each, told, strict=True)]
    return torch.cat(weighed, -1).flatten(0, 1)[None], whole
