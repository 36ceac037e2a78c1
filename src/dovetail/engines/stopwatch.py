"""Where the seconds of a step go: data, forward, backward, optimizer, sync. On a GPU by events, so that nothing waits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Laps of the steps so far, by name."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self.saving = 0.0  # seconds in which the training stood still for a checkpoint
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        """A step begins; what came before it is nobody's."""
        self.steps += 1
        self._last = time.perf_counter()
        if self.on_gpu:
            self._settle()
            self._mark("")

    def lap(self, name: str) -> None:
        """What was done since the last lap was `name`."""
        if self.on_gpu:
            self._mark(name)
            return
        now = time.perf_counter()
        self._add(name, now - self._last)
        self._last = now

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done within is the writing of a checkpoint."""
        began = time.perf_counter()
        yield
        self.saving += time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """Each name's part of all laps, summing to 1."""
        if self.on_gpu and self._events:
            torch.cuda.synchronize()
            self._settle()
        whole = sum(self.seconds.values())
        return {name: seconds / whole for name, seconds in self.seconds.items()} if whole else {}

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _mark(self, name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((name, event))

    def _settle(self) -> None:
        """Read the events of the step before; they have passed by now, as its loss was read."""
        for (_, before), (name, after) in zip(self._events, self._events[1:], strict=False):
            if name:
                after.synchronize()
                self._add(name, before.elapsed_time(after) / 1000)
        self._events.clear()
