"""What a training does otherwise on a GPU, tried on a CPU: late reading, channels last, compiled blocks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from schooling import CPU, config, teach
from torch import Tensor

from dovetail.edges import tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import compiling, learner, optimizers, preparation
from dovetail.engines.fused import blocks
from dovetail.engines.material import Material
from dovetail.errors import TrainingError


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "LATE", {"cpu": True})


@pytest.fixture
def no_c(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (optimizers, blocks):
        monkeypatch.setattr(module.kernels, "there", lambda: False)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_numbers_that_are_read_late_are_the_same(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    whole, curve = teach(tiny_base, tmp_path / "at once", material, config(mixed_precision=precision))
    order: list[str] = []
    monkeypatch.setattr(preparation, "LATE", {"cpu": True})
    for name in ("_rows", "_backward", "_update", "_sound"):
        does = getattr(learner, name)
        monkeypatch.setattr(learner, name, lambda *told, does=does, name=name: (order.append(name), does(*told))[1])
    same, again = teach(tiny_base, tmp_path / "late", material, config(mixed_precision=precision))
    assert tensors.digest(same) == tensors.digest(whole) and again == curve
    assert order == ["_rows", *["_backward", "_update", "_rows", "_sound"] * 6], "rows are ready before their step, once"


@pytest.mark.usefixtures("late")
def test_a_training_cut_off_ends_with_the_same_bits(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    def fall_over(step: int) -> None:
        if step == 4:
            raise RuntimeError("the power went")

    whole, curve = teach(tiny_base, tmp_path / "whole", material, config())
    with pytest.raises(RuntimeError, match="the power went"):
        teach(tiny_base, tmp_path / "cut", material, config(), on_sample=fall_over)
    again, same = teach(tiny_base, tmp_path / "cut", material, config())
    assert tensors.digest(again) == tensors.digest(whole) and same == curve


@pytest.mark.usefixtures("late")
def test_a_loss_that_is_no_number_ends_it_or_takes_it_back(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, spoilt = learner._backward, [3]

    def poisoned(lessons: Any, rows: Any, size: int, stop: int) -> tuple[Tensor, Any]:
        value, last = backward(lessons, rows, size, stop)
        poisoned.step += 1
        if poisoned.step in spoilt:
            for parameter in lessons.parameters:
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)
            value = value * torch.nan
        return value, last

    poisoned.step = 0
    monkeypatch.setattr(learner, "_backward", poisoned)
    with pytest.raises(TrainingError, match="not a number at step 3"):
        teach(tiny_base, tmp_path / "stop", material, config())
    poisoned.step = 0
    weights, curve = teach(tiny_base, tmp_path / "back", material, config(on_nan="roll back"))
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert [row["event"] for row in curve if "event" in row] == [
        "the loss is not a number at step 3: back to step 2, learning rate by 0.5"
    ]


@pytest.mark.usefixtures("no_c", "late")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_that_lie_channels_last_go_on_bit_for_bit_and_are_written_plain(
    tiny_base: Path, tmp_path: Path, material: Material, precision: str
) -> None:
    def run(folder: Path, steps: int) -> dict[str, Tensor]:
        models = Models(tiny_base, CPU)
        models.unet.to(memory_format=torch.channels_last)
        asked = config(mixed_precision=precision, steps=6, lr_scheduler="constant")
        asked = asked.model_copy(update={"steps": steps})
        return learner.teach(models, material, asked, 2e-3, folder, Show(quiet=True), lambda step: None).weights

    whole, half = run(tmp_path / "whole", 6), run(tmp_path / "cut", 4)
    assert not all(w.is_contiguous() for w in half.values()), "they do lie so"
    assert tensors.digest(run(tmp_path / "cut", 6)) == tensors.digest(whole)
    began = dict(Models(tiny_base, CPU).unet.named_parameters())
    plain = exact = teach(tiny_base, tmp_path / "plain", material, config(lr_scheduler="constant"))[0]
    if precision != "no":
        settings = config(mixed_precision=precision, lr_scheduler="constant")
        plain, _ = teach(tiny_base, tmp_path / "halves", material, settings)

    def off(weights: dict[str, Tensor], names: Sequence[str]) -> float:
        """How far from the exact ones, in parts of the way that those went."""
        apart, gone = ([(found[n] - than[n]).norm() for n in names] for found, than in ((weights, exact), (exact, began)))
        return float(torch.stack(apart).norm() / torch.stack(gone).norm())

    # In another layout bf16 convolutions round otherwise, and which of them do is the processor's matter; AdamW's steps are as
    # long where a gradient is all rounding. So neither layout may be further from the exact training than the other is.
    assert off(whole, [*whole]) <= 1.25 * off(plain, [*whole]) + 0.002
    assert max(off(whole, [n]) for n in whole) < {"no": 0.1, "bf16": 0.5}[precision]


OF_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # it looks at all there is of one


def _quick(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(compiling, "turn_on", partial(compiling.turn_on, backend=backend))


@OF_DYNAMO
def test_compiled_blocks_learn_the_same(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation.machine, "little_bytes", lambda device: 0)
    asked = config(steps=2, gradient_checkpointing=True)
    whole, curve = teach(tiny_base, tmp_path / "plain", material, asked)
    graphs: list[int] = []
    _quick(monkeypatch, lambda graph, inputs: (graphs.append(1), graph.forward)[1])
    same, again = teach(tiny_base, tmp_path / "compiled", material, asked.model_copy(update={"compile": True}))
    assert 2 < len(graphs) < 40, "each kind of block and shape once, for training alone"
    assert all(torch.allclose(same[n], w, rtol=1e-4, atol=1e-5) for n, w in whole.items())
    events = [row["event"] for row in again if "event" in row]
    assert events[-1] == "residual and transformer blocks are compiled"
    assert [row["step"] for row in again if "event" not in row] == [row["step"] for row in curve if "event" not in row]


@OF_DYNAMO
def test_a_compiler_that_fails_is_done_without(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = teach(tiny_base, tmp_path / "plain", material, config(steps=3, mixed_precision="no"))

    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no ptxas here")

    _quick(monkeypatch, broken)
    same, curve = teach(tiny_base, tmp_path / "failed", material, config(steps=3, mixed_precision="no", compile=True))
    assert tensors.digest(same) == tensors.digest(whole)
    told = [row["event"] for row in curve if "event" in row]
    assert len(told) == 2 and told[1].startswith("blocks run uncompiled: ") and "no ptxas here" in told[1]


def test_compiling_pays_where_a_training_is_long_enough() -> None:
    assert compiling.pays(0.8 * 3, 100_000 * 4, 989.0)
    assert not compiling.pays(0.8 * 3, 4_000, 989.0)
    assert not compiling.pays(0.003, 15_000 * 4, 989.0)
