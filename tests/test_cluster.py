"""The same training by processes that Ray starts."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import ray
import torch
from test_launch import TAKEN, go
from waiting import CEILING, until

from dovetail.edges import cluster, tensors
from dovetail.errors import BadConfigError, BadInputError

STEPS = 60  # enough to be killed in
SIZES = {"train_batch_size": 2, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def local_cluster():
    """Two workers on this machine, however many cores it has."""
    ray.init(
        address="local",  # one of its own, whatever else runs here
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def test_two_workers_learn_what_one_process_does(local_cluster, tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    go(tiny_base, pictures, tmp_path / "one", train_batch_size=4, gradient_accumulation_steps=1)
    go(tiny_base, pictures, tmp_path / "two", ray_workers=2, **SIZES)
    base, one, two = (tensors.read(folder / TAKEN) for folder in (tiny_base, tmp_path / "one", tmp_path / "two"))
    moved = torch.cat([(one[n] - base[n]).flatten().abs() for n in base]).mean()
    apart = torch.cat([(one[n] - two[n]).flatten().abs() for n in base]).mean()
    assert moved > 1e-4 and apart < 0.01 * moved


@pytest.mark.cluster
def test_a_worker_that_is_lost_is_replaced_and_the_training_goes_on(
    local_cluster, tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    out, killed = tmp_path / "out", []

    def kill_one() -> None:
        """The process that is at work on this training, once its first checkpoint is there."""
        until((out / "checkpoint-2").exists)
        victim = next(
            int(file.parent.name) for file in Path("/proc").glob("[0-9]*/cmdline") if b"RayTrainWorker" in file.read_bytes()
        )
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    go(
        tiny_base,
        pictures,
        out,
        ray_workers=1,
        max_train_steps=STEPS,
        checkpointing_steps=2,
        checkpoints_total_limit=2,
        **SIZES,
    )
    thread.join(CEILING)
    assert killed
    whole = go(tiny_base, pictures, tmp_path / "whole", max_train_steps=STEPS, checkpointing_steps=2, **SIZES)
    assert tensors.digest(tensors.read(out / TAKEN)) == tensors.digest(tensors.read(whole / TAKEN))
    steps = [json.loads(row)["step"] for row in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == STEPS


@pytest.mark.cluster
def test_what_is_wrong_is_said_in_one_line(local_cluster, tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="3 workers want a CPU each, and the cluster has 2"):
        go(tiny_base, pictures, tmp_path / "few", ray_workers=3, **SIZES)
    with pytest.raises(BadInputError, match="nowhere"):
        go(tiny_base, pictures, tmp_path / "column", ray_workers=1, caption_column="nowhere", **SIZES)
    with pytest.raises(BadConfigError, match="--ray_workers must be 0 or above"):
        go(tiny_base, pictures, tmp_path / "less", ray_workers=-1)


def test_without_ray_it_says_what_to_install(tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BadConfigError, match=r"pip install 'dovetail\[cluster\]'"):
        go(tiny_base, pictures, tmp_path / "out", ray_workers=1)


@pytest.mark.parametrize(("address", "token", "mode"), [("h:1", True, "token"), ("h:1", False, None), ("", True, None)])
def test_a_cluster_that_is_joined_is_shown_the_token_of_this_account(address, token, mode, tmp_path: Path, monkeypatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    cluster._with_token()
    assert os.environ.get("RAY_AUTH_MODE") == mode
