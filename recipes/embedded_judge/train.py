"""The two halves of the training, on features made before; both can be stopped at any time and go on to the same weights.

`names`: the kind tower learns to name single drawings. What a thing is takes by far the most pictures to learn, and features
of single drawings are cheap. `captions`: the kind tower stays as it is; the others learn to tell captions from false ones and
names from other names.
"""

import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from dovetail.evaluation import gradients
from dovetail.evaluation.towers import Shape, Towers

from . import drawings, lessons, wording
from .texts import Encoder, make_tokenizer

SMOOTHED = 0.03  # of the target goes to all names
MEAN_EVERY, MEAN = 4, 0.99  # of the averaged weights, which are the ones that are packed
LESSON = 128  # pictures of a lesson
LARGEST_SCALE = 4.0  # logarithm
SAVED_EVERY = 250  # steps


def fill_lessons(folder: Path, art: lessons.Art, count: int, first: int = 0, step: int = 1) -> None:
    """Write `count` lessons whose pictures are features; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, count, step):
        file = folder / f"{number:05d}.pickle"
        if file.exists():
            continue
        batch = lessons.batch_of(number, LESSON, art)
        batch.pixels = drawings.as_bytes(gradients.features(batch.pixels.float() / 127.5 - 1))
        file.with_suffix(".new").write_bytes(pickle.dumps(batch))
        file.with_suffix(".new").replace(file)


def fill(build: Path, parts: int, count: int, first: int, step: int) -> None:
    """Every `step`th file of the pool and of the lessons from the `first`, in a process of its own."""
    torch.set_num_threads(1)
    art = lessons.Art(build / "art")
    drawings.fill(build / "pool", art, parts, first, step)
    fill_lessons(build / "lessons", art, count, first, step)


class Learner(nn.Module):
    """The towers, and a head over names and words that is thrown away when the training is over."""

    def __init__(self, shape: Shape, classes: tuple[dict[str, int], dict[str, int]], names: list[str]) -> None:
        super().__init__()
        self.towers = Towers(shape)
        self.head = nn.Linear(shape.kind, sum(map(len, classes)))
        self.names = names
        self.targets = [lessons.targets([name], classes)[1:] for name in names]

    def sorting_loss(self, kinds: Tensor, chosen: list[int]) -> Tensor:
        """Cross-entropy of the names and words of single drawings, from their place in the space of kinds."""
        logs = log_softmax(self.head(kinds).float(), 1)
        rows = torch.tensor([r for r, c in enumerate(chosen) for _ in self.targets[c][0]])
        if not len(rows):  # nothing of the batch was drawn by enough hands to be a class
            return 0 * logs.mean()
        columns, weights = (torch.cat([self.targets[c][k] for c in chosen]) for k in (0, 1))
        named = -(logs[rows, columns.long()] * weights).sum() / len(chosen)
        return (1 - SMOOTHED) * named - SMOOTHED * logs.mean()

    def read(self, encoder: Encoder, texts: list[str], parts: int = 2) -> Tensor:
        """Unit vectors of texts (n, joint)."""
        found = [(k, self.towers.read(tokens, mask)) for k, tokens, mask in encoder.batches(texts, parts)]
        return torch.cat([p for _, p in found])[torch.cat([k for k, _ in found]).argsort()]

    def caption_loss(self, batch: lessons.Batch, encoder: Encoder) -> Tensor:
        """Caption of a picture among right and false ones, and picture of a caption."""
        joint = self._seen(batch.pixels.float() / 255)
        told = self.read(encoder, [*batch.captions, *[w for _, w in batch.wrong], *batch.extra], 3)
        return self._matched(joint, told, batch.allowed)

    def name_loss(
        self, features: Tensor, chosen: list[int], others: list[str], encoder: Encoder, rng: np.random.Generator
    ) -> Tensor:
        """Names of single drawings among those of the batch and others."""
        names = [self.names[c] for c in chosen]
        texts = [lessons.spoken(rng, n) if rng.random() < 0.7 else f"a drawing of {wording.article(n)}" for n in names]
        allowed = lessons.allowed_texts(names, [*names, *others])
        allowed[torch.arange(len(names)), torch.arange(len(names))] = True
        return self._matched(self._seen(features), self.read(encoder, [*texts, *others]), allowed)

    def _seen(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            kinds = self.towers.kinds_of(features)
        return self.towers.see_features(features, kinds)[0]

    def _matched(self, joint: Tensor, told: Tensor, allowed: Tensor) -> Tensor:
        logits = (joint @ told.T * self.towers.scale.exp()).float().masked_fill(~allowed, -1e4)
        right = torch.arange(len(joint))
        return (cross_entropy(logits, right) + cross_entropy(logits[:, : len(joint)].T, right)) / 2


class Course:
    """Where one half of the training stands: weights, optimizer, averages, step; on disk in `file`."""

    def __init__(self, file: Path, model: Learner, groups: list[dict[str, Any]], peak: float, steps: int) -> None:
        self.file, self.model, self.peak, self.steps, self.step = file, model, peak, steps, 0
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        self.mean = {k: v.detach().clone() for k, v in model.state_dict().items()}
        known = {id(p) for group in groups for p in group["params"]}
        still = {name for name, p in model.named_parameters() if id(p) not in known}
        self.changing = set(self.mean) - still
        self.kept: dict[str, float] = {}
        self.began = time.monotonic()
        if file.exists():
            state = torch.load(file, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.mean, self.step = state["mean"], state["step"]

    def descend(self, losses: dict[str, Tensor], weights: dict[str, float]) -> None:
        """One optimizer step, the averages, and a line in the log now and then."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * group["times"] * min(1, (self.step + 1) / 100) * (0.005 + 0.995 * cosine)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.towers.scale.clamp_(max=LARGEST_SCALE)
        if self.step % MEAN_EVERY == 0:
            now = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point() and k in self.changing}
            keep = min(MEAN, (self.step + 1) / (self.step + 40))
            torch._foreach_lerp_([self.mean[k] for k in now], list(now.values()), 1 - keep)
        self.step += 1
        for name, loss in losses.items():
            self.kept[name] = 0.98 * self.kept.get(name, loss.item()) + 0.02 * loss.item()
        if self.step % 100 == 0:
            row = {
                "half": self.file.stem,
                "step": self.step,
                "of": self.steps,
                **{k: round(v, 3) for k, v in self.kept.items()},
            }
            row["minutes"] = round((time.monotonic() - self.began) / 60, 1)
            with self.file.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "mean": self.mean}
        state |= {"step": self.step, "shape": self.model.towers.shape.as_json()}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)


def learner(out: Path, art: lessons.Art, shape: Shape | None = None) -> tuple[Learner, Encoder]:
    """Fresh towers with the tokenizer of `out`, which is made where it is not there."""
    tokenizer = make_tokenizer(art, out)
    torch.manual_seed(7)
    known = shape or Shape(vocabulary=len(tokenizer))
    return Learner(known, drawings.classes_of(art), drawings.names_of(art)).train(), Encoder(tokenizer)


def own_names(model: Learner) -> set[int]:
    """Numbers of the names of what the embedded base draws and of televisions."""
    return {k for k, name in enumerate(model.names) if lessons.is_of_the_base(name)}


def names(
    out: Path, art: lessons.Art, parts: int, steps: int, size: int = 512, peak: float = 2e-3, stop: int | None = None,
    shape: Shape | None = None,
) -> Course:  # fmt: skip
    """The first half: single drawings to names. Goes on from `out/names.pt`."""
    model, _ = learner(out, art, shape)
    trained = [*model.towers.kinds.parameters(), *model.head.parameters()]
    course = Course(out / "names.pt", model, [{"params": trained, "times": 1.0}], peak, steps)
    pool, known = drawings.Pool(out / "pool", parts), own_names(model)
    while course.step < min(steps, stop or steps):
        torch.manual_seed(course.step)  # of the dropout and the mirror
        rng = np.random.default_rng([52, course.step])
        features, chosen = pool.mixed(rng, size, known)
        turned = torch.rand(len(features)) < 0.5
        features[turned] = gradients.mirrored(features[turned])
        with torch.autocast("cpu", torch.bfloat16):
            sort = model.sorting_loss(model.towers.kinds(features), chosen)
        course.descend({"sort": sort}, {"sort": 1.0})
        if course.step % SAVED_EVERY == 0:
            course.save()
    course.save()
    return course


def captions(
    out: Path, art: lessons.Art, parts: int, count: int, steps: int, size: int = 256, peak: float = 1.5e-3,
    stop: int | None = None, shape: Shape | None = None,
) -> Course:  # fmt: skip
    """The second half, from what the first left in `out/names.pt`. Goes on from `out/captions.pt`."""
    model, encoder = learner(out, art, shape)
    model.load_state_dict(torch.load(out / "names.pt", weights_only=True)["mean"])
    model.towers.kinds.eval()
    ids = {id(p) for p in (*model.towers.kinds.parameters(), *model.head.parameters())}
    fresh = [p for p in model.parameters() if id(p) not in ids]
    course = Course(out / "captions.pt", model, [{"params": fresh, "times": 1.0}], peak, steps)
    pool, known = drawings.Pool(out / "pool", parts), own_names(model)
    while course.step < min(steps, stop or steps):
        torch.manual_seed(course.step)
        rng = np.random.default_rng([71, course.step])
        batch = pickle.loads((out / "lessons" / f"{course.step % count:05d}.pickle").read_bytes())
        features, chosen = pool.mixed(rng, size, known)
        with torch.autocast("cpu", torch.bfloat16):
            caption = model.caption_loss(batch, encoder)
            name = model.name_loss(features, chosen, batch.extra, encoder, rng)
        course.descend({"caption": caption, "name": name}, {"caption": 1.0, "name": 1.0})
        if course.step % SAVED_EVERY == 0:
            course.save()
    course.save()
    return course
