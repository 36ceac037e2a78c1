"""What the U-Net of one model is asked for, and how far off it is: of each row, and of held-out pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovetail.config import HELD_OUT_TIMESTEPS, Training
from dovetail.core import diffusion, randomness
from dovetail.edges.models import Models
from dovetail.engines.material import Item, Material, Row, added

BANDS = HELD_OUT_TIMESTEPS


@dataclass(frozen=True, slots=True)
class Objective:
    """The forward process of one model."""

    alphas: Tensor
    prediction: diffusion.Prediction
    scaling: float
    device: torch.device
    # captions and pieces -> states, and wholes of a Stable Diffusion XL, where its text encoders learn too
    read: Callable[[list[str], int], tuple[Tensor, Tensor | None]] | None = None
    tokens: int = 0  # that it reads at a time

    @classmethod
    def of(cls, models: Models) -> "Objective":
        """Read from the model's own scheduler and VAE."""
        scheduler = models.scheduler()
        alphas, prediction = scheduler.alphas_cumprod.to(models.device), scheduler.config.prediction_type
        return cls(alphas, prediction, float(models.vae_shape["scaling_factor"]), models.device)

    def losses(self, unet: torch.nn.Module, rows: Sequence[Row], dream: float | None = None) -> Tensor:
        """Loss of each row, float32 (rows,): the U-Net sees the noise that is mixed in and is asked for the row's own.

        `dream` p is DREAM (Zhou et al. 2023, sec. 4): the U-Net's own error, by (1 - a)^(p/2), is first added to both.
        """
        clean, noise, mixed_in, states = (
            _there(torch.stack([getattr(r, name) for r in rows]), self.device)
            for name in ("latents", "noise", "mixed_in", "states")
        )
        timesteps = _there(torch.tensor([r.timestep for r in rows]), self.device)
        extra = conditions([r.added for r in rows], self.device)
        if self.read:
            states, whole = self.read([r.caption for r in rows], len(rows[0].states) // self.tokens)
            if whole is not None and extra:
                extra["added_cond_kwargs"]["text_embeds"] = whole

        def said(seen: Tensor) -> Tensor:
            return unet(seen, timesteps, encoder_hidden_states=states, return_dict=False, **extra)[0]

        seen = diffusion.noisy(clean, mixed_in, timesteps, self.alphas)
        if dream is not None:
            with torch.no_grad():
                heard = diffusion.predicted_noise(said(seen).float(), seen, timesteps, self.alphas, self.prediction)
            shift = (noise - heard) * (1 - self.alphas[timesteps]).pow(dream / 2).view(-1, 1, 1, 1)
            noise, mixed_in = noise + shift, mixed_in + shift
            seen = diffusion.noisy(clean, mixed_in, timesteps, self.alphas)
        wanted = diffusion.target(clean, noise, timesteps, self.alphas, self.prediction)
        return diffusion.loss_per_sample(said(seen), wanted)

    def weighted(self, losses: Tensor, rows: Sequence[Row], snr_gamma: float | None) -> Tensor:
        """The losses (rows,), by min-SNR weights where a gamma is given."""
        if snr_gamma is None:
            return losses
        timesteps = _there(torch.tensor([r.timestep for r in rows]), losses.device)
        return losses * diffusion.min_snr_weights(timesteps, self.alphas, self.prediction, snr_gamma)


def conditions(added: Sequence[Tensor | None], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """How a U-Net of Stable Diffusion XL is told rows (width + 6,) of wholes and sizes; nothing for other U-Nets."""
    told = [row for row in added if row is not None]
    if not told:
        return {}
    rows = _there(torch.stack(told), device)
    return {"added_cond_kwargs": {"text_embeds": rows[:, :-6], "time_ids": rows[:, -6:]}}


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; a GPU fetches it from pinned memory while it works on what it was given before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def training_losses(objective: Objective, unet: torch.nn.Module, rows: Sequence[Row], config: Training) -> Tensor:
    """Loss of each row as the training weighs it."""
    return objective.weighted(objective.losses(unet, rows, config.dream), rows, config.snr_gamma)


@torch.no_grad()
def held_out_losses(
    unet: torch.nn.Module, objective: Objective, items: Sequence[Item], material: Material
) -> dict[str, list[float]]:
    """Item name -> loss at each of `BANDS` fixed timesteps, on noise = f(picture, timestep): no draw is left to chance."""
    probes = diffusion.probe_timesteps(BANDS, len(objective.alphas)).tolist()
    unet.eval()
    found = {}
    for item in items:
        clean, words = item.still(objective.scaling), material.states(item.caption)
        told = added(item.caption, None if item.sizes is None else item.sizes[0], material)
        drawn = [torch.randn(clean.shape, generator=randomness.generator(0, "held out", item.name, b)) for b in range(BANDS)]
        rows = [
            Row(latents=clean, noise=noise, mixed_in=noise, states=words, timestep=t, caption=item.caption, added=told)
            for noise, t in zip(drawn, probes, strict=True)
        ]
        found[item.name] = [round(x, 6) for x in objective.losses(unet, rows).tolist()]
    return found
