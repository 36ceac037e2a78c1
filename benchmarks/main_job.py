"""The main job, measured: wall time, peak memory, seconds of each stage, and what a second run costs.

.venv/bin/python benchmarks/main_job.py [FOLDER] [--set training.steps=100 ...]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parents[1]


def watch_memory(pid: int, found: list[int], stop: threading.Event) -> None:
    """Largest resident set of a process and its children, in kilobytes, looked at ten times a second."""
    while not stop.wait(0.1):
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            except OSError:
                continue
            if pid in (int(fields.get("Pid", 0)), int(fields.get("PPid", 0))):
                total += int(fields.get("VmRSS", "0 kB").split()[0])
        found.append(total)


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Seconds and peak kilobytes of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    found, stop = [0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(process.pid, found, stop))
    watcher.start()
    said, _ = process.communicate()
    stop.set()
    watcher.join()
    print(said)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, max(max(found), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=str(HERE / "examples" / "televisions"))
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        environment = os.environ | {"DOVETAIL_HOME": f"{place}/home"}
        dovetail = str(Path(sys.executable).with_name("dovetail"))
        command = [dovetail, "run", args.folder, "--run", f"{place}/run", *(x for s in args.set for x in ("--set", s))]
        first, peak = timed(command, environment)
        again, _ = timed(command, environment)
        rows = [json.loads(p.read_text()) for p in Path(place, "run").glob("*/*/manifest.json")]
        for row in sorted(rows, key=lambda r: r["made_at"]):
            print(f"{row['stage']:<12} {row['seconds']:8.1f} s")
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"whole job {first:.1f} s, again {again:.2f} s, peak memory {max(peak, largest) / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
