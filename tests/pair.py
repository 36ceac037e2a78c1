"""What each of two processes does that `test_two_processes.py` starts: trainings, and what of them lay in this process."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import schooling
import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor

from dovetail import flags, launch
from dovetail.config import Training
from dovetail.edges import tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import learner
from dovetail.engines.lessons import Lessons
from dovetail.engines.material import Material

RATE = 2e-3
FULL = schooling.config(batch_size=2, gradient_accumulation_steps=3, merge_micro_batches=False)
TAUGHT = {
    "lora": schooling.config(method="lora", text_encoder=True, steps=4),
    "textual_inversion": schooling.config(method="textual_inversion", placeholder="<it>", initializer="cat", steps=4),
}


def uneven() -> Material:
    """Captions of two lengths, so that one process has more passes to do than the other."""
    plain = schooling.material()

    def longer(caption: str) -> Tensor:
        return torch.cat([schooling.states(caption)] * (2 if caption.endswith(("1", "3")) else 1))

    return replace(plain, states=longer)


def with_word() -> Material:
    """Every caption to learn has the new word."""
    plain = schooling.material()
    return replace(plain, train=[replace(item, caption=f"<it> {n}") for n, item in enumerate(plain.train)])


def teach(base: Path, folder: Path, material: Material, settings: Training, **more: Any) -> learner.Taught:
    """Weights, curve and best of a training."""
    models = Models(base, schooling.CPU)
    taught = learner.teach(models, material, settings, RATE, folder, Show(quiet=True), lambda step: None, **more)
    assert settings.method != "full" or not any(isinstance(p, DTensor) for p in models.unet.parameters())
    return taught


def held(lessons: Lessons) -> dict[str, int]:
    """Numbers in this process, of each kind."""
    moments = [entry["exp_avg"] for entry in lessons.optimizer.state_dict()["state"].values()]
    gradients = [p.grad for p in lessons.parameters if p.grad is not None]
    kinds = {"weights": lessons.parameters, "gradients": gradients, "moments": moments, "averages": lessons.average}
    return {kind: sum((x.to_local() if isinstance(x, DTensor) else x).numel() for x in every) for kind, every in kinds.items()}


def main(base: Path, out: Path, words: list[str]) -> None:
    """All trainings, one after the other; the first as `--use_fsdp` says, which is forgotten then."""
    rank, seen, update = PartialState(cpu=True).process_index, [], learner._update

    def note(lessons: Lessons, step: int) -> None:
        gradients = held(lessons)["gradients"]
        update(lessons, step)
        seen.append(held(lessons) | {"gradients": gradients})

    learner._update = note
    launch.run(*flags.parse([*words, f"--output_dir={out / 'sharded'}"]))
    del os.environ["ACCELERATE_USE_FSDP"]
    launch.run(*flags.parse([*words, f"--output_dir={out / 'plain'}"]))
    whole = teach(base, out / "full", uneven(), FULL, shard=True)
    if rank == 0:
        shutil.copytree(out / "full" / "checkpoint-4", out / "killed" / "checkpoint-4")
    PartialState().wait_for_everyone()
    resumed = teach(base, out / "killed", uneven(), FULL, shard=True)
    told = {"held": seen, "digests": [tensors.digest(taught.weights) for taught in (whole, resumed)], "curve": whole.curve}
    for method, settings in TAUGHT.items():
        teach(base, out / method, with_word(), settings)
    (out / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
