"""Stage 2: the autoencoder (f=4, four latent channels), first whole, then its decoder alone.

`whole` trains both halves; what the U-Net learns depends on the encoder alone. `decoder` goes on with the decoder, the encoder
frozen, so it may run at any later time: the latents stay what they were and the pictures get sharper.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from dovetail.edges import pixels
from dovetail.engines.encoder import as_pixels

from . import icons, scenes
from .whole import whole

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=64, norm_num_groups=2, layers_per_block=1,
    block_out_channels=(24, 48, 96), down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False, force_upcast=False,
)  # fmt: skip
BATCH, BROAD = 16, 400  # pictures a step; icons of each set beyond the vocabulary
HELD_OUT, CENTRED = 64, 512  # pictures that are measured on, and that latents are recentred by
STEPS, RATES = {"whole": 7500, "decoder": 12_000}, {"whole": 2e-3, "decoder": 1e-3}
WANDER = 0.03  # spread of the noise on the decoder's latents: a painter's latents are never quite right


def batch_of(step: int, size: int, art: dict, pairs: list) -> Tensor:
    """Float tensor (size, 3, 64, 64) in -1..1; the same for the same step."""
    rng = np.random.default_rng([11, step])
    pictures = [scenes.paint_scene(rng, scenes.draw_scene(rng, pairs), art) for _ in range(size)]
    return as_batch(pictures).contiguous(memory_format=torch.channels_last)


def as_batch(pictures: Sequence[np.ndarray]) -> Tensor:
    """Float tensor (pictures, 3, H, W) in -1..1 of uint8 pictures (H, W, 3)."""
    return as_pixels(np.stack(pictures))


@torch.no_grad()
def there_and_back(vae: AutoencoderKL, batch: Tensor) -> tuple[Tensor, float]:
    """What the autoencoder makes of pictures (b, 3, H, W), and the PSNR in dB."""
    rebuilt = torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample.clamp(-1, 1) for b in batch.split(64)])
    return rebuilt, float(-10 * torch.log10(F.mse_loss(rebuilt, batch) / 4))


def faults(rebuilt: Tensor, wanted: Tensor) -> Tensor:
    """L1 + 2 L2 + 0.1 L1 of the differences between neighbours."""
    edges = sum((rebuilt.diff(dim=d) - wanted.diff(dim=d)).abs().mean() for d in (2, 3))
    return F.l1_loss(rebuilt, wanted) + 2 * F.mse_loss(rebuilt, wanted) + 0.1 * edges


def loss_whole(vae: AutoencoderKL, wanted: Tensor) -> Tensor:
    """`faults` + 1e-4 KL + 0.3 thumbnail: the first three latents are to be the picture made small, times two."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(wanted).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    thumbnail = F.mse_loss(mean[:, :3], 2 * F.avg_pool2d(wanted, 4))
    return faults(rebuilt.float(), wanted) + 1e-4 * kl + 0.3 * thumbnail


def loss_decoder(vae: AutoencoderKL, wanted: Tensor) -> Tensor:
    """L1 + 8 L2 of what is decoded from the frozen encoder's latents, moved a little: large faults first."""
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            latents = vae.encode(wanted).latent_dist.mean
            latents = latents + torch.randn_like(latents) * WANDER / vae.config.scaling_factor
        rebuilt = vae.decode(latents).sample.float()
    return F.l1_loss(rebuilt, wanted) + 8 * F.mse_loss(rebuilt, wanted)


def rate(part: str, step: int) -> float:
    """A warm-up over 100 steps, then a cosine to a fiftieth."""
    return RATES[part] * min(1, (step + 1) / 100) * float(0.02 + 0.49 * (1 + np.cos(np.pi * step / STEPS[part])))


def train(part: str, vae: AutoencoderKL, art: dict, out: Path) -> None:
    """All steps of one part; goes on from the state in `out` where there is one."""
    pairs = list(art)
    halves = (vae.decoder, vae.post_quant_conv) if part == "decoder" else (vae,)
    parameters = [p for half in halves for p in half.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATES[part], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state_file, first = out / f"vae_{part}_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    held_out = batch_of(10**9, HELD_OUT, art, pairs)
    loss_of = loss_whole if part == "whole" else loss_decoder
    started, shift = time.time(), 0 if part == "whole" else 10**6
    for step in range(first, STEPS[part]):
        for group in optimizer.param_groups:
            group["lr"] = rate(part, step)
        loss = loss_of(vae, batch_of(shift + step, BATCH, art, pairs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 500 == 0 or step + 1 == STEPS[part]:
            note(part, step + 1, loss.item(), vae, held_out, time.time() - started, out)
            torch.save({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, state_file)


@torch.no_grad()
def note(part: str, step: int, loss: float, vae: AutoencoderKL, held_out: Tensor, seconds: float, out: Path) -> None:
    """A line in `vae.jsonl`, and 16 held-out composites above what comes back of them."""
    rebuilt, psnr = there_and_back(vae, held_out)
    row = dict(
        part=part, step=step, of=STEPS[part], loss=loss, psnr=psnr, seconds=seconds, left=seconds / step * (STEPS[part] - step)
    )
    with (out / "vae.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)
    both = torch.cat([held_out[:16], rebuilt[:16]]).permute(0, 2, 3, 1)
    sheet = pixels.grid(list(((both + 1) * 127.5).round().byte().numpy()), 8, gap=0)
    (out / f"vae-{part}.png").write_bytes(pixels.png(pixels.enlarged(sheet, 3)))


@torch.no_grad()
def recentre(vae: AutoencoderKL, latents: Tensor) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["whole", "decoder"])
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = icons.of_the_generator()
    art = icons.load_icons(args.downloads, sets) | icons.load_broad(args.downloads, sets, BROAD)
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG) if args.part == "whole" else AutoencoderKL.from_pretrained(args.out / "vae")
    vae = vae.to(memory_format=torch.channels_last)
    print(f"{args.part}: {len(art)} icons, {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters", flush=True)
    train(args.part, vae, art, args.out)
    if args.part == "whole":
        with torch.no_grad():
            recentre(vae, vae.encode(batch_of(10**9 + 1, CENTRED, art, list(art))).latent_dist.mean)
    with whole(args.out / ("vae" if args.part == "whole" else "vae-sharp")) as folder:
        vae.save_pretrained(folder)


if __name__ == "__main__":
    main()
