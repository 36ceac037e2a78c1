"""The painter against diffusers' own pipeline, on the same weights."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import SIDE, TOKENS, write_base

from dovetail.edges.models import Models, in_bf16
from dovetail.edges.openvino import CompiledUNet
from dovetail.engines import painter
from dovetail.engines.painter import Order
from dovetail.errors import ModelError

CPU = torch.device("cpu")
ORDERS = [
    Order(prompt="a cat", seed=3),
    Order(prompt="a red dog on blue", seed=4, negative_prompt="rain"),
    Order(prompt="", seed=5),
]


def theirs(folder: Path, order: Order, steps: int, guidance_scale: float) -> np.ndarray:
    """What diffusers' pipeline paints."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(order.seed)
    asked = {"negative_prompt": order.negative_prompt, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    image = pipeline(order.prompt, generator=generator, **asked).images[0]
    return np.asarray(image)


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two pictures, in levels of 255."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("steps", "guidance_scale"), [(4, 5.0), (7, 1.0)])
def test_a_picture_equals_that_of_diffusers_pipeline(tiny_base: Path, order: Order, steps: int, guidance_scale: float) -> None:
    ours = painter.paint(Models(tiny_base, CPU), [order], steps=steps, guidance_scale=guidance_scale)[0]
    assert ours.shape == (SIDE, SIDE, 3) and ours.dtype == np.uint8 and ours.std() > 10
    assert apart(ours, theirs(tiny_base, order, steps, guidance_scale)) <= 2


@pytest.fixture
def with_scheduler(tmp_path: Path) -> Callable[[str], Path]:
    """A base that predicts noise, with another scheduler in its folder."""

    def made(name: str) -> Path:
        folder = write_base(tmp_path / name, with_judge=False, prediction="epsilon")
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
        return folder

    return made


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_schedulers_paint_as_in_diffusers_too(with_scheduler: Callable[[str], Path], name: str) -> None:
    folder = with_scheduler(name)
    ours = painter.paint(Models(folder, CPU), ORDERS[:1], steps=5, guidance_scale=3.0)[0]
    assert apart(ours, theirs(folder, ORDERS[0], 5, 3.0)) <= 2


def test_a_scheduler_that_draws_noise_paints_the_same_alone_and_in_company(with_scheduler: Callable[[str], Path]) -> None:
    models = Models(with_scheduler("EulerAncestralDiscreteScheduler"), CPU)
    together = painter.paint(models, ORDERS, steps=4, guidance_scale=3.0)
    for order, picture in zip(ORDERS, together, strict=True):
        assert apart(painter.paint(models, [order], steps=4, guidance_scale=3.0)[0], picture) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_picture_is_the_same_alone_and_in_a_batch_of_any_size(tiny_base: Path, batch_size: int) -> None:
    models = Models(tiny_base, CPU)
    orders = [
        ORDERS[0],
        Order(prompt="a red house " * 30, seed=3),
        *ORDERS[1:],
        Order(prompt="x", seed=4, negative_prompt="rain " * 40),
    ]
    together = painter.paint(models, orders, steps=3, guidance_scale=4.0, batch_size=batch_size)
    alone = [painter.paint(models, [order], steps=3, guidance_scale=4.0)[0] for order in orders]
    assert len(together) == 5 and all(apart(a, b) <= 1 for a, b in zip(together, alone, strict=True))


def test_a_prompt_of_any_length_is_read_to_its_end(tiny_base: Path) -> None:
    models, long = Models(tiny_base, CPU), "a red house on green, " * 12
    ends = [painter.paint(models, [Order(prompt=long + end, seed=1)], steps=3, guidance_scale=4.0)[0] for end in ("cat", "dog")]
    assert apart(*ends) >= 1
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)
    pieces = models.pieces(long + "cat")
    told = {"prompt_embeds": models.embed([long + "cat"], pieces), "negative_prompt_embeds": models.embed([""], pieces)}
    image = pipeline(**told, generator=torch.Generator().manual_seed(1), num_inference_steps=3, guidance_scale=4.0).images[0]
    assert apart(ends[0], np.asarray(image)) <= 2


def test_prompt_negative_prompt_seed_and_guidance_each_change_the_picture(tiny_base: Path) -> None:
    models = Models(tiny_base, CPU)

    def of(guidance_scale: float = 4.0, **order: object) -> np.ndarray:
        return painter.paint(models, [Order(**{"prompt": "a cat", "seed": 1} | order)], steps=3, guidance_scale=guidance_scale)[
            0
        ]  # type: ignore[arg-type]

    first = of()
    assert apart(first, of()) == 0
    for other in (of(prompt="a house on red"), of(seed=2), of(negative_prompt="rain and snow"), of(guidance_scale=9.0)):
        assert apart(first, other) >= 3


def test_each_finished_batch_is_told(tiny_base: Path) -> None:
    heard: list[int] = []
    painter.paint(Models(tiny_base, CPU), ORDERS, steps=1, guidance_scale=2.0, batch_size=2, on_batch=heard.append)
    assert heard == [2, 1]


def test_a_larger_model_side_is_painted_at_that_side(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "wide"))
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"sample_size": 12}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    assert painter.paint(Models(folder, CPU), ORDERS[:1], steps=1, guidance_scale=2.0)[0].shape == (48, 48, 3)


def test_every_step_is_shown_and_the_last_one_is_the_answer(tiny_base: Path) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    painted = painter.paint_latents(
        Models(tiny_base, CPU), ORDERS[:2], steps=3, guidance_scale=2.0, on_step=lambda n, x: seen.append((n, x))
    )
    assert [n for n, _ in seen] == [0, 1, 2, 3] and torch.equal(seen[-1][1], painted)
    assert torch.equal(seen[0][1][0], painter.start_noise(3, 4, SIDE // 4, SIDE // 4)[0])


def test_bf16_paints_nearly_the_same(tiny_base: Path) -> None:
    models = Models(tiny_base, CPU)
    exact, fast = (
        painter.paint(models, ORDERS, steps=4, guidance_scale=3.0, unet=unet) for unet in (None, in_bf16(models.unet))
    )
    away = np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(exact, fast, strict=True)])
    assert 0 < away < 6


def test_the_compiled_engine_paints_nearly_the_same_and_company_changes_nothing(tiny_base: Path) -> None:
    pytest.importorskip("openvino")
    models = Models(tiny_base, CPU)
    compiled = CompiledUNet(models.unet, TOKENS, threads=1)
    exact = painter.paint(models, ORDERS, steps=4, guidance_scale=3.0)
    fast = painter.paint(models, ORDERS, steps=4, guidance_scale=3.0, unet=compiled)
    away = np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(exact, fast, strict=True)])
    assert away < 6
    alone = painter.paint(models, ORDERS[1:2], steps=4, guidance_scale=3.0, unet=compiled)[0]
    assert apart(alone, fast[1]) <= 1


def test_without_openvino_the_error_says_what_to_install(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"dovetail\[openvino\]"):
        CompiledUNet(Models(tiny_base, CPU).unet, TOKENS)
