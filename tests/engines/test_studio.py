"""The painter behind an endpoint: the same bytes in any company, faults that stay with their wish, nothing left behind."""

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from schooling import CPU
from tiny import SIDE
from torch import Tensor
from waiting import CEILING, until

from dovetail.core import solvers
from dovetail.edges import adapters, pixels
from dovetail.edges.models import Models
from dovetail.engines import painter, receipts, revisions, studio
from dovetail.engines.revisions import Revision
from dovetail.engines.studio import Studio
from dovetail.wishes import (
    BusyError,
    Caller,
    ClosedError,
    DroppedError,
    LateError,
    Painted,
    Served,
    Ticket,
    UnpaintableError,
    Wish,
    WishError,
)  # fmt: skip

WISH = Wish(prompt="a cat", seed=3, steps=4, guidance_scale=3.0, width=SIDE, height=SIDE)


def revision(folder: Path, version: str = "1", engine: str = "torch") -> Revision:
    models = Models(folder, CPU)
    own = solvers.own(models.scheduler().config)
    served = Served(
        name="cats", version=version, digest=version * 8, side=SIDE, multiple=models.pixels_per_step, most_pixels=4 * SIDE**2,
        samplers=(own, *(n for n in solvers.NAMES if n != own)), licence="none",
    )  # fmt: skip
    return Revision(models, served, engine)


@pytest.fixture(scope="module")
def cats(tiny_base: Path) -> Revision:
    return revision(tiny_base)


@pytest.fixture
def painting(cats: Revision) -> Iterator[Studio]:
    made = Studio(cats)
    yield made
    made.close(CEILING)


class Gate:
    """Holds up the U-Net: `let(n)` lets n calls through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: Revision) -> None:
        self.calls, self.seats = 0, threading.Semaphore(0)
        predict = held.predict

        def held_up(parts: Any) -> list[Tensor]:
            self.calls += 1
            self.seats.acquire()
            return predict(parts)

        monkeypatch.setattr(held, "predict", held_up)

    def let(self, calls: int = 100_000) -> None:
        for _ in range(calls):
            self.seats.release()


def any_wish(dice: random.Random, image: bytes) -> Wish:
    side = dice.choice([SIDE, SIDE, 2 * SIDE])
    return Wish(
        prompt=dice.choice(["a cat", "a dog on a red background, " * 12, "", "a tree"]), seed=dice.randrange(10**6),
        negative_prompt=dice.choice(["", "blue"]), steps=dice.randint(2, 7), guidance_scale=dice.choice([1.0, 2.5, 7.0]),
        width=side, height=dice.choice([SIDE, side]), sampler=dice.choice(["", *solvers.NAMES]),
        image=dice.choice([b"", b"", image]), strength=dice.choice([0.5, 0.9]),
        lora_scale=dice.choice([1.0, 1.0, 0.0, 0.5, dice.uniform(0, 2)]),
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["torch", "bf16", "openvino"])
def test_company_changes_no_byte(
    by_engine: Callable[[str], Revision], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, image = random.Random(1), pixels.png(np.full((20, 30, 3), 90, np.uint8))
    wishes = [any_wish(dice, image) for _ in range(24)]
    calls: list[list[float | None]] = []  # distance from the LoRA scale 1 of each picture in a call
    held, all_there = by_engine(engine), threading.Event()
    predict = held.predict

    def watched(parts: Any) -> list[Tensor]:
        all_there.wait(CEILING)
        calls.append([None if told.shift is None else float(told.shift[0]) for _, _, told in parts])
        return predict(parts)

    monkeypatch.setattr(held, "predict", watched)
    made = Studio(held, rows=99)
    tickets = made.submit(wishes, Caller())
    until(lambda: not made.state()["waiting"] and not made._preparing)
    all_there.set()
    crowded = [t.future.result(CEILING).png for t in tickets]
    together = [t.future.result(CEILING).png for w in wishes for t in made.submit([w], Caller(key=str(w.seed % 3)))]
    made.close()
    assert crowded == together and max(map(len, calls)) > 1 and max(len(set(call)) for call in calls) > 2
    assert all(None not in call or set(call) == {None} for call in calls)
    (whole := Path(shutil.copytree(held.models.folder, tmp_path / "whole")) / adapters.FILE).unlink()
    without = Studio(Revision(Models(whole.parent, CPU), replace(held.served, lora=False), engine, held._kept))
    at_1 = [i for i, wish in enumerate(wishes) if wish.lora_scale == 1]
    alone = without.submit([wishes[i] for i in at_1], Caller())
    assert [t.future.result(CEILING).png for t in alone] == [together[i] for i in at_1]
    without.close()


def test_it_is_the_picture_that_the_painter_paints(painting: Studio, tiny_base: Path) -> None:
    (ticket,) = painting.submit([WISH], Caller())
    order = painter.Order(prompt=WISH.prompt, seed=WISH.seed)
    other = painter.paint(Models(tiny_base, CPU), [order], steps=4, guidance_scale=3.0)[0]
    painted = pixels.decode(ticket.future.result(CEILING).png, (0, 0, 0)).pixels
    assert np.abs(painted.astype(int) - other).max() <= 1 and painted.std() > 1


def test_a_short_wish_does_not_wait_for_a_long_one(painting: Studio) -> None:
    (long,) = painting.submit([replace(WISH, steps=100)], Caller())
    until(lambda: long.step > 2)
    (short,) = painting.submit([replace(WISH, steps=2)], Caller())
    short.future.result(CEILING)
    assert not long.future.done() and long.step < 90
    long.future.result(CEILING)


def test_previews_come_on_the_way_and_look_like_what_comes(painting: Studio) -> None:
    heard: list[int] = []
    (ticket,) = painting.submit([replace(WISH, steps=9)], Caller(previews=2))
    ticket.heard = lambda t: heard.append(len(t.previews))
    end = pixels.decode(ticket.future.result(CEILING).png, (0, 0, 0)).pixels.astype(int)
    assert len(ticket.previews) == 2
    first, last = (np.abs(pixels.decode(p, (0, 0, 0)).pixels.astype(int) - end).mean() for p in ticket.previews)
    assert 0 < last < first


def test_previews_of_a_slow_decoder_are_colours_of_the_latents(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "QUICK_SECONDS", 0.0)
    slow = revision(tiny_base)
    made, decode, calls = Studio(slow), slow.models.decode, list[int]()
    monkeypatch.setattr(slow.models, "decode", lambda latents: (calls.append(1), decode(latents))[1])
    made.submit([WISH], Caller())[0].future.result(CEILING)
    (ticket,) = made.submit([replace(WISH, steps=9, seed=4)], Caller(previews=3))
    end = pixels.decode(ticket.future.result(CEILING).png, (0, 0, 0)).pixels.astype(float)
    last = pixels.decode(ticket.previews[-1], (0, 0, 0)).pixels.astype(float)
    assert len(calls) == 2 and last.shape == end.shape  # a decoding for each finished picture, none for the previews
    assert np.abs(end - last).mean() < np.abs(end - 255 + last).mean()  # nearer than its negative
    made.close()


def test_what_is_dropped_or_late_is_gone_within_a_step(cats: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch, cats), Studio(cats)
    began = time.monotonic()
    (dropped,) = made.submit([replace(WISH, steps=50)], Caller())
    (late,) = made.submit([replace(WISH, steps=50)], Caller(seconds=0.3))
    until(lambda: gate.calls == 1)
    dropped.drop()
    until(lambda: time.monotonic() > began + 0.35)  # the time of the other one is up
    before = gate.calls
    gate.let(2)
    with pytest.raises(DroppedError):
        dropped.future.result(CEILING)
    with pytest.raises(LateError, match=r"0\.3 s"):
        late.future.result(CEILING)
    until(lambda: not made.under_way())
    assert gate.calls - before <= 1
    gate.let()
    made.close()


def test_a_wish_that_fails_fails_alone(cats: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Studio(cats)
    predict = cats.predict

    def poisoned(parts: Any) -> list[Tensor]:
        if any(latents.shape[-1] != parts[0][0].shape[-1] or torch.equal(told.states, bad) for latents, _, told in parts):
            raise RuntimeError("poison in /secret/place")
        return [a * torch.nan if len(told.states) == 1 else a for a, (_, _, told) in zip(predict(parts), parts, strict=True)]

    bad = cats.told(replace(WISH, prompt="a dog")).states
    monkeypatch.setattr(cats, "predict", poisoned)
    wishes = [WISH, replace(WISH, prompt="a dog"), replace(WISH, guidance_scale=1.0), replace(WISH, seed=8, steps=9)]
    tickets = [made.submit([w], Caller())[0] for w in wishes]
    wait([t.future for t in tickets], CEILING)
    assert [type(t.future.exception()) for t in tickets] == [type(None), UnpaintableError, UnpaintableError, type(None)]
    assert "secret" not in str(tickets[1].future.exception()) and "no numbers" in str(tickets[2].future.exception())
    made.close()


def test_it_says_that_it_cannot_paint_and_comes_back_by_itself(cats: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio, "PROBE_SECONDS", 0.05)
    made, predict = Studio(cats), cats.predict

    def broken(parts: Any) -> list[Tensor]:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(cats, "predict", broken)
    for _ in range(studio.SICK):
        with pytest.raises(UnpaintableError):
            made.submit([WISH], Caller())[0].future.result(CEILING)
    until(lambda: not made.ready)
    monkeypatch.setattr(cats, "predict", predict)
    until(lambda: made.ready)
    made.close()


def test_a_full_queue_is_refused_with_the_time_it_takes(cats: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch, cats), Studio(cats, rows=2)
    made._rate = 10.0
    tickets: list[Ticket] = []
    with pytest.raises(BusyError) as busy:
        for _ in range(100):
            tickets += made.submit([replace(WISH, steps=10)], Caller())
    assert 15 <= len(tickets) <= 18 and 1 <= busy.value.retry_after_seconds <= 120
    assert made.state()["waiting"] >= len(tickets) - 1 and made.state()["running"] <= 1
    gate.let()
    wait([t.future for t in tickets], CEILING)
    assert all(isinstance(t.future.result(), Painted) for t in tickets)
    made.close()


def test_keys_share_fairly_and_steps_are_lowered_only_where_allowed(cats: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch, cats), Studio(cats, rows=2)
    monkeypatch.setattr(studio, "CALM_SECONDS", 0.0)
    order: list[str] = []
    tickets = [made.submit([WISH], Caller(key="many"))[0] for _ in range(6)]
    tickets += made.submit([replace(WISH, steps=8, least_steps=2)], Caller(key="one"))
    for ticket in tickets:
        ticket.future.add_done_callback(lambda f, t=ticket: order.append(t.caller.key))  # type: ignore[misc]
    gate.let()
    wait([t.future for t in tickets], CEILING)
    until(lambda: len(order) == 7)
    assert order.index("one") <= 2
    assert tickets[-1].future.result().degraded == "steps 8 -> 2" and tickets[-1].future.result().wish.steps == 2
    assert all(t.future.result().degraded == "" for t in tickets[:-1])
    made.close()


def test_a_swap_at_a_step_ends_what_runs_on_the_old_weights(tiny_base: Path) -> None:
    made, second = Studio(revision(tiny_base, "1"), rows=2), revision(tiny_base, "2")
    tickets = [made.submit([replace(WISH, seed=n, steps=8)], Caller())[0] for n in range(5)]
    until(lambda: tickets[0].step > 0)
    made.swap(second)
    versions = [t.future.result(CEILING).version for t in tickets]
    assert versions[0] == "1" and versions[-1] == "2" and made.served.version == "2"
    made.close()


def test_closing_finishes_what_is_under_way_and_takes_nothing_more(cats: Revision) -> None:
    made = Studio(cats)
    tickets = [made.submit([WISH], Caller())[0] for _ in range(3)]
    made.close(CEILING)
    assert all(t.future.result(0).png for t in tickets) and not made.ready
    with pytest.raises(ClosedError):
        made.submit([WISH], Caller())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"width": SIDE + 1}, "size"), ({"width": 64 * SIDE}, "size"), ({"sampler": "magic"}, "sampler"),
        ({"steps": 0}, "steps"), ({"sampler": "lcm", "steps": 51}, "steps"),
        ({"prompt": "a" * 4001}, "prompt"), ({"negative_prompt": "BREAK " * 17}, "prompt"), ({"seed": 2**63}, "seed"),
        ({"guidance_scale": float("inf")}, "guidance_scale"), ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"model": "other"}, "model"), ({"lora_scale": 0.5}, "lora_scale"),
        ({"image": b"no picture"}, "image"), ({"strength": 0.0}, "strength"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(painting: Studio, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(WishError) as refused:
        painting.submit([WISH, replace(WISH, **wrong)], Caller())
    assert refused.value.parameter == named and not painting.under_way()


def test_a_picture_says_how_it_came_to_be(painting: Studio) -> None:
    (ticket,) = painting.submit([replace(WISH, negative_prompt="blue\nsky", sampler="euler_a")], Caller())
    painted = ticket.future.result(CEILING)
    wish, told = receipts.wish_of(painted.png)
    assert wish == painted.wish and told["digest"] == "11111111" and "Sampler: euler_a" in told["parameters"]
    (again,) = painting.submit([wish], Caller())
    assert receipts.difference(painted.png, again.future.result(CEILING), told) == ""
    other = told | {"digest": "2"}
    assert receipts.difference(painted.png + b"x", again.future.result(), other).startswith("another model")
    with pytest.raises(WishError, match="does not say its prompt"):
        receipts.wish_of(pixels.png(np.zeros((8, 8, 3), np.uint8)))
