"""Diffusion solvers as tables of coefficients: each row of a batch can have its own solver, step count and position.

Every solver here is linear in what it remembers, so a step of any of them is one weighted sum with weights known
beforehand. Below, a is sqrt(alphas_cumprod), s is sqrt(1 - alphas_cumprod), sigma is s / a, and lambda = -log sigma:

    seen = enter * x                                  what the U-Net is given, with `timesteps`
    D    = believe . [x, said]                        the clean latents that its answer stands for
    x, last = onward . terms, last . terms            with terms = [x, last, D, D one step ago, D two steps ago, z]

z is fresh noise. The state of a row is [x, last, D one step ago, D two steps ago]: see `start`, `gather`, `step`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dovetail.errors import BadConfigError, ModelError

Array = npt.NDArray[np.float64]

NAMES: tuple[str, ...] = (
    "ddim", "euler", "euler_karras", "euler_a", "dpm++2m", "dpm++2m_karras", "unipc", "unipc_karras", "lcm",
)  # fmt: skip
_ALSO = {
    "eulera": "euler_a", "eulerancestral": "euler_a", "dpm++2m": "dpm++2m", "dpmpp2m": "dpm++2m", "ddim": "ddim",
    "dpmsolver++": "dpm++2m", "unipcbh2": "unipc", "unipc": "unipc", "lcm": "lcm", "euler": "euler",
    "eulerdiscrete": "euler", "eulerancestraldiscrete": "euler_a", "dpmsolvermultistep": "dpm++2m",
    "unipcmultistep": "unipc",
}  # fmt: skip
_TERMS, _KEPT = 6, 4  # terms of a sum; of these, how many are the state of a row
_X, _LAST, _D0, _D1, _D2, _Z = range(_TERMS)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All steps of one picture, float64 on the CPU; `steps` counts those that are left by `strength`."""

    timesteps: Tensor  # (steps,) as told to the U-Net; whole numbers but for Euler with linspace or Karras spacing
    enter: Tensor  # (steps,)
    believe: Tensor  # (steps, 2)
    onward: Tensor  # (steps, 6)
    last: Tensor  # (steps, 6): zeros but for UniPC, whose predictor starts from the corrected sample
    noisy: tuple[bool, ...]  # whether z is used at that step
    begin: tuple[float, float]  # x at the start = begin[0] * clean latents + begin[1] * noise

    def __len__(self) -> int:
        return len(self.noisy)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One step of b rows: coefficients shaped to multiply latents (b, c, h, w)."""

    timesteps: Tensor  # (b,)
    enter: Tensor  # (b, 1, 1, 1)
    believe: Tensor  # (2, b, 1, 1, 1)
    onward: Tensor  # (6, b, 1, 1, 1)
    last: Tensor  # (6, b, 1, 1, 1)
    noisy: tuple[bool, ...]  # b


@dataclass(frozen=True, slots=True)
class _Path:
    """What a solver walks along: the whole schedule of `steps` steps, and the first step that is kept."""

    config: Mapping[str, Any]
    timesteps: Array  # (steps,)
    sigmas: Array  # (steps + 1,): the last is where the walk ends
    first: int

    @property
    def a(self) -> Array:
        return 1 / np.sqrt(self.sigmas**2 + 1)

    @property
    def s(self) -> Array:
        return self.sigmas * self.a


def named(text: str, scheduler: str | None = None) -> str | None:
    """Our name of a solver as AUTOMATIC1111, ComfyUI, diffusers (class names) or we call it; None where unknown.

    `scheduler` is the second choice of AUTOMATIC1111: Karras, Uniform, or Automatic, which there is Karras for DPM++ 2M.
    """
    key = "".join(c for c in text.lower() if c.isalnum() or c == "+").removesuffix("scheduler").removeprefix("k")
    name = _ALSO.get(key.removesuffix("karras"))
    spacing = "".join(c for c in (scheduler or "uniform").lower() if c.isalnum())
    if name is None or spacing not in ("karras", "uniform", "normal", "automatic"):
        return None
    karras = key.endswith("karras") or spacing == "karras" or (spacing == "automatic" and name == "dpm++2m")
    wanted = f"{name}_karras" if karras and name != "ddim" else name  # DDIM has no other spacing there either
    return wanted if wanted in NAMES else None


def own(config: Mapping[str, Any]) -> str:
    """The solver that a diffusers scheduler_config.json names, or the nearest that is here.

    PNDM and what else solves the same equation without noise (LMS, Heun, DEIS, DPM-Solver of other orders) become
    DPM++ 2M; what adds noise (DDPM, the ancestral and SDE ones) becomes Euler a; TCD becomes LCM.
    """
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        raise ModelError(f"the scheduler {kind} is of a flow matching model", do="give a Stable Diffusion model")
    name = named(kind)
    if name is None:
        noisy = any(word in kind for word in ("Ancestral", "SDE", "DDPM"))
        name = "lcm" if kind.startswith("TCD") else "euler_a" if noisy else "dpm++2m"
    return f"{name}_karras" if config.get("use_karras_sigmas") and f"{name}_karras" in NAMES else name


def plan(name: str, steps: int, config: Mapping[str, Any], strength: float | None = None) -> Plan:
    """The steps of solver `name` for a model with this diffusers scheduler configuration (of whichever class).

    As `X.from_config(config)` of diffusers: a key that is not given has the default of the solver's own class. The name
    decides on Karras spacing. `clip_sample` and `thresholding` are for pixels, not latents, and are left aside.
    With a `strength` it is image-to-image: int(steps * strength) last steps, begun at noised clean latents (also at 1).
    """
    if name not in NAMES:
        raise BadConfigError(f"no solver {name!r}", do=f"give one of {', '.join(NAMES)}")
    most = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= most:
        raise BadConfigError(f"{steps} steps are too {'few' if steps < 1 else 'many'}", do=f"give 1 to {most}")
    if strength is not None and not 0 < strength <= 1:
        raise BadConfigError(f"a strength of {strength} is not above 0 and at most 1", do="give say 0.6")
    kept = steps if strength is None else min(int(steps * strength), steps)
    if kept < 1:
        raise BadConfigError(f"a strength of {strength} leaves none of {steps} steps", do="give more of either")
    defaulted = config.get("_use_default_values") or ()
    config = {k: v for k, v in config.items() if v is not None and k not in defaulted}
    family = name.removesuffix("_karras")
    alphas = _alphas_cumprod(config, family)
    if family in ("ddim", "lcm"):
        t, onward = (_ddim if family == "ddim" else _lcm)(alphas, steps, config)
        timesteps, last, now = t.astype(np.float64), np.zeros_like(onward), alphas[t]
        a, s, sigmas = np.sqrt(now), np.sqrt(1 - now), np.ones(1)
    else:
        path = _path(alphas, name, steps, kept, config)
        onward, last = {"euler": _euler, "euler_a": _euler_a, "dpm++2m": _dpm, "unipc": _unipc}[family](path)
        timesteps, a, s, sigmas = path.timesteps, path.a[:-1], path.s[:-1], path.sigmas
    timesteps, a, s, onward, last = (table[steps - kept :] for table in (timesteps, a, s, onward, last))
    enter, believe = np.ones_like(a), _believe(a, s, config)
    begin = (0.0, 1.0) if strength is None else (float(a[0]), float(s[0]))
    if family.startswith("euler"):  # its x is x / a of the others
        enter, believe[:, 0] = a, believe[:, 0] * a
        largest = float(sigmas.max())
        whole = float(np.hypot(largest, 1)) if _spacing(config, family) == "leading" else largest
        begin = (0.0, whole) if strength is None else (1.0, float(sigmas[steps - kept]))
    noisy = tuple((onward[:, _Z] != 0).tolist())
    tables = (torch.from_numpy(np.array(table)) for table in (timesteps, enter, believe, onward, last))
    return Plan(*tables, noisy=noisy, begin=begin)  # type: ignore[misc, arg-type]


def start(plan: Plan, noise: Tensor, clean: Tensor | None = None) -> Tensor:
    """The state (4, c, h, w) of a row before its first step, from noise (c, h, w) and, for image-to-image, clean latents."""
    x = plan.begin[1] * noise if clean is None else plan.begin[0] * clean + plan.begin[1] * noise
    return torch.cat([x[None], x.new_zeros(_KEPT - 1, *x.shape)])


def gather(at: Sequence[tuple[Plan, int]], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Rows:
    """The coefficients of step number `at[i][1]` (0 is the first) of plan `at[i][0]`, for each row i of a batch."""

    def column(rows: list[Tensor]) -> Tensor:  # (b, k) to (k, b, 1, 1, 1)
        return torch.stack(rows).T.to(dtype).to(device)[..., None, None, None]

    return Rows(
        timesteps=torch.stack([p.timesteps[i] for p, i in at]).to(dtype).to(device),
        enter=column([p.enter[i : i + 1] for p, i in at])[0],
        believe=column([p.believe[i] for p, i in at]),
        onward=column([p.onward[i] for p, i in at]),
        last=column([p.last[i] for p, i in at]),
        noisy=tuple(p.noisy[i] for p, i in at),
    )


def seen(rows: Rows, state: Tensor) -> Tensor:
    """What the U-Net is given, (b, c, h, w), of the state (b, 4, c, h, w)."""
    return rows.enter * state[:, _X]


def step(rows: Rows, state: Tensor, said: Tensor, noise: Tensor | None = None) -> Tensor:
    """The next state (b, 4, c, h, w) after the U-Net said (b, c, h, w); state[:, 0] are the latents.

    `noise` (b, c, h, w) is needed where any of `rows.noisy` holds. Sums are taken term by term, so that the values of a
    row do not depend on which others are in the batch.
    """
    if noise is None and any(rows.noisy):
        raise ValueError("a step that adds noise was given none")
    x, last, d1, d2 = state.unbind(1)
    d0 = rows.believe[0] * x + rows.believe[1] * said.to(state.dtype)
    terms = [x, last, d0, d1, d2] + ([] if noise is None else [noise.to(state.dtype)])
    moved, kept = rows.onward[0] * x, rows.last[0] * x
    for number, term in enumerate(terms[1:], 1):
        moved, kept = moved + rows.onward[number] * term, kept + rows.last[number] * term
    return torch.stack([moved, kept, d0, d1], dim=1)


def _alphas_cumprod(config: Mapping[str, Any], family: str) -> Array:
    """The schedule (num_train_timesteps,), rescaled to end in pure noise where asked (Lin et al. 2024, algorithm 1)."""
    count = int(config.get("num_train_timesteps", 1000))
    usual = (0.00085, 0.012, "scaled_linear") if family == "lcm" else (0.0001, 0.02, "linear")
    low, high = float(config.get("beta_start", usual[0])), float(config.get("beta_end", usual[1]))
    kind = config.get("beta_schedule", usual[2])
    if "trained_betas" in config:
        betas = np.asarray(config["trained_betas"], np.float64)
    elif kind == "linear":
        betas = np.linspace(low, high, count)
    elif kind == "scaled_linear":
        betas = np.linspace(low**0.5, high**0.5, count) ** 2
    elif kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
        bars = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999)
    else:
        raise ModelError(f"no beta_schedule {kind!r} is known", do="give linear, scaled_linear or squaredcos_cap_v2")
    alphas = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        if family not in ("ddim", "lcm"):
            alphas[-1] = 2.0**-24  # as diffusers: where sigma has to be finite
    return np.asarray(alphas, np.float64)


def _spacing(config: Mapping[str, Any], family: str) -> str:
    return str(config.get("timestep_spacing", "leading" if family == "ddim" else "linspace"))


def _spaced(steps: int, config: Mapping[str, Any], family: str, count: int, end: int) -> Array:
    """Timesteps (steps,), falling, of 0..end-1 (Lin et al. 2024, table 2); the multistep ones skip the lowest of steps + 1."""
    spacing, extra = _spacing(config, family), int(family in ("dpm++2m", "unipc"))
    timesteps: npt.NDArray[np.floating[Any]]
    if spacing == "linspace":
        timesteps = np.linspace(0, end - 1, steps + extra)[::-1][:steps]
        if family not in ("euler", "euler_a"):
            timesteps = timesteps.round()
    elif spacing == "leading":
        ratio = end // (steps + extra)
        timesteps = (np.arange(steps + extra) * ratio)[::-1][:steps] + float(config.get("steps_offset", 0))
    elif spacing == "trailing":
        timesteps = np.arange(end, 0, -count / steps).round()[:steps] - 1  # for some `steps` arange makes one more, 0
    else:
        raise ModelError(f"no timestep_spacing {spacing!r} is known", do="give leading, trailing or linspace")
    if len(timesteps) < steps or timesteps[0] > count - 1 or (np.diff(timesteps) >= 0).any():
        raise BadConfigError(f"{steps} steps do not fit {count} timesteps ({spacing})", do="ask for fewer steps")
    return np.asarray(timesteps, np.float64)


def _karras(low: float, high: float, steps: int) -> Array:
    """Noise levels (steps,) from high to low (Karras et al. 2022, eq. 5, rho = 7)."""
    ramp = np.linspace(0, 1, steps)
    return np.asarray((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7, np.float64)


def _path(alphas: Array, name: str, steps: int, kept: int, config: Mapping[str, Any]) -> _Path:
    """Timesteps and noise levels as the classes of diffusers that think in sigma have them."""
    family, karras, count = name.removesuffix("_karras"), name.endswith("_karras"), len(alphas)
    table = np.sqrt((1 - alphas) / alphas)
    end = count
    if family == "dpm++2m" and "lambda_min_clipped" in config:
        end = count - int((-np.log(table) < float(config["lambda_min_clipped"])).sum())
    timesteps = _spaced(steps, config, family, count, end) if family == "euler" or not karras else np.empty(0)
    sigmas = np.interp(timesteps, np.arange(count), table)
    if karras:
        low, high = (sigmas[-1], sigmas[0]) if family == "euler" else (table[0], table[-1])
        sigmas = _karras(float(config.get("sigma_min", low)), float(config.get("sigma_max", high)), steps)
        timesteps = np.interp(np.log(sigmas), np.log(table), np.arange(count))
        if family == "unipc" or (family == "dpm++2m" and config.get("beta_schedule") != "squaredcos_cap_v2"):
            timesteps = timesteps.round()
        elif family == "dpm++2m":
            timesteps = np.floor(timesteps)
    final = 0.0
    if config.get("final_sigmas_type") == "sigma_min" and family != "euler_a":
        final = sigmas[-1] if name == "unipc_karras" else table[0]
    return _Path(config, timesteps, np.append(sigmas, final), steps - kept)


def _believe(a: Array, s: Array, config: Mapping[str, Any]) -> Array:
    """Clean latents as weights (steps, 2) of [x, said], x = a x_0 + s e (Ho et al. 2020, eq. 4; Salimans & Ho 2022, app. D)."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction == "epsilon":
        if (a == 0).any():
            raise ModelError("epsilon says nothing of a timestep that is pure noise", do="use a model that predicts v")
        return np.stack([1 / a, -s / a], axis=1)
    if prediction == "v_prediction":
        return np.stack([a, -s], axis=1)
    if prediction == "sample":
        return np.stack([np.zeros_like(a), np.ones_like(a)], axis=1)
    raise ModelError(f"no prediction_type {prediction!r} is known", do="give epsilon, v_prediction or sample")


def _ddim(alphas: Array, steps: int, config: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], Array]:
    """Song et al. 2021 (DDIM), eq. 12 with no noise: x' = a' D + s' (x - a D) / s."""
    t = _spaced(steps, config, "ddim", len(alphas), len(alphas)).astype(np.int64)
    before, final = t - len(alphas) // steps, 1.0 if config.get("set_alpha_to_one", True) else alphas[0]
    now, then = alphas[t], np.where(before >= 0, alphas[np.maximum(before, 0)], final)
    onward = np.zeros((steps, _TERMS))
    onward[:, _X] = np.sqrt((1 - then) / (1 - now))
    onward[:, _D0] = np.sqrt(then) - np.sqrt(now) * onward[:, _X]
    return t, onward


def _lcm(alphas: Array, steps: int, config: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], Array]:
    """Luo et al. 2023 (LCM), eq. 9 and algorithm 3: f = c_skip x + c_out D, then x' = a' f + s' z; at the end x' = f."""
    original = int(config.get("original_inference_steps", 50))
    if steps > original:
        raise BadConfigError(f"LCM was taught for at most {original} steps, not {steps}", do="ask for fewer steps")
    grid = (np.arange(1, original + 1) * (len(alphas) // original) - 1)[::-1]
    t = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    scaled, onward = t * float(config.get("timestep_scaling", 10.0)), np.zeros((steps, _TERMS))
    onward[:, _X] = 0.25 / (scaled**2 + 0.25)  # sigma_data is 0.5
    onward[:, _D0] = scaled / np.sqrt(scaled**2 + 0.25)
    onward[:-1] *= np.sqrt(alphas[t[1:], None])
    onward[:-1, _Z] = np.sqrt(1 - alphas[t[1:]])
    return t, onward


def _euler(path: _Path) -> tuple[Array, Array]:
    """Karras et al. 2022, algorithm 1 with no second-order correction: x' = x + (sigma' - sigma) (x - D) / sigma."""
    ratio = path.sigmas[1:] / path.sigmas[:-1]
    onward = np.zeros((len(ratio), _TERMS))
    onward[:, _X], onward[:, _D0] = ratio, 1 - ratio
    return onward, np.zeros_like(onward)


def _euler_a(path: _Path) -> tuple[Array, Array]:
    """Ancestral steps, Song et al. 2021 (score SDE), eq. 47: down to sigma'^2 / sigma, then noise back up to sigma'."""
    ratio = (path.sigmas[1:] / path.sigmas[:-1]) ** 2
    onward = np.zeros((len(ratio), _TERMS))
    onward[:, _X], onward[:, _D0] = ratio, 1 - ratio
    onward[:, _Z] = path.sigmas[1:] * np.sqrt(1 - ratio)
    return onward, np.zeros_like(onward)


def _dpm(path: _Path) -> tuple[Array, Array]:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2: x' = s'/s x + a' (1 - e^-h) (D + (D - D1) h / 2 h1), h = lambda' - lambda.

    The first kept step has no D1 and is of first order; so is the last, where it ends at sigma 0 or in less than 15 steps.
    """
    sigmas, a, s, n = path.sigmas, path.a, path.s, len(path.timesteps)
    onward = np.zeros((n, _TERMS))
    onward[:, _X] = s[1:] / s[:-1]
    onward[:, _D0] = a[1:] * (1 - sigmas[1:] / sigmas[:-1])
    early = path.config.get("lower_order_final", True) and n < 15
    end = n - 1 if sigmas[-1] == 0 or early or path.config.get("euler_at_final", False) else n
    for i in range(path.first + 1, end):
        half = np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i - 1] / sigmas[i]) / 2
        onward[i, _D1] = -half * onward[i, _D0]
        onward[i, _D0] *= 1 + half
    return onward, np.zeros_like(onward)


def _unipc(path: _Path) -> tuple[Array, Array]:
    """Zhao et al. 2023 (UniPC), order 2, data prediction, B(h) = e^h - 1: UniC (eq. 3) on x, then UniP (eq. 8) from there.

    With order 1 the first kept step, and the last where it ends at sigma 0 or `lower_order_final` asks for it.
    """
    sigmas, a, s, n = path.sigmas, path.a, path.s, len(path.timesteps)
    onward, last = np.zeros((n, _TERMS)), np.zeros((n, _TERMS))
    lower = sigmas[-1] == 0 or path.config.get("lower_order_final", True)
    order = [1 if i == path.first or (lower and i == n - 1) else 2 for i in range(n)]
    for i in range(path.first, n):
        if i == path.first or i - 1 in path.config.get("disable_corrector", ()):
            last[i, _X] = 1
        else:  # from `last` at i - 1 to i
            grown = a[i] * (1 - sigmas[i] / sigmas[i - 1])
            last[i, _LAST] = s[i] / s[i - 1]
            last[i, _D1] = grown
            h = np.log(sigmas[i - 1] / sigmas[i])
            r = np.log(sigmas[i - 1] / sigmas[i - 2]) / h if order[i - 1] == 2 else 0.0
            past, now = _corrector(h, r)
            last[i, _D0] += grown * now
            last[i, _D2] += grown * past
            last[i, _D1] -= grown * (now + past)
        gain = a[i + 1] * (1 - sigmas[i + 1] / sigmas[i])
        onward[i] = s[i + 1] / s[i] * last[i]
        onward[i, _D0] += gain
        if order[i] == 2:
            slope = np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i] / sigmas[i - 1]) / 2
            onward[i, _D1] += gain * slope
            onward[i, _D0] -= gain * slope
    return onward, last


def _corrector(h: float, r: float) -> tuple[float, float]:
    """Weights of (D2 - D1) and (D0 - D1) in UniC: Zhao et al. 2023, eq. 5, R rho = b; r = 0 stands for order 1.

    With y = -h: b = [(B / y - 1) / B, 2 ((B / y - 1) / y - 1 / 2) / B], B = e^y - 1; the first weight is over r.
    """
    if r == 0:
        return 0.0, 0.5
    y, b = -h, float(np.expm1(-h))
    first = b / y - 1
    second = 2 * (first / y - 0.5)
    past = (first - second) / b / (1 - r)
    return past / r, first / b - past
