"""What a training takes, from arithmetic: operations, seconds, bytes, money.

Seconds of a step on one GPU: pictures x (TFLOP / (SHARE x peak) + FIXED x A100 / peak) + STEP. The three constants were fitted
to MosaicML's table of Stable Diffusion 2 on 8 to 128 A100s (github.com/mosaicml/diffusion), which they meet within 15 %: they
stand for a trainer as good as that one. On an H100 the best published figure (MLPerf v4.1) is a third higher than theirs. A
probe on the device itself is worth more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.records import Gpu

SHARE = 0.295  # of a GPU's dense bf16 peak that a good trainer reaches
FIXED = 1.41e-3  # seconds a picture on an A100 that do not grow with the picture
STEP = 0.04  # seconds a step: launches, optimizer, talk between GPUs
A100 = 312.0  # TFLOP/s, dense bf16
GIB = 2**30
CONTEXT = 1 * GIB  # what CUDA itself takes

MOSAIC_PICTURES = ((256, 1_126_400_000), (512, 1_740_800_000))  # Stable Diffusion 2 base: pixels, pictures
MOSAIC_BATCH, MOSAIC_PRICE = 2048, 2.0  # global batch; dollars an A100-hour
MOSAIC = {  # GPUs: pictures a second at 256 and 512 pixels, days, dollars
    8: (1100, 290, 81.33, 31_230), 16: (2180, 585, 40.42, 31_043), 32: (4080, 1195, 20.06, 30_805),
    64: (8530, 2340, 10.14, 31_146), 128: (11_600, 4590, 5.51, 33_874),
}  # fmt: skip
PUBLISHED = (("Stable Diffusion 1", "150,000 A100-hours, about $600,000"), ("Stable Diffusion 2", "200,000 A100-hours"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one step puts on a machine."""

    tflop: float  # forward and backward of one picture
    pictures: int  # a step
    micro: int  # of them at a time
    trained: int  # parameters
    frozen: int
    kept: int  # bytes of activations of one picture that the backward pass wants
    recomputed: int  # the same with gradient checkpointing


@dataclass(frozen=True, slots=True, kw_only=True)
class Thrift:
    """Ways to need less memory, each of which leaves the mathematics alone; but without all gradients there is no clipping."""

    gradient_checkpointing: bool = False
    use_8bit_adam: bool = False
    ema_on_cpu: bool = False
    ema: bool = True
    fused_backward: bool = False
    one_at_a_time: bool = False

    def words(self) -> str:
        """The keys of `[training]` that ask for it."""
        asked = [f"{n} = true" for n in ("gradient_checkpointing", "use_8bit_adam", "ema_on_cpu") if getattr(self, n)]
        asked += ["fused_backward = true and no max_grad_norm"] if self.fused_backward else []
        return ", ".join([*asked, *(["batch_size = 1 and more accumulation"] if self.one_at_a_time else [])])


def memory(load: Load, thrift: Thrift) -> int:
    """Bytes on a GPU at the peak of a step, or less: float32 weights, gradients, Adam's two averages, EMA, activations."""
    adam = 2 if thrift.use_8bit_adam else 8
    ema = 4 if thrift.ema and not thrift.ema_on_cpu else 0
    activations = load.recomputed if thrift.gradient_checkpointing else load.kept
    pictures = 1 if thrift.one_at_a_time else load.micro
    gradients = 0 if thrift.fused_backward and pictures == load.pictures else 4  # those of several passes are added up
    return load.trained * (4 + gradients + adam + ema) + load.frozen * 4 + activations * pictures + CONTEXT


def thrifty_enough(load: Load, first: Thrift, gpu: Gpu) -> Thrift | None:
    """The first way, from what is asked for towards less memory, that fits into `gpu`; None where none does."""
    own = {name: getattr(first, name) for name in Thrift.__slots__}
    way: dict[str, bool] = {}
    for name in ("", "gradient_checkpointing", "use_8bit_adam", "ema_on_cpu", "fused_backward", "one_at_a_time"):
        if name == "fused_backward" and load.micro < load.pictures:
            continue  # gradients of several passes are added up
        way |= {name: True} if name else {}
        way |= {"fused_backward": False} if name == "one_at_a_time" else {}
        thrift = Thrift(**own | way)
        if memory(load, thrift) <= gpu.memory_gib * GIB:
            return thrift
    return None


def step_seconds(tflop: float, pictures: float, peak: float) -> float:
    """Seconds of a step of `pictures` on a GPU of `peak` TFLOP/s."""
    return pictures * (tflop / (SHARE * peak) + FIXED * A100 / peak) + STEP


def on_gpu(load: Load, thrift: Thrift, steps: int, gpu: Gpu) -> tuple[float, float]:
    """Hours and dollars of a run on `gpu`; a forward pass that is done twice makes it a third longer."""
    tflop = load.tflop * (4 / 3 if thrift.gradient_checkpointing else 1)
    hours = steps * step_seconds(tflop, load.pictures, gpu.tflops) / 3600
    return hours, hours * gpu.dollars_an_hour


def mosaic_estimate(tflop: Sequence[float], gpus: int) -> tuple[float, float, float, float]:
    """Pictures a second at both sizes, days and dollars, as MosaicML's table has them; `tflop` a picture at both sizes."""
    speeds = [MOSAIC_BATCH / step_seconds(f, MOSAIC_BATCH / gpus, A100) for f in tflop]
    seconds = sum(pictures / speed for (_, pictures), speed in zip(MOSAIC_PICTURES, speeds, strict=True))
    return speeds[0], speeds[1], seconds / 86400, seconds / 3600 * gpus * MOSAIC_PRICE


def from_scratch(tflop: Sequence[float], gpu: Gpu, gpus: int) -> tuple[float, float]:
    """GPU-hours and dollars of teaching Stable Diffusion 2 base anew on cached latents."""
    seconds = sum(
        pictures / MOSAIC_BATCH * step_seconds(f, MOSAIC_BATCH / gpus, gpu.tflops)
        for f, (_, pictures) in zip(tflop, MOSAIC_PICTURES, strict=True)
    )
    hours = seconds / 3600 * gpus
    return hours, hours * gpu.dollars_an_hour


def span(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.4 h, 5.5 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
