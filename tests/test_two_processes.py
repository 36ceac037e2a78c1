"""Two processes learn what one does, each with a part of the weights, or with a text encoder that learns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pair
import pytest
import tiny
import torch
from conftest import ROOT
from test_launch import TAKEN, go, words
from torch import Tensor
from waiting import CEILING

from dovetail.edges import tensors
from dovetail.engines import checkpoints, sharding
from dovetail.errors import BadConfigError

ADAPTED = "lora/weights.safetensors"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def two(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that accelerate starts with `--use_fsdp`; see `pair.py`."""
    out = tmp_path_factory.mktemp("two")
    pictures = tiny.write_pictures(out / "things")
    ready = words(tiny_base, pictures, out, "--use_ema", train_batch_size=2, gradient_accumulation_steps=1)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2"]
    places = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*launcher, "--main_process_port=0", str(Path(pair.__file__)), str(tiny_base), str(out), *ready],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places), "DOVETAIL_HOME": str(out / "home")},
        capture_output=True, text=True, timeout=CEILING, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def told(two: Path) -> list[dict[str, Any]]:
    """What each process says."""
    return [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    """Whether what was learnt is the same to a hundredth of how far it is from what was there before."""
    moved = torch.cat([(wanted[n] - before[n]).flatten().abs() for n in before]).mean()
    apart = torch.cat([(wanted[n] - found[n]).flatten().abs() for n in before]).mean()
    return bool(found.keys() == wanted.keys() and moved > 1e-4 and apart < 0.01 * moved)


def test_each_process_of_a_sharded_training_holds_half(two: Path, tiny_base: Path) -> None:
    every = sum(w.numel() for w in tensors.read(tiny_base / TAKEN).values())
    for said in told(two):
        steps = [set(held.values()) for held in said["held"]]
        assert steps[:4] == [{every // 2}] * 4 and steps[4:8] == [{every}] * 4 and steps[8:16] == [{every // 2}] * 8
        assert said["held"][0].keys() == {"weights", "gradients", "moments", "averages"}


def test_two_processes_learn_what_one_does(two: Path, tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    one = go(tiny_base, pictures, tmp_path / "one", "--use_ema", train_batch_size=4, gradient_accumulation_steps=1)
    losses = [
        [json.loads(row)["loss"] for row in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two / "plain", two / "sharded")
    ]
    base, wanted, plain, sharded = (tensors.read(f / TAKEN) for f in (tiny_base, one, two / "plain", two / "sharded"))
    for found, seen in ((plain, losses[1]), (sharded, losses[2])):
        assert close(found, wanted, base) and seen == pytest.approx(losses[0], rel=1e-4)


def test_a_sharded_training_is_that_of_one_process_and_goes_on_bit_for_bit_or_in_one_piece(
    two: Path, tiny_base: Path, tmp_path: Path
) -> None:
    one = pair.teach(tiny_base, tmp_path / "one", pair.uneven(), pair.FULL)
    first, second = told(two)
    assert first["curve"] == second["curve"] and len({*first["digests"], *second["digests"]}) == 1
    here, there = (checkpoints.read(folder / "checkpoint-6") for folder in (tmp_path / "one", two / "full"))
    before = tensors.read(tiny_base / TAKEN)
    for name in ("unet", "unet_ema"):
        file, about = f"{name}/diffusion_pytorch_model.safetensors", f"checkpoint-6/{name}/config.json"
        assert close(there.files[file], here.files[file], before)
        assert (two / "full" / about).read_text() == (tmp_path / "one" / about).read_text()
    moments, wanted = (found.files["optimizer.safetensors"] for found in (there, here))
    assert close(moments, wanted, {name: torch.zeros_like(x) for name, x in wanted.items()})
    sets = [[row["losses"] for row in curve if "set" in row] for curve in (first["curve"], one.curve)]
    assert len(sets[1]) == 5
    for found, expected in zip(*sets, strict=True):
        for item, losses in expected.items():
            assert found[item] == pytest.approx(losses, rel=1e-4)
    assert (two / "full" / f"best-{one.best[0] if one.best else 0}").exists()
    shutil.copytree(two / "full" / "checkpoint-4", tmp_path / "on" / "checkpoint-4")
    alone = pair.teach(tiny_base, tmp_path / "on", pair.uneven(), pair.FULL)
    assert close(alone.weights, one.weights, before)


@pytest.mark.parametrize("method", list(pair.TAUGHT))
def test_two_processes_teach_a_text_encoder_as_one_does(two: Path, tiny_base: Path, tmp_path: Path, method: str) -> None:
    pair.teach(tiny_base, tmp_path, pair.with_word(), pair.TAUGHT[method])
    one, both = (checkpoints.read(folder / "checkpoint-4").files[ADAPTED] for folder in (tmp_path, two / method))
    before = checkpoints.read(tmp_path / "checkpoint-2").files[ADAPTED]
    read = {name: weight for name, weight in before.items() if name.startswith("text_encoder.")}
    assert read and close(both, one, read) and close(both, one, before)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP 1 is not done here; add --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "leave fsdp_offload_params false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "give --gradient_checkpointing instead"),
    ],
)
def test_what_the_launcher_asks_for_and_is_not_done_is_one_line(more: dict[str, str], said: str) -> None:
    assert sharding.asked(FSDP) and not sharding.asked({}) and not sharding.asked({"ACCELERATE_USE_FSDP": "false"} | more)
    with pytest.raises(BadConfigError, match=said):
        sharding.asked(FSDP | more)


@pytest.mark.parametrize(
    ("more", "world", "scaled", "said"),
    [
        ({}, 1, False, "start several"), ({"method": "lora"}, 2, False, "take method full"),
        ({"fused_backward": True, "max_grad_norm": None}, 2, False, "leave it"),
        ({"use_8bit_adam": True}, 2, False, "leave use_8bit_adam"), ({}, 2, True, "take mixed_precision bf16"),
    ],
)  # fmt: skip
def test_what_cannot_be_sharded_says_so(more: dict[str, Any], world: int, scaled: bool, said: str) -> None:
    assert sharding.fault(pair.schooling.config(), 2, False) is None
    fault = sharding.fault(pair.schooling.config(**more), world, scaled)
    assert fault and fault[1].startswith(said)


def test_one_process_has_none_to_share_with(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="one process has no other to share its weights with; start several"):
        go(tiny_base, pictures, tmp_path / "out", "--shard")
