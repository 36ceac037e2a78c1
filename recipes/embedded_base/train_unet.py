"""Stage 4: the U-Net, from scratch, on two CPU cores (or one, or more) for as many minutes as it is given.

Each worker is one single-threaded process (two OpenMP threads in one process collapse when anything else runs). Parameters,
gradients and optimizer state lie in shared memory; every worker computes the gradient of its part of the batch, then updates
its share of the parameters, so that the sum is one exact large-batch step without a copy over a socket.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from . import icons, scenes

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
SHARD, REUSE, DROPOUT, EMA_HALF_LIFE = 6144, 3, 0.1, 800  # pictures, passes, share of captions, steps
DECAY_SHARE = 0.55  # of the time given: the learning rate falls to zero over it


def flatten(module: torch.nn.Module, shared: torch.Tensor) -> None:
    """Make all parameters of `module` views into one shared vector."""
    at = 0
    for parameter in module.parameters():
        view = shared[at : at + parameter.numel()].view_as(parameter)
        view.copy_(parameter.data)
        parameter.data = view
        at += parameter.numel()


def shard_of(number: int, part: int, parts: int, vae, art, pairs, styles) -> tuple[torch.Tensor, list[str]]:
    """Latents (SHARD / parts, 4, 16, 16), scaled, and captions of one worker's part of shard `number`."""
    latents, captions, pixels = [], [], []
    for index in range(number * SHARD + part, (number + 1) * SHARD, parts):
        rng = np.random.default_rng([29, index])
        scene = scenes.draw_scene(rng, pairs)
        pixels.append(scenes.paint_scene(rng, scene, art))
        captions.append(scenes.describe(rng, scene, styles))
        if len(pixels) == 64 or index + parts >= (number + 1) * SHARD:
            batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents.append(vae.encode(batch).latent_dist.mean.float() * vae.config.scaling_factor)
            pixels = []
    return torch.cat(latents), captions


def worker(rank: int, world: int, args: argparse.Namespace, vectors: dict[str, torch.Tensor], clock, barrier) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(100 + rank)
    out = args.out
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    styles = {name: about["style"] for name, about in icons.SETS.items()}
    art = icons.load_icons(args.downloads, [n for n, a in icons.SETS.items() if a["used_by"] == "generator"])
    pairs = list(art)
    unet = UNet2DConditionModel(**CONFIG)
    unet.set_attn_processor(AttnProcessor())
    offset = 0
    for parameter in unet.parameters():
        parameter.data = vectors["weights"][offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    forward = torch.compile(unet, dynamic=False) if args.compile else unet
    total = vectors["weights"].numel()
    share = slice(total * rank // world, total * (rank + 1) // world)
    mine, average, first, second = (vectors[k][share] for k in ("weights", "ema", "first", "second"))
    per_worker = args.batch // world
    shard_number, losses, last = -1, [], time.time()
    parent = os.getppid()
    while clock["seconds"] < args.minutes * 60 and os.getppid() == parent:  # an orphan must not go on writing
        step = int(clock["step"])
        wanted = step * args.batch // (SHARD * REUSE)
        if wanted != shard_number:
            shard_number = wanted
            latents, captions = shard_of(shard_number, rank, world, vae, art, pairs, styles)
        rng = torch.Generator().manual_seed(step * world + rank)
        pick = torch.randint(len(latents), (per_worker,), generator=rng)
        x0 = latents[pick]
        prompts = [
            captions[i] if keep else ""
            for i, keep in zip(pick.tolist(), (torch.rand(per_worker, generator=rng) >= DROPOUT).tolist(), strict=True)
        ]
        ids = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        noise = torch.randn(x0.shape, generator=rng)
        # Stratified over the global batch: row k draws its timestep from the k-th of `batch` equal bands.
        band = (torch.arange(per_worker) * world + rank + torch.rand(per_worker, generator=rng)) / args.batch
        t = (band * 1000).long().clamp(max=999)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states = text_encoder(ids).last_hidden_state
            prediction = forward(noisy, t, states, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), target)
        grads = torch.autograd.grad(loss, list(unet.parameters()))
        torch.cat([g.reshape(-1) for g in grads], out=vectors[f"grad{rank}"])
        barrier.wait()
        # --- the optimizer: AdamW over this worker's share, gradients averaged over the workers, clipped by the global norm.
        grad = torch.stack([vectors[f"grad{r}"][share] for r in range(world)]).mean(0)
        vectors["norms"][rank] = grad.square().sum()
        barrier.wait()
        norm = float(vectors["norms"][:world].sum().sqrt())
        grad *= min(1.0, 1.0 / (norm + 1e-6))
        left = 1 - clock["seconds"] / (args.minutes * 60)
        lr = args.lr * min(1, (step + 1) / 300) * min(1.0, max(0.01, float(left)) / DECAY_SHARE)
        first.lerp_(grad, 0.1)
        second.lerp_(grad.square(), 0.001)
        correction = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        mine.mul_(1 - lr * 0.01).addcdiv_(first, second.sqrt().add_(1e-8), value=-lr * correction)
        average.lerp_(mine, 1 - min(0.5 ** (1 / EMA_HALF_LIFE), (1 + step) / (10 + step)))
        losses.append(loss.item())
        barrier.wait()
        if rank == 0:
            now = time.time()
            clock["step"] += 1
            clock["seconds"] += min(now - last, 30.0)
            last = now
            if (step + 1) % args.log_every == 0:
                done = int(clock["step"])
                row = dict(
                    step=done,
                    images=done * args.batch,
                    loss=float(np.mean(losses)),
                    norm=norm,
                    lr=lr,
                    minutes=float(clock["seconds"]) / 60,
                )
                losses = []
                with (out / "unet.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(row, flush=True)
            if (step + 1) % args.save_every == 0:
                save(out, vectors, clock)
        barrier.wait()
    if rank == 0:
        save(out, vectors, clock)


def save(out: Path, vectors: dict[str, torch.Tensor], clock) -> None:
    """State to a temporary name, then renamed; the averaged weights as a diffusers folder."""
    kept = {k: vectors[k] for k in ("weights", "ema", "first", "second")} | {k: clock[k] for k in ("step", "seconds")}
    torch.save(kept, out / "unet_state.tmp")
    (out / "unet_state.tmp").replace(out / "unet_state.pt")
    unet = UNet2DConditionModel(**CONFIG)
    at = 0
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(vectors["ema"][at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
    unet.half().save_pretrained(out / "unet")
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**CONFIG)
    total = sum(p.numel() for p in unet.parameters())
    print(f"{total / 1e6:.2f} M parameters", flush=True)
    names = ["weights", "ema", "first", "second", *(f"grad{r}" for r in range(args.workers))]
    vectors = {name: torch.zeros(total).share_memory_() for name in names}
    vectors["norms"] = torch.zeros(args.workers).share_memory_()
    clock = {k: torch.zeros((), dtype=torch.float64).share_memory_() for k in ("step", "seconds")}
    flatten(unet, vectors["weights"])
    vectors["ema"].copy_(vectors["weights"])
    if (args.out / "unet_state.pt").exists():
        state = torch.load(args.out / "unet_state.pt", weights_only=True)
        for target in (vectors, clock):
            for name in target.keys() & state.keys():
                target[name].copy_(state[name])
    context = mp.get_context("spawn")
    barrier = context.Barrier(args.workers)
    workers = [
        context.Process(target=worker, args=(r, args.workers, args, vectors, clock, barrier)) for r in range(args.workers)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()


if __name__ == "__main__":
    main()
