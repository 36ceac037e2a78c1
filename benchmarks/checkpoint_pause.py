"""What a checkpoint costs a training of the embedded base: the pause itself, and what the steps beside its writing lose.

    python benchmarks/checkpoint_pause.py [--every 40] [--checkpoints 20]

One training, the defaults of `dovetail run` but for `--every`. After each checkpoint the first half of the steps until the next
one has its writing beside it, and the second half has not: the difference is what the checkpoint costs in all, whatever the
machine does meanwhile. Medians over the checkpoints, and the quartiles; the share is that of the default, one in 150 steps.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dovetail import bases
from dovetail.config import Training
from dovetail.core import randomness
from dovetail.edges import machine
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import learner
from dovetail.engines.material import Item, Material


def material(models: Models, pictures: int = 64) -> Material:
    """Pictures and captions of noise, of the base's own shapes: what is in them costs nothing."""
    side, width = models.unet.config.sample_size, models.unet.config.cross_attention_dim
    tokens = models.tokenizer.model_max_length
    channels = models.unet.config.in_channels
    items = [
        Item(name=f"{n}", caption=f"{n}", moments=torch.randn(1, 2 * channels, side, side).clamp(-2, 0))
        for n in range(pictures)
    ]
    states = {n: torch.randn(tokens, width, generator=randomness.generator(0, n)) for n in ("", *(i.caption for i in items))}
    return Material(train=items, rehearsal=[], validation=[], test=[], states=lambda caption: states[caption])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=40, help="steps")
    parser.add_argument("--checkpoints", type=int, default=20)
    args = parser.parse_args()
    never = 10**9
    settings = Training(
        steps=args.every * (args.checkpoints + 1),
        checkpoint_every=args.every,
        held_out_every=never,
        sample_every=never,
        early_stop=0,
    )
    models, moments = Models(bases.find("embedded"), machine.pick_device()), [time.perf_counter()]

    def note(step: int, numbers: dict[str, float]) -> None:
        moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=".") as folder:
        taught = learner.teach(
            models, material(models), settings, 1e-4, Path(folder), Show(quiet=True), lambda step: None, note
        )
        newest = sorted(Path(folder).glob("checkpoint-*"))[-1]
        size = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
    steps = [after - before for before, after in itertools.pairwise(moments)]
    costs, half = [], args.every // 2
    for first in range(args.every, len(steps), args.every):  # the first one has a checkpoint before it, as all after it
        costs.append(sum(steps[first : first + half]) - sum(steps[first + half : first + 2 * half]))
    low, cost, high = statistics.quantiles(costs, n=4)
    step, default = statistics.median(steps), Training().checkpoint_every
    pauses = args.checkpoints + 1
    print(f"a checkpoint of {size / 1e6:.0f} MB; a step of {settings.batch_size} pictures takes {1000 * step:.0f} ms")
    print(f"  standing still: {taught.pace.checkpoint_seconds / pauses:.3f} s each, the last one's wait to the end among them")
    print(f"  in all: {cost:.3f} s each (quartiles {low:.3f} to {high:.3f}), {cost / (default * step):.1%} of {default} steps")


if __name__ == "__main__":
    main()
