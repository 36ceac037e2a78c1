"""Stage 5: the U-Net, from scratch, by Dovetail's own learner. Interrupt it at any moment; the same command goes on."""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from dovetail.config import Training
from dovetail.core import trends
from dovetail.edges import folders, pixels, plots, tensors
from dovetail.edges import models as model_edge
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import learner, painter
from dovetail.engines.material import Material

from . import latents, prompts
from .whole import whole

CONFIG = dict(
    sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128, 224), layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=192, attention_head_dim=4, norm_num_groups=16,
)  # fmt: skip
SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    set_alpha_to_one=True,
)  # fmt: skip
RATE = 5e-4  # falling to zero over the last fifth
LEARNING = Training(
    steps=36_000, batch_size=32, lr_scheduler="warmup_stable_decay", warmup_steps=300, ema_decay=0.999, rehearsal_share=0.0,
    checkpoint_every=500, held_out_every=2000, published="last", early_stop=0, sample_every=1000,
)  # fmt: skip
SHEET_STEPS, SHEET_GUIDANCE, SHEET_SEED = 20, 2.5, 300


class Diary(Show):
    """A line in `file` every `every` steps: steps, loss, minutes so far (over all interruptions), minutes left."""

    def __init__(self, file: Path, every: int = 100) -> None:
        super().__init__(quiet=True)
        self.file, self.every = file, every
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.before = sum(row["seconds"] for row in rows)

    @contextlib.contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """Each `advance` counts; every so often it is written down and printed."""
        count, last = done, time.perf_counter()

        def advance(number: int, note: str) -> None:
            nonlocal count, last
            count += number
            if count % self.every and count < total:
                return
            now = time.perf_counter()
            left = (now - last) / self.every * (total - count)
            row = {"step": count, "of": total, "seconds": round(now - last, 2), "note": note}
            last, self.before = now, self.before + now - last
            with self.file.open("a") as log:
                log.write(json.dumps(row | {"minutes": round(self.before / 60, 2), "left": round(left / 60, 1)}) + "\n")
            print(f"{self.file.stem}: {count} of {total}, {note}, {left / 60:.0f} minutes left", flush=True)

        yield advance


def begin(build: Path) -> None:
    """Make `build` a diffusers folder, with a U-Net that has learnt nothing yet beside the parts that are done."""
    if not (build / "model_index.json").exists():
        torch.manual_seed(3)
        UNet2DConditionModel(**CONFIG).save_pretrained(build / "unet")
        DDIMScheduler(**SCHEDULER).save_pretrained(build / "scheduler")
        (build / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}\n')


def train(build: Path) -> None:
    """From chance to `unet-trained.safetensors`, the averaged weights; sheets and curves beside it."""
    lessons, held_out, states = latents.read(build)
    material = Material(train=lessons, rehearsal=[], validation=held_out, test=[], states=states)
    models = Models(build, torch.device("cpu"))

    def sheet(step: int) -> None:
        """The card's prompts, painted as the model is now."""
        orders = [painter.Order(prompt=ask.prompt, seed=SHEET_SEED + i) for i, ask in enumerate(prompts.card())]
        fast = model_edge.in_bf16(models.unet)
        painted = painter.paint(models, orders, steps=SHEET_STEPS, guidance_scale=SHEET_GUIDANCE, unet=fast)
        folders.write_bytes(build / "sheets" / f"{step:06d}.png", pixels.png(pixels.grid(painted, 12)))

    diary = Diary(build / "unet.jsonl")
    taught = learner.teach(models, material, LEARNING, RATE, build / "checkpoints" / "unet", diary, sheet)
    folders.write_rows(build / "curve-unet.jsonl", taught.curve)
    folders.write_bytes(build / "loss-unet.png", plots.loss_curves(taught.curve, trends.lines(taught.curve)))
    folders.write_bytes(build / "unet-trained.safetensors", tensors.to_bytes(taught.weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin(args.out)
    trained = args.out / "unet-trained.safetensors"
    if not trained.exists():
        train(args.out)
    models = Models(args.out, torch.device("cpu"))
    models.unet.load_state_dict(tensors.read(trained))
    with whole(args.out / "unet") as folder:
        models.unet.save_pretrained(folder)


if __name__ == "__main__":
    main()
