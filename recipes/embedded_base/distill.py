"""Stage 6: the few-step version: what the U-Net does in five guided steps, learnt as one step without guidance.

Progressive distillation (Salimans & Ho 2022, sec. 3) with the guidance folded in (Meng et al. 2023, sec. 3.1), from
trajectories that the teacher walked beforehand: 20 guided DDIM steps, of which every fifth point is kept. The student's
four steps lie on the same points. What it learns goes into LoRA adapters, so that the model stays one U-Net on disk.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovetail.config import Training
from dovetail.edges import adapters, folders, tensors
from dovetail.edges import models as model_edge
from dovetail.edges.models import Models
from dovetail.engines import learner, painter
from dovetail.engines.material import Item, Items, Material

from . import latents, train_unet
from .whole import do_missing, whole

TEACHER_STEPS, STEPS, GUIDANCE = 20, 4, 2.5
PART, BATCH, HELD_OUT = 512, 32, 64
SEED = 700_000
RATE = 1e-3
CONFIG = Training(
    method="lora", lora_rank=32, lora_alpha=32, steps=3000, batch_size=32, lr_scheduler="linear", warmup_steps=100,
    ema_decay=0.995, caption_dropout=0.0, checkpoint_every=500, held_out_every=1000, sample_every=1000, rehearsal_share=0.0,
    published="last", early_stop=0,
)  # fmt: skip


@torch.no_grad()
def walk(models: Models, captions: Sequence[str], first: int) -> Tensor:
    """Points (captions, STEPS + 1, c, h, w) of the teacher's guided DDIM paths, noise first, picture last."""
    points: list[list[Tensor]] = [[] for _ in captions]
    every = TEACHER_STEPS // STEPS
    orders = [painter.Order(prompt=c, seed=SEED + first + i) for i, c in enumerate(captions)]

    def keep(step: int, rows: Tensor) -> None:
        if step % every == 0:
            for path, row in zip(points, rows, strict=True):
                path.append(row.half())

    unet = model_edge.in_bf16(models.unet)
    painter.paint_latents(
        models, orders, steps=TEACHER_STEPS, guidance_scale=GUIDANCE, batch_size=len(orders), unet=unet, on_step=keep
    )
    return torch.stack([torch.stack(path) for path in points])


def write_part(first: int, captions: list[str], build: Path, file: Path) -> None:
    """The paths of one part, whole or not at all."""
    torch.set_num_threads(1)
    models = Models(build, torch.device("cpu"))
    parts = [walk(models, captions[i : i + BATCH], first + i) for i in range(0, len(captions), BATCH)]
    folders.write_bytes(file, tensors.to_bytes({"points": torch.cat(parts)}))
    folders.write_json(file.with_suffix(".json"), captions)


class Steps(Items):
    """Every step of every path, as an item whose noise, timestep and target are those that lead to its next point."""

    def __init__(self, points: Tensor, captions: list[str], alphas: Tensor) -> None:
        self.points, self.captions, self.alphas = points, captions, alphas
        self.timesteps = [round(len(alphas) * (STEPS - k) / STEPS) - 1 for k in range(STEPS)]

    def __len__(self) -> int:
        return len(self.captions) * STEPS

    def item(self, index: int) -> Item:
        """One step of one path."""
        path, k = divmod(index, STEPS)
        now, then = self.points[path, k].float(), self.points[path, k + 1].float()
        a = self.alphas[self.timesteps[k]]
        b = self.alphas[self.timesteps[k + 1]] if k + 1 < STEPS else torch.ones(())
        clean, noise = step_between(now, then, a, b)
        return Item(
            name=f"path {path} step {k}", caption=self.captions[path], moments=None, latents=clean, noise=noise,
            timestep=self.timesteps[k],
        )  # fmt: skip


def step_between(now: Tensor, then: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a DDIM step from `now` (alpha product a) to `then` (b) stands for.

    x_b = sqrt(b) x_0 + sqrt(1 - b) e with x_a = sqrt(a) x_0 + sqrt(1 - a) e: two equations (Song et al. 2021, eq. 12).
    """
    ra, sa, rb, sb = a.sqrt(), (1 - a).sqrt(), b.sqrt(), (1 - b).sqrt()
    whole = ra * sb - sa * rb
    return (now * sb - then * sa) / whole, (then * ra - now * rb) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--paths", type=int, default=8_192)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folder = args.out / "paths"
    folder.mkdir(parents=True, exist_ok=True)
    train, _, states = latents.read(args.out)
    chosen = np.random.default_rng(61).choice(len(train), args.paths, replace=False)
    captions = [train.captions[i] for i in chosen]
    starts = range(0, len(captions), PART)
    jobs = [(a, captions[a : a + PART], args.out, folder / f"part-{a:06d}.safetensors") for a in starts]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        do_missing(pool, "paths", write_part, jobs)
    points = torch.cat([tensors.read(f)["points"] for *_, f in jobs])
    models = Models(args.out, torch.device("cpu"))
    alphas = models.scheduler().alphas_cumprod
    cut = len(captions) - HELD_OUT
    material = Material(
        train=Steps(points[:cut], captions[:cut], alphas), rehearsal=[],
        validation=Steps(points[cut:], captions[cut:], alphas), test=[], states=states,
    )  # fmt: skip
    diary = train_unet.Diary(args.out / "few.jsonl")
    taught = learner.teach(models, material, CONFIG, RATE, args.out / "checkpoints" / "few", diary, lambda step: None)
    folders.write_rows(args.out / "curve-few.jsonl", taught.curve)
    student = Models(args.out, torch.device("cpu"))
    adapters.put(student.unet, taught.weights, "lora", CONFIG.lora_rank, CONFIG.lora_alpha)
    with whole(args.out / "few_step") as folder:
        adapters.write(folder, {"unet": student.unet})


if __name__ == "__main__":
    main()
