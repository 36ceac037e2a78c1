"""`dovetail plan`: what a run takes, probed and reckoned."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Finished

from dovetail import library, plan
from dovetail.edges import adapters, shapes
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.errors import BadConfigError
from dovetail.records import Gpu

SMALL = Gpu(name="toy", memory_gib=1.001, tflops=1, dollars_an_hour=1)
LARGE = Gpu(name="giant", memory_gib=100, tflops=100, dollars_an_hour=2)


def _lines(finished: Finished, tmp_path: Path, offers: list[Gpu], **training: object) -> list[str]:
    keys = {"sourcing": {"folder": str(finished.pictures)}, "base": str(finished.base), "training": training}
    config, run = library.configure(str(tmp_path / "run"), None, keys)
    return plan.lines(config, run, offers, Show(quiet=True))


def test_a_plan_tells_time_memory_disk_and_price(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LEAST_SECONDS", 0.0)
    told = _lines(finished, tmp_path, [SMALL, LARGE], steps=1000, batch_size=2)
    assert re.match(r"full fine-tune of .*: 1,000 steps of 2 at 32 x 32 pixels, 0\.\d M weights learn", told[0])
    assert re.match(r"  time    .*: .* s a step, .* pictures a second", told[2])
    assert re.match(r"  memory  [\d.]+ GiB of [\d.]+ GiB", told[3])
    assert re.match(r"  disk    .* for \d+ pictures; .* free$", told[4])
    assert 'does not fit: take method = "lora"' in told[7] and re.search(r"giant .* of 100 GiB .* \$\d", told[8])
    assert not (tmp_path / "run").exists(), "looking makes nothing"


def test_what_is_reckoned_of_the_real_shapes_is_what_others_have_counted() -> None:
    unet = shapes.on_meta(plan.SD_2)
    assert shapes.arithmetic(unet, (1, 4, 64, 64), (1, 77, 1024)).tflop == pytest.approx(2.409, rel=0.02)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(865.9e6, rel=1e-3)


def test_adapters_are_counted_without_being_built(tiny_base: Path) -> None:
    unet = Models(tiny_base, torch.device("cpu")).unet
    counted = adapters.count(unet.config, "lora", 2, 4)
    assert counted == sum(p.numel() for p in adapters.add(unet, "lora", 2, 4, 0))


def test_recomputing_keeps_less(tiny_base: Path) -> None:
    unet = Models(tiny_base, torch.device("cpu")).unet
    told = shapes.arithmetic(unet, (1, 4, 32, 32), (1, 77, unet.config.cross_attention_dim))
    assert 0 < told.recomputed < told.kept / 2


def test_the_table_of_gpus_is_the_users_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path))
    assert {g.name for g in plan.gpus(None)} >= {"A100 80 GB", "H100"}
    row = '[[gpu]]\nname = "mine"\nmemory_gib = 8\ntflops = 10\ndollars_an_hour = 0\n'
    (tmp_path / "gpus.toml").write_text(row)
    assert [g.name for g in plan.gpus(None)] == ["mine"]
    (tmp_path / "other.toml").write_text(row.replace("tflops = 10\n", ""))
    with pytest.raises(BadConfigError, match=r"a row \[\[gpu\]\] is not whole: .*tflops.*; give name, memory_gib"):
        plan.gpus(str(tmp_path / "other.toml"))


def test_the_price_of_a_base_is_told_beside_what_others_spent() -> None:
    said = "\n".join(plan.from_scratch([LARGE]))
    assert "150,000 A100-hours, about $600,000" in said
    theirs, ours = (float(x.replace(",", "")) for x in re.findall(r"128 +([\d,]+) \(([\d,]+)\)", said)[0])
    assert theirs == 11_600 and ours == pytest.approx(theirs, rel=0.2)
