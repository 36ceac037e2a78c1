"""A loaded model, ready to paint: what is served, its text states, pictures in and out, the fastest engine for its U-Net."""

import contextlib
import json
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.edges import adapters, machine, openvino, pixels
from dovetail.edges.folders import digest_file, write_json
from dovetail.edges.models import Models, in_bf16
from dovetail.engines import drawings, reader
from dovetail.errors import BadConfigError
from dovetail.wishes import Served, Wish

REMEMBERED = 256  # texts whose states are kept
TRIALS = 3  # of each engine, at the start
QUICK_SECONDS = 0.1  # of a decoder that also makes the previews
PADDED = 8  # rows of a call on a GPU, whose kernels are chosen by their number


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the U-Net is told beside the latents: one row for each of a picture's own, the unguided one first."""

    states: Tensor  # (rows, tokens, width)
    pooled: Tensor | None = None  # (rows, width), in a Stable Diffusion XL
    sizes: Tensor | None = None  # (rows, 6)
    shift: Tensor | None = None  # float32 (rows,), of a LoRA scale that is not 1: how far it is from there


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What paints at other LoRA scales than 1."""

    unet: Callable[..., Any]  # called like the plain one, and told `lora_shift`
    texts: Mapping[str, adapters.Pairs]  # by the text encoders that were taught


class Revision:
    """One model in memory. `predict` may be called by one thread, `scaled` and `rest` by any, the others by one other."""

    def __init__(self, models: Models, served: Served, engine: str = "auto", kept: Path | None = None) -> None:
        self.models, self.served = models, served
        self.config: dict[str, Any] = dict(models.scheduler().config)
        self._colours: Tensor | None = None
        self._decode_seconds = 0.0
        self._states: OrderedDict[tuple[str, int, float], Told] = OrderedDict()
        self._lora: Lora | None = None  # at the first use
        self._kept, self._lock = kept, threading.Lock()
        self.engine, self._unet, self.rate = fastest(models, engine, kept)
        self.channels = int(models.shape["in_channels"])
        if self.engine == "openvino":
            models.forget("unet")  # it has weights of its own
        for part in ("vae", *models.encoders):
            getattr(models, part)  # now, and not while the first picture waits
        machine.give_memory_back()
        self.invariant = self.engine == "openvino"  # rows do not notice each other, to the last bit

    def pieces(self, wish: Wish) -> int:
        """How many passes of the text encoder its texts take."""
        return max(reader.pieces(self.models, text) for text in (wish.prompt, wish.negative_prompt))

    def told(self, wish: Wish) -> Told:
        """Text states of a wish; each text is read alone and remembered, so that company changes nothing."""
        pieces = self.pieces(wish)
        texts = [wish.negative_prompt, wish.prompt] if wish.guidance_scale > 1 else [wish.prompt]
        scaled = wish.lora_scale != 1
        taught = self.scaled().texts if scaled else {}
        read = [self._read(text, pieces, taught, wish.lora_scale if taught else 1.0) for text in texts]
        states, device = torch.cat([r.states for r in read]), self.models.device
        shift = torch.full((len(texts),), wish.lora_scale - 1, device=device) if scaled else None
        if not self.models.is_xl:
            return Told(states=states, shift=shift)
        whole = [r.pooled for r in read if r.pooled is not None]
        size = [float(wish.height), float(wish.width), 0.0, 0.0, float(wish.height), float(wish.width)]
        sizes = torch.tensor([size] * len(texts), device=device)
        return Told(states=states, pooled=torch.cat(whole), sizes=sizes, shift=shift)

    def _read(self, text: str, pieces: int, taught: Mapping[str, adapters.Pairs], scale: float) -> Told:
        key = (text, pieces, scale)
        if key not in self._states:
            with contextlib.ExitStack() as within:
                for part, pairs in taught.items():
                    shift = torch.full((1,), scale - 1, device=self.models.device)
                    within.enter_context(adapters.shifted(getattr(self.models, part), pairs, shift))
                self.models.forget("_remembered")  # that was read at another scale
                states, whole = reader.read(self.models, text, pieces)
            self._states[key] = Told(states=states, pooled=whole)
            while len(self._states) > REMEMBERED:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        return self._states[key]

    @torch.no_grad()
    def encoded(self, wish: Wish) -> Tensor:
        """Scaled latents (1, c, h, w) of the picture that a wish begins from: the mean of what the VAE makes of it."""
        seen = pixels.resized(pixels.decode(wish.image, (255, 255, 255)).pixels, wish.width, wish.height)
        unit = torch.from_numpy(seen.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        return self.models.moments(unit).chunk(2, dim=1)[0] * self.models.vae_shape["scaling_factor"]

    def decoded(self, latents: Tensor) -> np.ndarray:
        """uint8 (height, width, 3) of one picture's scaled latents (1, c, h, w)."""
        began = time.perf_counter()
        picture: np.ndarray = self.models.decode(latents)[0]
        self._decode_seconds = time.perf_counter() - began
        if self._decode_seconds > QUICK_SECONDS and self._colours is None:
            self._colours = colours(latents, picture)
        return picture

    def preview(self, latents: Tensor) -> np.ndarray:
        """uint8 (height, width, 3) of latents (1, c, h, w) on the way: decoded where that is quick, else by `colours`."""
        if self._colours is None or self._decode_seconds <= QUICK_SECONDS:
            return self.decoded(latents)
        small = _with_one(latents) @ self._colours
        shown = small.reshape(*latents.shape[2:], 3).clamp(0, 255).round().byte().cpu().numpy()
        return pixels.enlarged(shown, self.models.pixels_per_latent)

    def scaled(self) -> Lora:
        """What paints at LoRA scales that are not 1, made at the first call, which takes seconds.

        With OpenVINO it is a second U-Net, else matrices beside the first.
        """
        with self._lock:
            if self._lora is None:
                pairs = dict(adapters.read(self.models.folder, self.models.device))
                unet = _made(self.models, self.engine, self._kept, pairs.pop("unet"))
                if self.engine == "openvino":
                    self.models.forget("unet")
                    machine.give_memory_back()
                self._lora = Lora(unet=unet, texts=pairs)
            return self._lora

    def rest(self) -> None:
        """Nothing is to be painted for a while: give back what only other LoRA scales than 1 need; it is made again."""
        with self._lock:
            if self._lora is not None:
                self._lora = None
                machine.give_memory_back()

    @torch.no_grad()
    def predict(self, parts: Sequence[tuple[Tensor, float, Told]]) -> list[Tensor]:
        """The U-Net's answers, float32 (rows, c, h, w), to (latents (1, c, h, w), timestep, told) of each picture.

        Either all have the LoRA scale 1, or none.
        All in one call where the engine lets no row notice the others; else in calls that no picture shares (CPU), or of one
        number of rows (GPU): the same bytes in any company.
        """
        if self.invariant:
            return self._call(parts)
        if self.models.device.type == "cpu":
            return [answer for part in parts for answer in self._call([part])]
        return self._padded(parts)

    def _padded(self, parts: Sequence[tuple[Tensor, float, Told]]) -> list[Tensor]:
        answers: list[Tensor] = []
        rest = list(parts)
        while rest:
            some, rows = [rest.pop(0)], 0
            rows = len(some[0][2].states)
            while rest and rows + len(rest[0][2].states) <= PADDED:
                some.append(rest.pop(0))
                rows += len(some[-1][2].states)
            answers += self._call(some, PADDED)
        return answers

    def _call(self, parts: Sequence[tuple[Tensor, float, Told]], rows: int = 0) -> list[Tensor]:
        counts = [len(told.states) for _, _, told in parts]
        seen = torch.cat([latents.expand(n, -1, -1, -1) for (latents, _, _), n in zip(parts, counts, strict=True)])
        times = torch.cat([torch.full((n,), t) for (_, t, _), n in zip(parts, counts, strict=True)]).to(seen.device)
        states = torch.cat([told.states for _, _, told in parts])
        beside = [x for x in (_joined(parts, "pooled"), _joined(parts, "sizes")) if x is not None]
        shift, missing = _joined(parts, "shift"), max(0, rows - len(seen))
        seen, times, states, *beside = (_filled(x, missing) for x in (seen, times, states, *beside))
        more: dict[str, Any] = {"added_cond_kwargs": {"text_embeds": beside[0], "time_ids": beside[1]}} if beside else {}
        unet = self._unet
        if shift is not None:
            unet, more = self.scaled().unet, more | {"lora_shift": _filled(shift, missing)}
        said = unet(seen, times, encoder_hidden_states=states, return_dict=False, **more)[0].float()
        return list(said[: sum(counts)].split(counts))


def colours(latents: Tensor, picture: np.ndarray) -> Tensor:
    """(c + 1, 3): the linear map that comes nearest from latents (1, c, h, w), and a one, to the picture's colours (0..255)."""
    seen = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    small = torch.nn.functional.adaptive_avg_pool2d(seen, (latents.shape[2], latents.shape[3]))
    wanted = small[0].flatten(1).T.to(latents.device)
    return torch.linalg.lstsq(_with_one(latents), wanted).solution


def _with_one(latents: Tensor) -> Tensor:
    rows = latents[0].float().flatten(1).T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _joined(parts: Sequence[tuple[Tensor, float, Told]], name: str) -> Tensor | None:
    found = [getattr(told, name) for _, _, told in parts]
    return None if found[0] is None else torch.cat(found)


def _filled(rows: Tensor, missing: int) -> Tensor:
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


def fastest(models: Models, engine: str, kept: Path | None) -> tuple[str, Callable[..., Any], float]:
    """Name, U-Net and rows a second of the engine asked for: `torch`, `bf16`, `openvino`, or `auto`, the fastest here.

    What was found out, and the U-Net as OpenVINO has it, is kept in the folder `kept` for the next start.
    """
    remembered = _remembered(kept, models)
    if engine == "auto" and remembered:
        return remembered["engine"], _made(models, remembered["engine"], kept), remembered["rate"]
    names = ["torch", "bf16"]
    if models.device.type == "cpu" and not models.is_xl and openvino.installed():
        names.append("openvino")
    if engine not in ("auto", *names):
        raise BadConfigError(f"the engine {engine} is not to be had here", do=f"take auto, or one of {', '.join(names)}")
    unets = {name: _made(models, name, kept) for name in names if engine in ("auto", name)}
    took = {name: _seconds(models, unet) for name, unet in unets.items()}
    name = min(took, key=lambda n: took[n])
    if kept and engine == "auto":
        write_json(kept / "choice.json", {"here": _here(models), "engine": name, "rate": 2 / took[name]})
    return name, unets[name], 2 / took[name]


def _made(models: Models, engine: str, kept: Path | None, lora: adapters.Pairs | None = None) -> Callable[..., Any]:
    """The U-Net by that engine; where its LoRA is given, the one that is told `lora_shift`."""

    def unet() -> Any:
        return models.unet if lora is None else adapters.Shifted(models.unet, lora)

    if engine != "openvino":
        return in_bf16(unet()) if engine == "bf16" else unet()
    tokens, shifted = int(models.tokenizer.model_max_length), lora is not None
    if kept is None:
        return openvino.CompiledUNet(unet(), tokens, shifted=shifted)
    which = f"lora-{digest_file(models.folder / adapters.FILE)[:16]}-" if shifted else ""
    file = kept / f"unet-{which}{openvino.version()}.xml"
    if not file.exists():
        if lora is None:
            drawings.keep(models.unet, tokens, file)
        else:
            openvino.keep(unet(), tokens, file, shifted)
    return openvino.CompiledUNet(file, tokens)


def _here(models: Models) -> list[str]:
    """What a choice of engine holds for."""
    return [machine.name(models.device), str(machine.threads()), torch.__version__, openvino.version()]


def _remembered(kept: Path | None, models: Models) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((kept / "choice.json").read_text(encoding="utf-8")) if kept else {}
        return told if told.get("here") == _here(models) else {}
    except (OSError, ValueError, AttributeError):
        return {}


@torch.no_grad()
def _seconds(models: Models, unet: Callable[..., Any]) -> float:
    """Median of a call with a guided picture's two rows."""
    side, config = int(models.unet.config.sample_size), models.unet.config
    seen = torch.zeros(2, config.in_channels, side, side, device=models.device)
    states, beside = models.embed(["", ""]), {}
    if models.is_xl:
        sizes = torch.full((2, 6), float(models.resolution), device=models.device)
        beside = {"added_cond_kwargs": {"text_embeds": models.pooled(["", ""]), "time_ids": sizes}}
    times = torch.tensor([500, 500], device=models.device)
    took = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        unet(seen, times, encoder_hidden_states=states, return_dict=False, **beside)[0].sum().item()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
