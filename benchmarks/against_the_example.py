"""Dovetail's launch command and the diffusers example, side by side: the same model, pictures, flags and threads.

    python benchmarks/against_the_example.py --example .../examples/text_to_image/train_text_to_image.py

The example's file is given by path (it is not ours to ship); its torchvision is replaced by a small stand-in, so that none
need be installed.

`--full-size` takes a Stable Diffusion 1.4 of its full size with random weights (give --side 512 --cases "batch 1,
accumulation 4" too). A rate is measured between two lengths of run, so that starting up counts for neither; the time in which
Dovetail encodes the pictures is counted over 2,000 steps. Memory is the most that the training process held at once. Repeats
are interleaved; the median and the spread are printed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dovetail import bases

ROOT = Path(__file__).parent.parent
COUNTED_OVER = 2_000  # steps
CASES = {  # name: (train_batch_size, gradient_accumulation_steps)
    "batch 8": (8, 1),
    "batch 1, accumulation 4": (1, 4),
}
IMPORT = "from torchvision import transforms"
TRANSFORMS = """
import random
from enum import Enum
import numpy as np
import torch
from PIL import Image
class InterpolationMode(Enum):
    BILINEAR = 2
    LANCZOS = 1
class Compose:
    def __init__(self, parts): self.parts = parts
    def __call__(self, x):
        for part in self.parts: x = part(x)
        return x
class Resize:
    def __init__(self, side, interpolation): self.side, self.how = side, interpolation.value
    def __call__(self, x):
        scale = self.side / min(x.size)
        return x.resize((round(x.width * scale), round(x.height * scale)), self.how)
class CenterCrop:
    def __init__(self, side): self.side = side
    def __call__(self, x):
        a, b = (x.width - self.side) // 2, (x.height - self.side) // 2
        return x.crop((a, b, a + self.side, b + self.side))
RandomCrop = CenterCrop
class RandomHorizontalFlip:
    def __call__(self, x): return x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else x
class Lambda:
    def __init__(self, f): self.f = f
    def __call__(self, x): return self.f(x)
class ToTensor:
    def __call__(self, x): return torch.from_numpy(np.asarray(x).copy()).permute(2, 0, 1).float() / 255
class Normalize:
    def __init__(self, mean, std): pass
    def __call__(self, x): return x * 2 - 1
"""


def write_model(folder: Path) -> None:
    """A Stable Diffusion with a U-Net of 12.8 M parameters: (64, 128, 256) channels, cross-attention at 16x16 and 8x8."""
    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(bases.EMBEDDED / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 128, 256), layers_per_block=1, cross_attention_dim=256, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    print(f"U-Net of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(bases.EMBEDDED / "vae"), text_encoder=CLIPTextModel(text), tokenizer=words,
        unet=unet, scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


def write_full_size(folder: Path) -> None:
    """A Stable Diffusion of the sizes of 1.4 (860 M parameters in the U-Net), random weights."""
    words = CLIPTokenizer.from_pretrained(bases.EMBEDDED / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=words, unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def write_pictures(folder: Path, side: int, count: int) -> None:
    """Pictures of chance, a little larger than the side."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((side + side // 4, side + 8))
        noise.save(folder / f"{n}.png")
        rows.append({"file_name": f"{n}.png", "text": f"picture number {n} of many colours"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(script: Path, flags: list[str], out: Path, environment: dict[str, str]) -> tuple[float, str, float]:
    """Seconds, what was printed, and GiB that it held at most."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, str(script), *flags, f"--output_dir={out}"], stdout=subprocess.DEVNULL, stderr=said,
            env=os.environ | environment,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(text[-3000:])
    return time.perf_counter() - started, text, used.ru_maxrss / 2**20


def seconds_a_step(
    script: Path, flags: list[str], steps: tuple[int, int], place: Path, environment: dict[str, str]
) -> tuple[float, float]:
    """Between a short and a long run; and GiB of the long one."""
    took, held = [], 0.0
    for count in steps:
        with tempfile.TemporaryDirectory(dir=place) as out:
            seconds, _, held = run(script, [*flags, f"--max_train_steps={count}"], Path(out), environment)
            took.append(seconds)
    return (took[1] - took[0]) / (steps[1] - steps[0]), held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=Path, required=True, help="the diffusers example's file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(10, 40), help="lengths of the two runs")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--model", type=Path, help="another model than the one of 12.8 M parameters")
    parser.add_argument("--full-size", action="store_true", help="a Stable Diffusion 1.4 with random weights")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], help="of the example; the better one counts")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if args.full_size:
            write_full_size(place / "model")
        elif args.model is None:
            write_model(place / "model")
        write_pictures(place / "pictures", args.side, args.pictures)
        (place / "transforms.py").write_text(TRANSFORMS)
        text = args.example.read_text()
        assert IMPORT in text, f"{args.example} does not import torchvision as the example does"
        (place / "example.py").write_text(text.replace(IMPORT, "import transforms"))
        for case in args.cases:
            found[case] = compare(args, case, place)
            print(case, json.dumps(found[case]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def compare(args: argparse.Namespace, case: str, place: Path) -> dict[str, object]:
    """Pictures a second of both, interleaved."""
    batch, accumulation = CASES[case]
    flags = [
        f"--pretrained_model_name_or_path={args.model or place / 'model'}", f"--train_data_dir={place / 'pictures'}",
        "--use_ema", f"--resolution={args.side}", "--center_crop", "--random_flip", f"--train_batch_size={batch}",
        f"--gradient_accumulation_steps={accumulation}", "--gradient_checkpointing", "--learning_rate=1e-05",
        "--max_grad_norm=1", "--lr_scheduler=constant", "--lr_warmup_steps=0", "--checkpointing_steps=100000", "--seed=0",
    ]  # fmt: skip
    home = {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "DOVETAIL_HOME": str(place / "home")}
    ours = ROOT / "train_text_to_image.py"
    before = time.perf_counter()
    encoded = run(ours, [*flags, "--mixed_precision=bf16", "--max_train_steps=1"], place / f"first {case}", home)[1]
    first = time.perf_counter() - before
    for precision in args.precisions:  # what either keeps of the pictures is there before the clock starts
        run(
            place / "example.py",
            [*flags, f"--mixed_precision={precision}", "--max_train_steps=1"],
            place / f"{precision} {case}",
            home,
        )
    took: dict[str, list[tuple[float, float]]] = {who: [] for who in ("dovetail", *args.precisions)}
    for _ in range(args.repeats):
        for precision in args.precisions:
            told = [*flags, f"--mixed_precision={precision}", "--report_to=tensorboard"]
            took[precision].append(seconds_a_step(place / "example.py", told, args.steps, place, home))
        took["dovetail"].append(seconds_a_step(ours, [*flags, "--mixed_precision=bf16"], args.steps, place, home))
    told_at_last = r"pictures to latents: .* in ([\d.]+)"
    caching = next(float(found[1]) for line in encoded.splitlines() if (found := re.match(told_at_last, line)))
    took["dovetail"] = [(seconds + caching / COUNTED_OVER, held) for seconds, held in took["dovetail"]]
    rates = {who: [round(batch * accumulation / s, 3) for s, _ in every] for who, every in took.items()}
    memory = {who: round(statistics.median(held for _, held in every), 2) for who, every in took.items()}
    better = max(args.precisions, key=lambda p: statistics.median(rates[p]))
    return {
        "pictures a second": rates, "example's better precision": better, "first run seconds": round(first, 1),
        "caching seconds": caching,
        "GiB": memory, "memory ratio": round(memory["dovetail"] / memory[better], 2),
        "ratio": round(statistics.median(rates["dovetail"]) / statistics.median(rates[better]), 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
