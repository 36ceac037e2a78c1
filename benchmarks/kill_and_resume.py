"""Killed with SIGKILL at random moments and started again, does the training end with the same weights? Exit code 1 if not.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0] [--set training.steps=60 ...]

What comes before training is done once; then each kill has a run of its own, which is copied from there, killed at a moment
drawn from the whole length of an uninterrupted one (its start, its checkpoints and its end too), and started again until it is
done. Its weights are compared with the uninterrupted run's, and every checkpoint that the kill left behind is read back.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dovetail.engines import checkpoints
from dovetail.errors import StoreError

HERE = Path(__file__).parents[1]
SETTINGS = ("training.steps=60", "training.checkpoint_every=10", "training.held_out_every=20", "training.sample_every=30")


def command(run: Path, until: str, settings: list[str]) -> list[str]:
    """The job on the shipped pictures up to a stage."""
    words = [str(Path(sys.executable).with_name("dovetail")), "run", str(HERE / "examples" / "televisions"), "--run", str(run)]
    return [*words, "--until", until, *(x for s in (*SETTINGS, *settings) for x in ("--set", s))]


def start(words: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        words, env=os.environ | {"DOVETAIL_HOME": f"{words[4]}-home"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(words: list[str]) -> float:
    """Seconds that it took to its end."""
    began = time.perf_counter()
    if start(words).wait() != 0:
        raise SystemExit(f"failed: {' '.join(words)}")
    return time.perf_counter() - began


def digest(run: Path) -> str:
    """Of the trained weights."""
    (file,) = [p for p in run.glob("training/*/training.json") if ".partial" not in p.parent.name]
    return str(json.loads(file.read_text())["weights_digest"])


def left(run: Path) -> tuple[list[str], list[str]]:
    """Checkpoints that a kill left: whole ones, and those with a final name that are not whole."""
    whole, torn = [], []
    for root in run.glob("training/*/checkpoints"):
        for folder in (*checkpoints.every(root), *checkpoints.every(root, "best")):
            try:
                checkpoints.read(folder)
                whole.append(folder.name)
            except StoreError:
                torn.append(folder.name)
    return whole, torn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as in dovetail run")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    same = broken = 0
    with tempfile.TemporaryDirectory() as place:
        prepared, whole = Path(place, "prepared"), Path(place, "whole")
        finish(command(prepared, "processing", args.settings))
        shutil.copytree(prepared, whole)
        seconds = finish(command(whole, "training", args.settings))
        wanted = digest(whole)
        print(f"uninterrupted: {seconds:.1f} s, weights {wanted[:16]}", flush=True)
        for number in range(1, args.kills + 1):
            run, moment = Path(place, "killed"), chance.uniform(0, 1) * seconds
            shutil.copytree(prepared, run)
            process = start(command(run, "training", args.settings))
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kept, torn = left(run)
            finish(command(run, "training", args.settings))
            found = digest(run)
            same, broken = same + (found == wanted), broken + len(torn)
            verdict = "the same" if found == wanted else "DIFFERENT"
            print(
                f"{number}: killed after {moment:.1f} s, left {', '.join(kept) or 'nothing'}; weights {found[:16]}: {verdict}",
                flush=True,
            )
            for folder in Path(place).glob("killed*"):
                shutil.rmtree(folder)
    print(f"{same} of {args.kills} ended with the same weights; {broken} checkpoints were torn")
    sys.exit(same != args.kills or broken > 0)


if __name__ == "__main__":
    main()
