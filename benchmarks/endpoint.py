"""The endpoint beside a plain server: latency, load, faults, determinism, swaps, start and memory; over HTTP, on this machine.

    python benchmarks/endpoint.py [--only latency load same drops soak overload swaps start] [--engine openvino] [--minutes 1]

The peer is a FastAPI server around diffusers' pipeline with a lock, as most are written: same model, threads and steps, in
float32 and in bf16. Each server is a process of its own. Figures are printed, and written as JSON where `--out` says.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

PROMPTS = ("a television on a red background", "a cat on a blue background", "a dog", "a tree and a house", "a guitar")
GUIDANCE = 5.0
PEER = """
import io, sys, threading, torch, uvicorn
from diffusers import StableDiffusionPipeline
from fastapi import FastAPI
from fastapi.responses import Response
folder, dtype, port = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), safety_checker=None)
pipe.set_progress_bar_config(disable=True)
app, lock = FastAPI(), threading.Lock()
@app.get("/ready")
def ready(): return "ok"
@app.post("/")
def paint(wanted: dict):
    with lock:
        picture = pipe(wanted["prompt"], num_inference_steps=wanted["steps"], guidance_scale=wanted["guidance_scale"],
                       generator=torch.Generator().manual_seed(wanted["seed"])).images[0]
    held = io.BytesIO()
    picture.save(held, "PNG")
    return Response(held.getvalue(), media_type="image/png")
uvicorn.run(app, port=int(port), log_level="warning")
"""


class Server:
    """A server in a process of its own."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str] | None = None) -> None:
        began = time.perf_counter()
        self.url, self.process = f"http://127.0.0.1:{port}", subprocess.Popen(command, env=os.environ | (environment or {}))
        while True:
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise SystemExit("the server did not start") from None
            time.sleep(0.02)
        self.ready_seconds = time.perf_counter() - began

    def mebibytes(self) -> float:
        """That it holds now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def metric(self, name: str) -> float:
        """A plain value from its metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#"))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def ours(model: str, engine: str) -> Server:
    command = [sys.executable, "-c", "from dovetail.cli import main; main()", "serve", model, "--port", "8123"]
    return Server([*command, "--set", f"endpoint.engine={engine}"], 8123)


def peer(folder: str, dtype: str) -> Server:
    return Server([sys.executable, "-c", PEER, folder, dtype, "8124"], 8124)


def wish(dice: random.Random, steps: int | None = None) -> dict[str, Any]:
    return {
        "prompt": dice.choice(PROMPTS), "seed": dice.randrange(2**31), "steps": steps or dice.randint(4, 50),
        "guidance_scale": GUIDANCE,
    }  # fmt: skip


async def ask(client: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> tuple[int, float, bytes]:
    """Status, seconds, PNG."""
    began = time.perf_counter()
    if server.url.endswith("4"):
        answer = await client.post(f"{server.url}/", json=body)
        return answer.status_code, time.perf_counter() - began, answer.content
    answer = await client.post(f"{server.url}/v1/images/generations", json=body)
    spent = time.perf_counter() - began
    picture = base64.b64decode(answer.json()["data"][0]["b64_json"]) if answer.status_code == 200 else b""
    return answer.status_code, spent, picture


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


async def latency(args: argparse.Namespace) -> dict[str, Any]:
    """One request at a time, 20 guided steps; interleaved."""
    servers = {"dovetail": ours(args.model, args.engine), "float32": peer(args.folder, "float32")}
    took: dict[str, list[float]] = {name: [] for name in servers}
    apart = []
    async with httpx.AsyncClient(timeout=600) as client:
        for name in ("float32", "bfloat16"):
            if name == "bfloat16":
                servers["float32"].stop()
                servers["bfloat16"] = peer(args.folder, "bfloat16")
                took |= {"bfloat16": [], "dovetail beside bfloat16": []}
            own = "dovetail" if name == "float32" else "dovetail beside bfloat16"
            for number in range(args.repeats + 1):
                body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "steps": 20, "guidance_scale": GUIDANCE}
                _, mine, picture = await ask(client, servers["dovetail"], body)
                _, theirs, other = await ask(client, servers[name], body)
                if number:
                    took[own].append(mine)
                    took[name].append(theirs)
                if name == "float32":
                    apart.append(float(np.abs(pixels_of(picture) - pixels_of(other)).mean()))
    for server in servers.values():
        server.stop()
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    for name, seconds in took.items():
        print(f"  {name}: {told(seconds)}")
    found = {
        "of float32": middle["dovetail"] / middle["float32"], "apart of 255": statistics.mean(apart),
        "of bfloat16": middle["dovetail beside bfloat16"] / middle["bfloat16"],
    }  # fmt: skip
    return {"seconds": took} | found


async def offered(
    server: Server, rate: float, count: int, seed: int, dice_of: Callable[[random.Random], dict[str, Any]]
) -> Any:
    """Poisson arrivals; seconds of each and of all."""
    dice = random.Random(seed)
    async with httpx.AsyncClient(timeout=1200, limits=httpx.Limits(max_connections=None)) as client:
        tasks, began = [], time.perf_counter()
        for _ in range(count):
            tasks.append(asyncio.create_task(ask(client, server, dice_of(dice))))
            await asyncio.sleep(dice.expovariate(rate))
        done = await asyncio.gather(*tasks)
    return done, time.perf_counter() - began


async def saturated(server: Server, seconds: float, callers: int) -> float:
    """Pictures a second of callers that ask again as soon as they are answered, mixed steps."""
    ends, count = time.perf_counter() + seconds, 0

    async def caller(number: int, client: httpx.AsyncClient) -> None:
        nonlocal count
        dice = random.Random(number)
        while time.perf_counter() < ends:
            status, _, _ = await ask(client, server, wish(dice))
            count += status == 200
            await asyncio.sleep(0 if status == 200 else 1)

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(caller(n, client) for n in range(callers)))
    return count / (time.perf_counter() - began)


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """Poisson load at 80 % of the peer's capacity, 4 to 50 steps; and what each does at most."""
    found: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        other = peer(args.folder, dtype)
        found[f"peer {dtype} at most"] = await saturated(other, 60 * args.minutes, 4)
        rate, count = 0.8 * found[f"peer {dtype} at most"], args.arrivals
        done, _ = await offered(other, rate, count, 1, wish)
        found[f"peer {dtype} p95"] = float(np.quantile([s for _, s, _ in done], 0.95))
        other.stop()
        mine = ours(args.model, args.engine)
        done, _ = await offered(mine, rate, count, 1, wish)
        assert all(status == 200 for status, _, _ in done)
        found[f"p95 beside {dtype}"] = float(np.quantile([s for _, s, _ in done], 0.95))
        found[f"at most beside {dtype}"] = await saturated(mine, 60 * args.minutes, 4)
        mine.stop()
        found[f"p95 of {dtype}"] = found[f"p95 beside {dtype}"] / found[f"peer {dtype} p95"]
        found[f"throughput of {dtype}"] = found[f"at most beside {dtype}"] / found[f"peer {dtype} at most"]
    return found


def anything(dice: random.Random, side: int, samplers: list[str]) -> dict[str, Any]:
    """A wish of random parameters."""
    wanted = wish(dice, dice.randint(2, 12)) | {"guidance_scale": dice.choice([1.0, 2.5, 5.0, 9.0])}
    wanted |= {"sampler": dice.choice(samplers), "negative_prompt": dice.choice(["", "blue"])}
    return wanted | {"size": dice.choice(["auto", "auto", f"{side}x{side * 2}"])}


async def same(args: argparse.Namespace) -> dict[str, Any]:
    """Requests with random parameters under load, again alone: the same bytes?"""
    server = ours(args.model, args.engine)
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]
    dice = random.Random(5)
    bodies = [anything(dice, model["size"], model["samplers"]) for _ in range(args.count)]
    room = asyncio.Semaphore(24)
    async with httpx.AsyncClient(timeout=1200) as client:

        async def held(body: dict[str, Any]) -> tuple[int, float, bytes]:
            async with room:
                return await ask(client, server, body)

        together = await asyncio.gather(*(held(body) for body in bodies))
        rows = server.metric("dovetail_rows_sum") / server.metric("dovetail_rows_count")
        alone = [await ask(client, server, body) for body in bodies]
    server.stop()
    alike = sum(a[2] == b[2] and a[0] == b[0] == 200 for a, b in zip(together, alone, strict=True))
    return {"asked": len(bodies), "same bytes": alike, "rows a call under load": rows}


async def drops(args: argparse.Namespace) -> dict[str, Any]:
    """Requests that are left at a random moment, or may take only so long: is all given back, and does memory stay?"""
    server, dice, room = ours(args.model, args.engine), random.Random(6), asyncio.Semaphore(24)
    statuses: dict[str, int] = {}
    held = []
    async with httpx.AsyncClient(timeout=1200) as client:

        async def one(number: int) -> None:
            async with room:
                body = wish(dice) | ({"deadline_seconds": dice.uniform(0.05, 2)} if number % 3 == 0 else {})
                task = asyncio.create_task(ask(client, server, body))
                try:
                    said = str((await asyncio.wait_for(task, dice.uniform(0.01, 3) if number % 3 == 1 else 600))[0])
                except (TimeoutError, httpx.HTTPError):
                    said = "left"
                statuses[said] = statuses.get(said, 0) + 1
                if number % 100 == 0:
                    held.append(round(server.mebibytes()))

        await asyncio.gather(*(one(n) for n in range(args.count * 2)))
        await asyncio.sleep(1)
        left = server.metric("dovetail_waiting") + server.metric("dovetail_running")
        status, _, _ = await ask(client, server, wish(dice, 4))
    server.stop()
    return {"answers": statuses, "not given back": left, "paints after": status == 200, "MiB over time": held}


async def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Eight callers for `--minutes`, a third of whose requests are left: memory each tenth of the time, half a minute in."""
    server, dice, count, held = ours(args.model, args.engine), random.Random(8), 0, list[int]()
    began, ends = time.perf_counter(), time.perf_counter() + 60 * args.minutes

    async def caller(client: httpx.AsyncClient) -> None:
        nonlocal count
        while time.perf_counter() < ends:
            task = asyncio.create_task(ask(client, server, wish(dice)))
            with contextlib.suppress(TimeoutError, httpx.HTTPError):
                await asyncio.wait_for(task, dice.uniform(0.05, 2) if dice.random() < 0.33 else 600)
            count += 1

    async def looker() -> None:
        await asyncio.sleep(30)
        while time.perf_counter() < ends:
            held.append(round(server.mebibytes()))
            await asyncio.sleep((ends - began - 30) / 10)

    async with httpx.AsyncClient(timeout=1200) as client:
        await asyncio.gather(looker(), *(caller(client) for _ in range(8)))
    await asyncio.sleep(1)
    left = server.metric("dovetail_waiting") + server.metric("dovetail_running")
    server.stop()
    return {"requests": count, "not given back": left, "MiB over time": held}


async def overload(args: argparse.Namespace) -> dict[str, Any]:
    """Five times what it can do."""
    server = ours(args.model, args.engine)
    able = await saturated(server, 20, 4)
    began = time.perf_counter()
    done, _ = await offered(server, 5 * able, int(5 * able * 60 * args.minutes), 2, wish)
    offered_for = time.perf_counter() - began
    answers: dict[str, int] = {}
    for status, _, _ in done:
        answers[str(status)] = answers.get(str(status), 0) + 1
    async with httpx.AsyncClient(timeout=600) as client:
        began = time.perf_counter()
        while (await ask(client, server, wish(random.Random(1), 20)))[0] != 200:
            await asyncio.sleep(0.1)
        back = time.perf_counter() - began
    held = server.mebibytes()
    server.stop()
    return {"able": able, "seconds": offered_for, "answers": answers, "first picture after": back, "MiB": held}


async def swaps(args: argparse.Namespace) -> dict[str, Any]:
    """Two versions of one name, put in force in turn under load: no request fails, and each picture says who made it."""
    from dovetail.edges.registry import Registry, default_root

    registry = Registry(default_root())
    for version in ("a", "b"):
        registry.add("swapped", version, Path(args.folder))
    registry.promote("swapped", "a", "benchmark")
    server, dice, answers, ended = ours("swapped", args.engine), random.Random(3), [], False

    async def caller(client: httpx.AsyncClient) -> None:
        while not ended:
            answer = await client.post(f"{server.url}/v1/images/generations", json=wish(dice, 12))
            png = base64.b64decode(answer.json()["data"][0]["b64_json"]) if answer.status_code == 200 else b""
            says = Image.open(io.BytesIO(png)).info.get("version") if png else None
            answers.append((answer.status_code, answer.headers.get("x-dovetail-version"), says))

    async with httpx.AsyncClient(timeout=600) as client:
        tasks = [asyncio.create_task(caller(client)) for _ in range(4)]
        for number in range(20):
            version = "ba"[number % 2]
            registry.promote("swapped", version, "benchmark")
            ends = time.perf_counter() + 60
            while time.perf_counter() < ends:
                if (await client.get(f"{server.url}/health")).json()["version"] == version:
                    break
                await asyncio.sleep(0.1)
        ended = True
        await asyncio.gather(*tasks)
    server.stop()
    return {
        "requests": len(answers), "failed": sum(s != 200 for s, _, _ in answers), "by a": sum(v == "a" for _, v, _ in answers),
        "by b": sum(v == "b" for _, v, _ in answers), "say otherwise": sum(v != w for _, v, w in answers),
    }  # fmt: skip


async def start(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the command to ready, and memory then; the first start of all leaves what later ones need."""
    seconds, held = [], []
    for _ in range(args.repeats):
        server = ours(args.model, args.engine)
        seconds.append(server.ready_seconds)
        held.append(server.mebibytes())
        server.stop()
    return {"seconds to ready": seconds, "idle MiB": held}


BARS = {f.__name__: f for f in (latency, load, same, drops, soak, overload, swaps, start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--only", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--arrivals", type=int, default=120)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=0.5, help="of each part that takes as long as one likes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from dovetail import bases

    args.folder = str(bases.find(args.model))
    found = {}
    for name in args.only:
        found[name] = asyncio.run(BARS[name](args))
        print(name, json.dumps(found[name]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
