"""Stage 1 of the embedded base: the autoencoder (f=4, four latent channels)."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from . import icons, scenes

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=64, norm_num_groups=2, layers_per_block=1,
    block_out_channels=(24, 48, 96), down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False, force_upcast=False,
)  # fmt: skip


def batch_of(step: int, size: int, art: dict, pairs: list) -> torch.Tensor:
    """Float tensor (size, 3, 64, 64) in -1..1; the same for the same step."""
    rng = np.random.default_rng([11, step])
    pictures = [scenes.paint_scene(rng, scenes.draw_scene(rng, pairs), art) for _ in range(size)]
    return (
        torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last) / 127.5
        - 1
    )


def loss_of(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss and the reconstruction (formula in the recipe's README)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
    rebuilt, mean, logvar = rebuilt.float(), posterior.mean.float(), posterior.logvar.float()
    edges = sum((rebuilt.diff(dim=d) - pixels.diff(dim=d)).abs().mean() for d in (2, 3))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    thumbnail = F.mse_loss(mean[:, :3], 2 * F.avg_pool2d(pixels, 4))
    loss = F.l1_loss(rebuilt, pixels) + 2 * F.mse_loss(rebuilt, pixels) + 0.1 * edges + 1e-4 * kl + 0.3 * thumbnail
    return loss, rebuilt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = icons.of_the_generator()
    art = icons.load_icons(args.downloads, sets) | icons.load_broad(args.downloads, sets, 400)
    pairs = list(art)
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    print(f"{len(art)} icons, {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state_file, first = args.out / "vae_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    held_out = batch_of(10**9, 64, art, pairs)
    started = time.time()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1, (step + 1) / 100) * float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / args.steps)))
            )
        loss, _ = loss_of(vae, batch_of(step, args.batch, art, pairs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                latents = vae.encode(held_out).latent_dist.mean
                rebuilt = vae.decode(latents).sample
            psnr = float(-10 * torch.log10(F.mse_loss(rebuilt, held_out) / 4))
            row = dict(step=step + 1, loss=loss.item(), psnr=psnr, mean=latents.mean((0, 2, 3)).tolist(),
                       std=latents.std((0, 2, 3)).tolist(), seconds=time.time() - started)  # fmt: skip
            with (args.out / "vae.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            torch.save({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, state_file)
            both = torch.cat([held_out[:16], rebuilt[:16].clamp(-1, 1)]).permute(0, 2, 3, 1)
            rows = (
                ((both + 1) * 127.5)
                .round()
                .byte()
                .numpy()
                .reshape(4, 8, 64, 64, 3)
                .transpose(0, 2, 1, 3, 4)
                .reshape(256, 512, 3)
            )
            Image.fromarray(rows).resize((1536, 768)).save(args.out / "vae.png")
    with torch.no_grad():
        latents = vae.encode(batch_of(10**9 + 1, 512, art, pairs)).latent_dist.mean
    recentre(vae, latents)
    vae.save_pretrained(args.out / "vae")


@torch.no_grad()
def recentre(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Fold the mean and the spread of each latent channel into the 1x1 convolutions around the latent space.

    Stable Diffusion's pipeline knows a scaling factor and no shift, so the latents themselves must be centred. The
    pictures stay the same; every channel gets mean 0 and the same spread, and `scaling_factor` makes that one.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    spread = latents.std()
    gain, channels = spread / std, latents.shape[1]
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= gain[None, :, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) * gain
    before.weight[:channels] *= gain[:, None, None, None]
    before.bias[channels:] += 2 * gain.log()
    vae.register_to_config(scaling_factor=1.0 / float(spread))


if __name__ == "__main__":
    main()
