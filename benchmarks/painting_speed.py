"""Seconds a picture and peak memory of the embedded base at batch 1, engine by engine, beside diffusers' own pipeline.

    python benchmarks/painting_speed.py --threads 2

Each engine paints in a process of its own (so that memory is its own), the engines take turns, and the whole is repeated.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STEPS, FEW, REPEATS = 20, 4, 9
PROMPT = "a soft drawing of a lion on a green background"
ENGINES = ("diffusers", "diffusers bf16", "torch", "torch bf16", "openvino", "openvino, few steps")


def painter_of(engine: str, base: Path, threads: int) -> Callable[[int], object]:
    """A function from a seed to a picture."""
    import torch

    torch.set_num_threads(threads)
    if engine.startswith("diffusers"):
        from diffusers import StableDiffusionPipeline

        kind = torch.bfloat16 if engine.endswith("bf16") else torch.float32
        pipe = StableDiffusionPipeline.from_pretrained(base, torch_dtype=kind)
        pipe.set_progress_bar_config(disable=True)
        guidance = json.loads((base / "hints.json").read_text())["guidance_scale"]
        return lambda seed: pipe(
            PROMPT, num_inference_steps=STEPS, guidance_scale=guidance, generator=torch.Generator().manual_seed(seed)
        )
    from dovetail import bases
    from dovetail.edges import adapters
    from dovetail.edges import models as model_edge
    from dovetail.edges.openvino import CompiledUNet
    from dovetail.engines import painter

    models, few = bases.load(base), engine.endswith("few steps")
    if few:
        adapters.take(models.unet, models.folder / "few_step")
    unet = None
    if engine.startswith("openvino"):
        unet = CompiledUNet(models.unet, models.tokenizer.model_max_length, threads)
    elif engine.endswith("bf16"):
        unet = model_edge.in_bf16(models.unet)
    steps, guidance = (FEW, 1.0) if few else (STEPS, bases.hints(base).guidance_scale)
    return lambda seed: painter.paint(
        models, [painter.Order(prompt=PROMPT, seed=seed)], steps=steps, guidance_scale=guidance, unet=unet
    )


def measure(engine: str, base: Path, threads: int) -> dict[str, float]:
    """Start-up, seconds a picture after a first one, and peak memory of this process."""
    began = time.perf_counter()
    paint = painter_of(engine, base, threads)
    paint(0)
    start = time.perf_counter() - began
    seconds = []
    for seed in range(REPEATS):
        began = time.perf_counter()
        paint(seed)
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB to GiB
    return {"start": start, "median": statistics.median(seconds), "best": min(seconds), "worst": max(seconds), "gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path(__file__).parents[1] / "src" / "dovetail" / "base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(measure(args.engine, args.base, args.threads)))
        return
    engines = [e for e in ENGINES if "few" not in e or (args.base / "few_step").is_dir()]
    found: dict[str, list[dict[str, float]]] = {e: [] for e in engines}
    for _ in range(args.rounds):
        for engine in engines:
            told = [sys.executable, __file__, "--engine", engine, "--base", str(args.base), "--threads", str(args.threads)]
            environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
            answer = subprocess.run(told, env=environment, check=True, capture_output=True, text=True).stdout
            found[engine].append(json.loads(answer.splitlines()[-1]))
    print("| engine | s a picture: median (best to worst) | times diffusers | start, s | peak GiB |\n|---|---|---|---|---|")
    reference = statistics.median(r["median"] for r in found["diffusers"])
    for engine, rows in found.items():
        median = statistics.median(r["median"] for r in rows)
        spread = f"{min(r['best'] for r in rows):.3f} to {max(r['worst'] for r in rows):.3f}"
        start, peak = (statistics.median(r[k] for r in rows) for k in ("start", "gib"))
        print(f"| {engine} | {median:.3f} ({spread}) | {reference / median:.1f} | {start:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
