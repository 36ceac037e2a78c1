"""The main job as a user runs it: killed in the middle, stopped in the middle, run again, the same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tiny import flags, short
from waiting import CEILING, until

from dovetail import library

STEPS = 60


def _start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "dovetail.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _checkpoints(run: Path) -> list[int]:
    folders = run.glob("training/*.partial/checkpoints/checkpoint-*")
    return [int(p.name.removeprefix("checkpoint-")) for p in folders]


def _wait_for_checkpoint(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    until(lambda: process.poll() is not None or any(n >= step for n in _checkpoints(run)), lambda: "no checkpoint appeared")
    assert process.poll() is None, f"it ended by itself: {process.communicate()}"


def test_killed_and_stopped_during_training_the_same_command_ends_with_the_same_weights(
    tmp_path: Path, pictures: Path, tiny_base: Path
) -> None:
    tables = short(training={"steps": STEPS, "checkpoint_every": 4, "sample_every": STEPS, "held_out_every": STEPS})
    run = tmp_path / "killed"
    words = ["run", str(pictures), "--run", str(run), "--base", str(tiny_base), *flags(tables)]

    process = _start(*words)
    _wait_for_checkpoint(run, 4, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    process = _start(*words)
    _wait_for_checkpoint(run, 12, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=CEILING)
    assert process.returncode == 130 and err.splitlines()[-1] == "dovetail: stopped; the same command goes on from here"
    left = max(_checkpoints(run))
    assert 12 <= left < STEPS, "the stop came too late to say anything"

    done = tiny.cli(*words)
    assert done.returncode == 0, done.stderr
    whole = library.run(str(pictures), run=str(tmp_path / "whole"), until="training", base=str(tiny_base), **tables)
    sealed = {s.stage: s.artifact for s in library.status(run=str(run))}
    assert sealed["training"] and sealed["production"]
    digests = [
        json.loads((a.folder / "training.json").read_text())["weights_digest"] for a in (sealed["training"], whole["training"])
    ]
    assert digests[0] == digests[1]
    assert sealed["training"].content == whole["training"].content, "the weights are the same, something beside them is not"
    assert "report.html" in done.stdout and (run / "report.html").is_file()
    assert "of its own bf16 convolution peak; of a step&#x27;s time: data" in (run / "report.html").read_text()
    assert os.environ["DOVETAIL_HOME"] in done.stdout


def test_a_run_in_a_fresh_place_needs_a_folder_and_nothing_else(
    tmp_path: Path, pictures: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    library.run(str(pictures), base=str(tiny_base), until="buildout")
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["runs"]
    assert (tmp_path / "work" / "runs" / "things" / "report.html").is_file()
