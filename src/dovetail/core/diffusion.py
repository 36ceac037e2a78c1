"""The forward process and what the U-Net is asked to predict.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e  (Ho et al. 2020, eq. 4), with a_t the cumulative product of the alphas.
"""

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


def _like(values: Tensor, shape: Tensor) -> Tensor:
    return values.view(-1, *([1] * (shape.ndim - 1)))


def noisy(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t, shape (b, c, h, w), from clean latents and noise of that shape and integer timesteps (b,)."""
    a = _like(alphas_cumprod[timesteps], latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction) -> Tensor:
    """What the U-Net should say: noise, clean latents, or v = sqrt(a) e - sqrt(1 - a) x_0 (Salimans & Ho 2022, app. D)."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return latents
    a = _like(alphas_cumprod[timesteps], latents)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def predicted_noise(said: Tensor, seen: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction) -> Tensor:
    """The noise (b, c, h, w) that a prediction `said` of the noisy latents `seen` stands for.

    For clean latents it is (x_t - sqrt(a) x_0) / sqrt(1 - a); for v, sqrt(a) v + sqrt(1 - a) x_t.
    """
    if prediction == "epsilon":
        return said
    a = _like(alphas_cumprod[timesteps], said)
    if prediction == "sample":
        return (seen - a.sqrt() * said) / (1 - a).sqrt()
    return a.sqrt() * said + (1 - a).sqrt() * seen


def stratified_timesteps(offsets: Tensor, count: int) -> Tensor:
    """One timestep from each of `b` equal bands of 0..count-1; `offsets` (b,) in [0, 1) place it inside its band."""
    b = offsets.numel()
    return ((torch.arange(b) + offsets) / b * count).long().clamp_(max=count - 1)


def probe_timesteps(bands: int, count: int) -> Tensor:
    """The middles of `bands` equal bands: the fixed timesteps of a held-out loss."""
    return ((torch.arange(bands) + 0.5) / bands * count).long()


def sampled_latents(moments: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """Scaled latents (b, c, h, w) from VAE moments (b, 2c, h, w): mean and clamped log-variance (Kingma & Welling 2013)."""
    mean, logvar = moments.chunk(2, dim=1)
    return (mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * noise) * scaling_factor


def loss_per_sample(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each sample, shape (b,), in float32."""
    return (prediction.float() - wanted.float()).square().flatten(1).mean(1)


def snr(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio a / (1 - a) of each timestep, float32 (b,); zero at a terminal that is pure noise."""
    a = alphas_cumprod[timesteps].double()
    return (a / (1 - a)).float()


def min_snr_weights(timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction, gamma: float) -> Tensor:
    """Loss weight of each sample (b,) (Hang et al. 2023, sec. 3.4): min(SNR, gamma), as each target has it.

    For the noise divided by SNR, for v by SNR + 1. Where the SNR is zero the first is 0 / 0; its limit, 1, is taken.
    """
    ratio = snr(timesteps, alphas_cumprod)
    capped = ratio.clamp(max=gamma)
    if prediction == "sample":
        return capped
    if prediction == "v_prediction":
        return capped / (ratio + 1)
    return torch.where(ratio > 0, capped / ratio.clamp(min=torch.finfo(ratio.dtype).tiny), torch.ones_like(ratio))
