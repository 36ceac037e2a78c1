"""Killed with SIGKILL at random moments and started again, does the job end with the same weights? Exit code 1 if not.

.venv/bin/python benchmarks/kill_and_resume.py [--kills 3] [--seed 0] [--set training.steps=100 ...]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]


def digest(run: Path) -> str:
    """Of the trained weights."""
    (file,) = [p for p in run.glob("training/*/training.json") if ".partial" not in p.parent.name]
    return json.loads(file.read_text())["weights_digest"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        dovetail = str(Path(sys.executable).with_name("dovetail"))

        def command(name: str) -> tuple[list[str], dict[str, str]]:
            words = [dovetail, "run", str(HERE / "examples" / "televisions"), "--run", f"{place}/{name}"]
            return words + [x for s in args.set for x in ("--set", s)], os.environ | {"DOVETAIL_HOME": f"{place}/home-{name}"}

        words, environment = command("whole")
        started = time.perf_counter()
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        wanted = digest(Path(place, "whole"))
        print(f"uninterrupted: {seconds:.0f} s, weights {wanted[:16]}", flush=True)
        words, environment = command("killed")
        for moment in sorted(chance.uniform(0.05, 0.9) * seconds for _ in range(args.kills)):
            # Each try goes on from the last: it is killed after the share of the whole that is still to come.
            share = moment / args.kills
            process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(share)
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = sorted(p.parent.parent.name for p in Path(place, "killed").glob("*/*/manifest.json"))
            print(f"killed after {share:.1f} s; sealed so far: {', '.join(done) or 'nothing'}", flush=True)
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = digest(Path(place, "killed"))
        print(f"killed {args.kills} times: weights {found[:16]}: {'the same' if found == wanted else 'DIFFERENT'}")
        sys.exit(found != wanted)


if __name__ == "__main__":
    main()
