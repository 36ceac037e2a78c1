"""Held-out step losses of both models, paired by picture, noise and timestep; and what another picture's caption costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dovetail.core import trends
from dovetail.edges.models import Models
from dovetail.engines import encoder, objective
from dovetail.engines.material import Item, Material

OTHER_CAPTIONS = 1  # that each picture's own one is exchanged for


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLosses:
    """Of each held-out picture, in the order of `names`, as shares of the base's mean loss at each timestep."""

    names: list[str]
    change: list[float]  # tuned less base
    bands: dict[str, list[float]]  # the same by band of noise
    words: dict[str, list[float]]  # who -> loss with another caption less loss with the own one; of `worded` alone
    worded: list[str]


def measure(pictures: Material, base: Models, tuned: Models) -> HeldOutLosses:
    """Losses of both models on the test pictures, with the noise and the timesteps of the training's held-out curve."""
    if not pictures.test:
        return HeldOutLosses(names=[], change=[], bands={}, words={"base": [], "tuned": []}, worded=[])
    told = {"base": pictures, "tuned": _as_read_by(tuned, pictures)}
    models = {"base": base, "tuned": tuned}
    own = {who: _table(models[who], pictures.test, told[who]) for who in models}
    names = sorted(own["base"])
    scale = np.mean([own["base"][name] for name in names], axis=0)
    relative = {who: np.array([own[who][name] for name in names]) / scale for who in models}
    change = relative["tuned"] - relative["base"]
    exchanged = exchange_captions(pictures.test)
    worded = sorted(exchanged)
    words: dict[str, list[float]] = {"base": [], "tuned": []}
    for who in models:
        cost = {name: np.zeros_like(scale) for name in worded}
        for turn in range(OTHER_CAPTIONS):
            items = [exchanged[name][turn] for name in worded]
            for name, losses in _table(models[who], items, told[who]).items():
                cost[name] += (np.array(losses) - own[who][name]) / scale / OTHER_CAPTIONS
        words[who] = [float(cost[name].mean()) for name in worded]
    bands = {name: part.mean(1).tolist() for name, part in trends.banded(change).items()}
    return HeldOutLosses(names=names, change=change.mean(1).tolist(), bands=bands, words=words, worded=worded)


def exchange_captions(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Picture -> itself with the captions of `OTHER_CAPTIONS` others; none where all captions are alike."""
    captions = list(dict.fromkeys(item.caption for item in items))
    if len(captions) < 2:
        return {}
    found = {}
    for item in items:
        place = captions.index(item.caption)
        others = [captions[(place + 1 + turn % (len(captions) - 1)) % len(captions)] for turn in range(OTHER_CAPTIONS)]
        found[item.name] = [replace(item, caption=other) for other in others]
    return found


def _as_read_by(tuned: Models, pictures: Material) -> Material:
    """The same pictures, their captions read by the tuned model's own text encoder where that was trained."""
    if not tuned.text_taught:
        return pictures
    read = encoder.States(tuned)
    return replace(pictures, states=read, pooled=read.pooled if tuned.is_xl else None)


def _table(models: Models, items: Sequence[Item], pictures: Material) -> Mapping[str, NDArray[np.float64]]:
    losses = objective.held_out_losses(models.unet, objective.Objective.of(models), items, pictures)
    return {name: np.array(values) for name, values in losses.items()}
