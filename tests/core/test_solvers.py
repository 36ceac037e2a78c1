"""Each solver against diffusers' own scheduler, over whole trajectories, with the same model and the same noise.

diffusers rounds its tables (and, in the Euler and DPM-Solver classes, the latents of each step) to float32, which by
itself is more than the 1e-6 asked here. So its own code is run with `float32` standing for float64 in the modules of its
schedulers; one test more holds our plans against the untouched classes, to what float32 can keep.
"""

import importlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from dovetail.core import solvers
from dovetail.errors import BadConfigError, ModelError

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading",
    "prediction_type": "epsilon", "trained_betas": None,
}  # fmt: skip
MODULES = {
    "ddim": ("ddim", "DDIMScheduler"), "euler": ("euler_discrete", "EulerDiscreteScheduler"),
    "euler_a": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"), "lcm": ("lcm", "LCMScheduler"),
    "dpm++2m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "unipc": ("unipc_multistep", "UniPCMultistepScheduler"),
}  # fmt: skip
PREDICTIONS, SPACINGS, STEPS = ("epsilon", "v_prediction", "sample"), ("leading", "trailing", "linspace"), (1, 2, 4, 7, 20, 50)


class Doubled:
    """torch or numpy, in which float32 is float64."""

    def __init__(self, library: Any) -> None:
        self.library, self.float32 = library, library.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for file, _ in MODULES.values():
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{file}")
        monkeypatch.setattr(module, "torch", Doubled(torch))
        monkeypatch.setattr(module, "np", Doubled(np))
    torch.set_default_dtype(torch.float64)  # what an integer tensor times a number becomes (LCM)
    yield
    torch.set_default_dtype(torch.float32)


def _model(x: Tensor, t: Any) -> Tensor:
    """Nonlinear in the latents and the time, and of size 1."""
    time = torch.as_tensor(t, dtype=torch.float64) / 300
    return torch.tanh(0.7 * x + 0.3 * x.flip(-1)) * torch.cos(time) + 0.2 * torch.sin(x)


def _scheduler(name: str, config: dict[str, Any]) -> Any:
    kind = getattr(diffusers, MODULES[name.removesuffix("_karras")][1])
    return kind.from_config(config, use_karras_sigmas=True) if name.endswith("karras") else kind.from_config(config)


def _theirs(name: str, steps: int, config: dict[str, Any], strength: float | None, dtype: torch.dtype) -> list[Tensor]:
    """Latents before the first step and after each, by the scheduler that `X.from_config(pipe.scheduler.config)` gives."""
    # This class knows no prediction of clean latents: it is told the noise that they stand for.
    told = name == "euler_a" and config["prediction_type"] == "sample"
    given = {**config, "prediction_type": "epsilon"} if told else config
    scheduler = _scheduler(name, given)
    scheduler.set_timesteps(steps)
    clean, noise, draw = _drawn()
    clean, noise = clean.to(dtype), noise.to(dtype)
    timesteps = scheduler.timesteps
    begun = 0 if strength is None else steps - min(int(steps * strength), steps)
    if hasattr(scheduler, "set_begin_index"):  # without it, Karras spacing that rounds to 999 twice starts at the second
        scheduler.set_begin_index(begun)
    if strength is None:
        x = noise * scheduler.init_noise_sigma
    else:  # StableDiffusionImg2ImgPipeline.get_timesteps and prepare_latents
        timesteps = timesteps[begun:]
        x = scheduler.add_noise(clean, noise, timesteps[:1])
    extra = {"generator": draw} if name in ("euler_a", "lcm") else {}
    way = [x]
    for t in timesteps:
        said = _model(scheduler.scale_model_input(x, t), t).to(dtype)
        if told:
            said = (x - said) / scheduler.sigmas[scheduler.step_index]
        x = scheduler.step(said, t, x, return_dict=False, **extra)[0]
        way.append(x)
    return way


def _ours(name: str, steps: int, config: dict[str, Any], strength: float | None, dtype: torch.dtype) -> list[Tensor]:
    plan = solvers.plan(name, steps, config, strength)
    clean, noise, draw = _drawn()
    state = solvers.start(plan, noise[0], None if strength is None else clean[0])[None]
    way = [state[:, 0]]
    for i in range(len(plan)):
        rows = solvers.gather([(plan, i)], dtype=torch.float64)
        # Euler a of diffusers draws noise for its last step too, and multiplies it by 0
        z = torch.randn(noise.shape, generator=draw, dtype=dtype).double() if rows.noisy[0] else None
        state = solvers.step(rows, state, _model(solvers.seen(rows, state), rows.timesteps), z)
        way.append(state[:, 0])
    return way


def _drawn() -> tuple[Tensor, Tensor, torch.Generator]:
    draw = torch.Generator().manual_seed(5)
    clean, noise = torch.randn(2, 1, 2, 3, 4, generator=draw, dtype=torch.float64)
    return clean, noise, draw


def _apart(name: str, steps: int, config: dict[str, Any], strength: float | None, dtype: torch.dtype = torch.float64) -> float:
    theirs, ours = _theirs(name, steps, config, strength, dtype), _ours(name, steps, config, strength, dtype)
    assert len(theirs) == len(ours) and all(torch.isfinite(x).all() for x in ours)
    return max(float((a.double() - b).abs().max()) for a, b in zip(theirs, ours, strict=True))


def _worst(name: str, cases: list[tuple[int, dict[str, Any], float | None]]) -> float:
    return max(_apart(name, steps, {**CONFIG, **changed}, strength) for steps, changed, strength in cases)


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", solvers.NAMES)
class TestAgainstDiffusers:
    """The whole trajectory, at most 1e-6 apart."""

    @pytest.mark.parametrize("prediction", PREDICTIONS)
    def test_in_every_number_of_steps_and_spacing(self, name: str, prediction: str) -> None:
        ways = [*itertools.product(STEPS[:-1], SPACINGS), (STEPS[-1], SPACINGS[PREDICTIONS.index(prediction)])]
        cases = [(n, {"prediction_type": prediction, "timestep_spacing": spacing}, None) for n, spacing in ways]
        assert _worst(name, cases) <= 1e-6

    def test_from_a_picture(self, name: str) -> None:
        pairs = [(4, 0.3), (7, 0.75), (7, 1.0), (20, 0.05), (20, 0.6), (50, 0.33)]
        ways = itertools.product(pairs, SPACINGS)
        assert _worst(name, [(n, {"timestep_spacing": spacing}, strength) for (n, strength), spacing in ways]) <= 1e-6

    def test_from_pure_noise(self, name: str) -> None:
        zero = {"rescale_betas_zero_snr": True}
        ways = [*itertools.product((1, 4, 16), PREDICTIONS[1:], SPACINGS, (None, 0.7)), (50, "sample", "linspace", None)]
        cases = [
            (n, {**zero, "prediction_type": prediction, "timestep_spacing": spacing}, strength)
            for n, prediction, spacing, strength in ways
            if strength is None or n > 1
        ]
        if name not in ("ddim", "lcm"):  # those that keep sigma finite can be told the noise there too
            cases += [(n, {**zero, "timestep_spacing": "trailing"}, None) for n in (1, 4, 20)]
        assert _worst(name, cases) <= 1e-6

    def test_with_other_schedules_and_ends(self, name: str) -> None:
        changes: list[dict[str, Any]] = [
            {"set_alpha_to_one": True}, {"final_sigmas_type": "sigma_min"}, {"beta_schedule": "linear", "beta_end": 0.02},
            {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
            {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()}, {"steps_offset": 0}, {"lower_order_final": False},
            {"original_inference_steps": 100}, {"num_train_timesteps": 500}, {"euler_at_final": True},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, {"disable_corrector": [0, 2]},
            {"lambda_min_clipped": -2.1}, {"sigma_min": 0.1, "sigma_max": 10.0},
        ]  # fmt: skip
        if name.startswith("unipc"):  # diffusers ends this one in inf; the last step to sigma 0 is of first order in ours
            changes.remove({"lower_order_final": False})
            assert torch.isfinite(_ours(name, 7, {**CONFIG, "lower_order_final": False}, None, torch.float64)[-1]).all()
        assert _worst(name, [(n, change, None) for change in changes for n in (6, 15)]) <= 1e-6

    def test_with_no_key_but_the_betas(self, name: str) -> None:
        bare = {key: CONFIG[key] for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "clip_sample")}
        assert _apart(name, 7, bare, None) <= 1e-6 and _apart(name, 20, bare, 0.5) <= 1e-6


@pytest.mark.parametrize("name", solvers.NAMES)
def test_diffusers_as_it_is_tells_the_same_timesteps_and_goes_the_same_way(name: str) -> None:
    """Its classes untouched, in float32: their rounding alone is up to 1e-4 of latents of size 15."""
    for steps, spacing in itertools.product((7, 20), SPACINGS):
        config = {**CONFIG, "timestep_spacing": spacing, "prediction_type": "v_prediction"}
        assert _apart(name, steps, config, None, torch.float32) <= 1e-4
        assert _apart(name, steps, config, 0.6, torch.float32) <= 1e-4
        scheduler = _scheduler(name, config)
        scheduler.set_timesteps(steps)
        told = solvers.plan(name, steps, config).timesteps.to(scheduler.timesteps.dtype)
        torch.testing.assert_close(told, scheduler.timesteps, rtol=0, atol=2e-3 if name == "euler_karras" else 1e-4)


def test_rows_of_a_batch_go_their_own_ways_bit_for_bit() -> None:
    strengths = itertools.cycle([None, 0.9, 0.6])
    plans = [solvers.plan(n, steps, CONFIG, next(strengths)) for steps, n in enumerate(solvers.NAMES, 4)]
    noise, clean, z = torch.randn(3, len(plans), 4, 8, 8).unbind()
    states = torch.stack([solvers.start(p, n, c) for p, n, c in zip(plans, noise, clean, strict=True)])
    alone = states.clone()
    for turn in range(max(map(len, plans))):
        left = [i for i, p in enumerate(plans) if turn < len(p)]
        rows = solvers.gather([(plans[i], turn) for i in left])
        said = _model(solvers.seen(rows, states[left]), rows.timesteps[:, None, None, None]).float()
        states[left] = solvers.step(rows, states[left], said, z[left])
        for i in left:
            row = solvers.gather([(plans[i], turn)])
            told = _model(solvers.seen(row, alone[i : i + 1]), row.timesteps[:, None, None, None]).float()
            given = z[i : i + 1] if row.noisy[0] else None
            alone[i : i + 1] = solvers.step(row, alone[i : i + 1], told, given)
    assert torch.equal(states, alone) and torch.isfinite(states).all()


def test_a_row_that_needs_noise_asks_for_it() -> None:
    plan = solvers.plan("euler_a", 4, CONFIG)
    assert plan.noisy == (True, True, True, False) and len(plan) == 4
    state = solvers.start(plan, torch.randn(4, 8, 8))[None]
    with pytest.raises(ValueError, match="given none"):
        solvers.step(solvers.gather([(plan, 0)]), state, state[:, 0])


@pytest.mark.parametrize(
    ("name", "steps", "changed", "strength", "said"),
    [
        ("ddpm", 20, {}, None, "no solver 'ddpm'; give one of ddim, euler"),
        ("ddim", 0, {}, None, "0 steps are too few"),
        ("ddim", 20, {}, 0.0, "a strength of 0.0 is not above 0"),
        ("ddim", 20, {}, 1.5, "a strength of 1.5 is not"),
        ("ddim", 20, {}, float("nan"), "a strength of nan is not"),
        ("ddim", 4, {}, 0.2, "a strength of 0.2 leaves none of 4 steps"),
        ("ddim", 1001, {}, None, "1001 steps are too many"),
        ("unipc", 1000, {}, None, "1000 steps do not fit 1000 timesteps"),
        ("lcm", 51, {}, None, "LCM was taught for at most 50 steps"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    name: str, steps: int, changed: dict[str, Any], strength: float | None, said: str
) -> None:
    with pytest.raises(BadConfigError, match=said):
        solvers.plan(name, steps, {**CONFIG, **changed}, strength)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"beta_schedule": "sigmoid"}, "no beta_schedule 'sigmoid'"),
        ({"timestep_spacing": "odd"}, "no timestep_spacing 'odd'"),
        ({"prediction_type": "flow_prediction"}, "no prediction_type 'flow_prediction'"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "epsilon says nothing of a timestep"),
    ],
)
def test_a_model_that_no_solver_understands_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        solvers.plan("ddim", 20, {**CONFIG, **changed})


def test_trailing_steps_are_as_many_as_asked_for() -> None:
    """For 62 counts, 61 the first, diffusers makes one more, at timestep -1."""
    for steps in range(1, 1001):
        plan = solvers.plan("euler", steps, {**CONFIG, "timestep_spacing": "trailing"})
        assert len(plan) == steps and plan.timesteps[-1] >= 0


@pytest.mark.parametrize(
    ("text", "scheduler", "name"),
    [
        *[(name, None, name) for name in solvers.NAMES], *[(of, None, name) for name, (_, of) in MODULES.items()],
        ("Euler a", "Automatic", "euler_a"), ("DPM++ 2M", None, "dpm++2m"), ("DPM++ 2M Karras", None, "dpm++2m_karras"),
        ("DPM++ 2M", "karras", "dpm++2m_karras"), ("dpm++ 2m karras", "Karras", "dpm++2m_karras"),
        ("DPM++ 2M", "Automatic", "dpm++2m_karras"), ("DPM++ 2M", "Uniform", "dpm++2m"), ("DDIM", "Karras", "ddim"),
        ("k_euler_a", None, "euler_a"), ("k_dpmpp_2m", "normal", "dpm++2m"), ("uni_pc", None, "unipc"), ("EULER", "", "euler"),
        ("Euler", "Exponential", None), ("Euler a", "Karras", None), ("Restart", None, None), ("", None, None),
    ],
)  # fmt: skip
def test_solvers_are_known_by_the_names_of_others(text: str, scheduler: str | None, name: str | None) -> None:
    assert solvers.named(text, scheduler) == name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        *[({"_class_name": of}, name) for name, (_, of) in MODULES.items()],
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "dpm++2m_karras"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "euler_karras"),
        ({"_class_name": "PNDMScheduler"}, "dpm++2m"), ({"_class_name": "HeunDiscreteScheduler"}, "dpm++2m"),
        ({"_class_name": "DDPMScheduler"}, "euler_a"), ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, "euler_a"),
        ({"_class_name": "TCDScheduler"}, "lcm"), ({}, "dpm++2m"),
    ],
)  # fmt: skip
def test_the_solver_of_a_model_is_read_from_its_scheduler(config: dict[str, Any], name: str) -> None:
    assert solvers.own(config) == name


def test_the_base_has_the_solver_that_it_was_taught_with() -> None:
    config = json.loads((ROOT / "src/dovetail/base/scheduler/scheduler_config.json").read_text())
    assert solvers.own(config) == "ddim" and solvers.plan("ddim", 4, config).timesteps.tolist() == [999, 749, 499, 249]
    with pytest.raises(ModelError, match="flow matching"):
        solvers.own({"_class_name": "FlowMatchEulerDiscreteScheduler"})


@pytest.mark.usefixtures("doubled")
def test_what_diffusers_marks_as_defaulted_gives_way_to_the_default_of_the_solver() -> None:
    """The PNDM of Stable Diffusion 1.x names no spacing: "leading" is PNDM's default, DPM-Solver's is "linspace"."""
    file = {key: value for key, value in CONFIG.items() if key != "timestep_spacing"}
    held = dict(diffusers.PNDMScheduler.from_config(file).config)
    assert held["timestep_spacing"] == "leading" and solvers.plan("dpm++2m", 20, held).timesteps[0] == 999
    assert all(_apart(name, 7, held, None) <= 1e-6 for name in solvers.NAMES)
