"""One U-Net there and back in bf16 on the CPU: how its attention is done, and what share of the machine's own peak it reaches.

    python benchmarks/step.py [--batch 32] [--rounds 15]

The U-Net of 12.8 M weights of `against_the_example.py`, interleaved: as the learner has it (where there is a C compiler), its
gradients taken as the bf16 numbers that they are and bf16 copies of its weights kept, which AdamW writes as it walks; the same
with float32 weights alone and gradients handed to autograd; and as diffusers has it, with the attention that learns here, with
two plain matrix products, and with PyTorch's fused attention; then attention alone, at its shapes and at the largest of SD 1.4.
Medians, and the spread; the peak (bf16 convolutions) is measured before and after.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from against_the_example import write_model
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dovetail.edges import machine, shapes
from dovetail.edges.models import MatmulAttention
from dovetail.engines.attention import CacheAttention
from dovetail.engines.fused import blocks, copies

CPU = torch.device("cpu")
WAYS = {"its attention": CacheAttention, "two products": MatmulAttention, "fused": AttnProcessor2_0}
SIZES = ((32, 8, 256, 256, 8), (32, 8, 256, 77, 8), (8, 8, 256, 256, 8), (8, 8, 256, 77, 8), (1, 8, 4096, 4096, 40))


def interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way, in turn; the first two rounds do not count."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            spent = way()
            took[name] += [1000 * spent] if number > 1 else []
    return took


def told(took: list[float]) -> str:
    return f"{statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f})"


def here(unet: UNet2DConditionModel, learner: bool) -> UNet2DConditionModel:
    """A copy whose blocks are ours."""
    quick = copy.deepcopy(unet)
    quick.set_attn_processor(CacheAttention())
    blocks.fuse(quick)
    if learner:
        copies.allow(quick.parameters())
        for weight in quick.parameters():
            weight.taken_by = partial(setattr, weight, "taken")
    return quick


def whole_step(unet: UNet2DConditionModel, way: type, batch: int) -> Callable[[], float]:
    """Forward and backward, without the optimizer."""
    seen, times = torch.randn(batch, 4, 16, 16), torch.randint(0, 1000, (batch,))
    states, processor = torch.randn(batch, 77, 256), way()

    def go() -> float:
        unet.set_attn_processor(processor)
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            said = unet(seen, times, encoder_hidden_states=states, return_dict=False)[0]
        said.float().square().mean().backward()
        spent = time.perf_counter() - began
        unet.zero_grad(set_to_none=True)
        return spent

    return go


def attention_alone(way: Callable[..., Tensor], size: tuple[int, ...]) -> Callable[[], float]:
    batch, heads, count, others, width = size
    parts = [torch.randn(batch, n, heads, width, dtype=torch.bfloat16) for n in (count, others, others)]

    def go() -> float:
        query, key, value = (x.transpose(1, 2).detach().requires_grad_() for x in parts)
        began = time.perf_counter()
        seen = way(query, key, value, scale=width**-0.5)
        seen.backward(torch.ones_like(seen))
        return time.perf_counter() - began

    return go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    machine.hold_memory(large=True)
    peaks = [machine.peak_tflops(CPU)]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        unet = UNet2DConditionModel.from_pretrained(Path(folder) / "unet").train()
    tflop = args.batch * shapes.arithmetic(unet, (1, 4, 16, 16), (1, 77, 256)).tflop
    steps = {name: whole_step(here(unet, name == "here"), CacheAttention, args.batch) for name in ("here", "plain weights")}
    steps |= {name: whole_step(unet, way, args.batch) for name, way in WAYS.items()}
    took = interleaved(steps, args.rounds)
    machine.peak_tflops.cache_clear()
    peaks.append(machine.peak_tflops(CPU))
    print(f"peak {peaks[0]:.3f} and {peaks[1]:.3f} TFLOP/s; batch {args.batch}: {tflop:.3f} TFLOP there and back")
    for name, spent in took.items():
        shares = [tflop / (statistics.median(spent) / 1000) / peak for peak in peaks]
        print(f"  {name:<13} {told(spent)} ms, {shares[0]:.0%} and {shares[1]:.0%} of the peak", flush=True)
    for size in SIZES:
        ways = {"here": CacheAttention().attended, "two products": MatmulAttention().attended}
        ways |= {"fused": scaled_dot_product_attention}
        took = interleaved({name: attention_alone(way, size) for name, way in ways.items()}, args.rounds)
        ratio = statistics.median(took["fused"]) / statistics.median(took["here"])
        print(
            f"{size}: " + "; ".join(f"{n} {told(t)} ms" for n, t in took.items()) + f"; fused takes {ratio:.1f} times",
            flush=True,
        )


if __name__ == "__main__":
    main()
