"""The painter: from prompts and seeds to pictures, in batches, with classifier-free guidance (Ho & Salimans 2022)."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.edges.models import Models

Unet = Callable[..., Any]  # (latents (b, c, h, w), timestep, encoder_hidden_states=, return_dict=False) -> (prediction,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One picture to be painted."""

    prompt: str
    seed: int
    negative_prompt: str = ""


def start_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Float32 (1, c, h, w): the same numbers that a diffusers pipeline draws from `torch.Generator().manual_seed(seed)`."""
    return torch.randn((1, channels, height, width), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def paint_latents(
    models: Models,
    orders: Sequence[Order],
    *,
    steps: int,
    guidance_scale: float,
    batch_size: int = 16,
    side: int | None = None,
    unet: Unet | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
    on_step: Callable[[int, Tensor], None] = lambda step, latents: None,
) -> Tensor:
    """Scaled latents (orders, c, h, w), float32.

    `unet` stands in for the model's own: the same in bf16, or compiled. `on_batch` hears how many pictures each batch
    finished, `on_step` sees a batch's latents before the first step (0) and after each.
    """
    width = side or int(models.unet.config.sample_size)
    done: dict[int, Tensor] = {}
    for places in _alike(models, orders, batch_size):
        batch = [orders[i] for i in places]
        latents = _denoise(models, unet or models.unet, batch, steps, guidance_scale, width, on_step).cpu()
        done |= dict(zip(places, latents, strict=True))
        on_batch(len(batch))
    return torch.stack([done[i] for i in range(len(orders))])


def _alike(models: Models, orders: Sequence[Order], most: int) -> Iterator[list[int]]:
    """Numbers of the orders whose texts take as many pieces, at most so many at a time: company changes no picture."""
    groups: dict[int, list[int]] = {}
    for i, order in enumerate(orders):
        groups.setdefault(_pieces(models, order), []).append(i)
    for group in groups.values():
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _pieces(models: Models, order: Order) -> int:
    return max(models.pieces(order.prompt), models.pieces(order.negative_prompt))


def paint(
    models: Models,
    orders: Sequence[Order],
    *,
    steps: int,
    guidance_scale: float,
    batch_size: int = 16,
    unet: Unet | None = None,
    side: int | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """uint8 pictures (H, W, 3), one for each order, in order; arguments as in `paint_latents`."""
    latents = paint_latents(
        models, orders, steps=steps, guidance_scale=guidance_scale, batch_size=batch_size, unet=unet, side=side,
        on_batch=on_batch,
    )  # fmt: skip
    return decoded(models, latents, batch_size)


def decoded(models: Models, latents: Tensor, batch_size: int) -> list[np.ndarray]:
    """uint8 pictures (H, W, 3) of scaled latents (pictures, c, h, w)."""
    return [picture for part in latents.split(batch_size) for picture in models.decode(part)]


def _denoise(
    models: Models, unet: Unet, batch: Sequence[Order], steps: int, guidance_scale: float, side: int,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:  # fmt: skip
    device = models.device
    scheduler = models.scheduler()
    scheduler.set_timesteps(steps, device=device)
    noise = [start_noise(order.seed, models.unet.config.in_channels, side, side) for order in batch]
    latents = torch.cat(noise).to(device) * scheduler.init_noise_sigma
    # Ancestral samplers draw noise at each step: one generator a picture, so that company changes nothing.
    generators = [torch.Generator().manual_seed(order.seed + 1) for order in batch]
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    guided = guidance_scale > 1
    pieces = _pieces(models, batch[0])
    states = models.embed([order.prompt for order in batch], pieces)
    if guided:
        states = torch.cat([models.embed([order.negative_prompt for order in batch], pieces), states])
    beside = _told(models, batch, pieces, guided, side)
    on_step(0, latents)
    for number, timestep in enumerate(scheduler.timesteps, 1):
        rows = torch.cat([latents, latents]) if guided else latents
        seen = scheduler.scale_model_input(rows, timestep)
        prediction = unet(seen, timestep, encoder_hidden_states=states, return_dict=False, **beside)[0]
        if guided:
            without, along = prediction.chunk(2)
            prediction = without + guidance_scale * (along - without)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        on_step(number, latents)
    return latents


def _told(models: Models, batch: Sequence[Order], pieces: int, guided: bool, side: int) -> dict[str, dict[str, Tensor]]:
    """What a Stable Diffusion XL is told beside the states: each text as a whole, and a picture of that size, whole."""
    if not models.is_xl:
        return {}
    whole = models.pooled([order.prompt for order in batch], pieces)
    if guided:
        whole = torch.cat([models.pooled([order.negative_prompt for order in batch], pieces), whole])
    pixels = float(side * models.pixels_per_latent)
    sizes = torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]], device=models.device).expand(len(whole), -1)
    return {"added_cond_kwargs": {"text_embeds": whole, "time_ids": sizes}}
