"""What a training takes: the arithmetic against published figures."""

from dataclasses import replace

import pytest

from dovetail.core import costs
from dovetail.core.costs import Load, Thrift
from dovetail.records import Gpu

SD_2 = (0.539, 2.409)  # TFLOP a picture at 256 and 512 pixels
LOAD = Load(
    tflop=2.4, pictures=4, micro=4, trained=860_000_000, frozen=0, kept=6 * costs.GIB, recomputed=costs.GIB
)  # fmt: skip


@pytest.mark.parametrize("gpus", list(costs.MOSAIC))
def test_the_published_table_is_met_within_a_fifth(gpus: int) -> None:
    for ours, theirs in zip(costs.mosaic_estimate(SD_2, gpus), costs.MOSAIC[gpus], strict=True):
        assert ours == pytest.approx(theirs, rel=0.2)


def test_an_h100_is_priced_somewhat_below_the_best_published_figure() -> None:
    best = 135.5  # pictures a second: MLPerf v4.1, Stable Diffusion 2 at 512 pixels, one of eight, batch 32
    assert 0.7 * best < 32 / costs.step_seconds(SD_2[1], 32, 989.0) < best


def test_memory_is_asked_for_by_weight_and_saved_in_a_fixed_order() -> None:
    plain = Thrift()
    assert costs.memory(LOAD, plain) == 860_000_000 * 20 + 4 * 6 * costs.GIB + costs.CONTEXT
    assert costs.memory(LOAD, Thrift(ema=False)) == costs.memory(LOAD, plain) - 4 * 860_000_000
    needs = [80, 30, 20, 15, 13, 1]
    found = [costs.thrifty_enough(LOAD, plain, Gpu(name="x", memory_gib=g, tflops=1, dollars_an_hour=1)) for g in needs]
    assert [f.words() if f else None for f in found] == [
        "", "gradient_checkpointing = true", "gradient_checkpointing = true, use_8bit_adam = true",
        "gradient_checkpointing = true, use_8bit_adam = true, ema_on_cpu = true",
        "gradient_checkpointing = true, use_8bit_adam = true, ema_on_cpu = true, fused_backward = true and no max_grad_norm",
        None,
    ]  # fmt: skip
    accumulated = costs.thrifty_enough(replace(LOAD, micro=2), plain, Gpu(name="x", memory_gib=11, tflops=1, dollars_an_hour=1))
    assert accumulated and accumulated.words().endswith("ema_on_cpu = true, batch_size = 1 and more accumulation")


def test_hours_cost_money_and_recomputing_takes_a_third_more() -> None:
    gpu = Gpu(name="A100", memory_gib=79, tflops=312, dollars_an_hour=2.0)
    hours, dollars = costs.on_gpu(LOAD, Thrift(), 15_000, gpu)
    assert dollars == 2 * hours and hours == pytest.approx(15_000 * (4 * (2.4 / 92.04 + 0.00141) + 0.04) / 3600, rel=1e-3)
    assert 1.15 < costs.on_gpu(LOAD, Thrift(gradient_checkpointing=True), 15_000, gpu)[0] / hours < 1.34


def test_times_and_sizes_are_said_as_people_say_them() -> None:
    assert [costs.span(s) for s in (40, 700, 12_240, 475_200)] == ["40 s", "12 min", "3.4 h", "5.5 days"]
    assert [costs.size(b) for b in (3 * 2**20, 5 * 2**30)] == ["3 MiB", "5.0 GiB"]
