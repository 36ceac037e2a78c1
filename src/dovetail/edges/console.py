"""What the user sees while work goes on: progress with a rate and the time left (rich)."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
LOG_SECONDS = 60  # between lines where there is no terminal to draw a bar on


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class Show:
    """Lines and progress bars on standard error, so that standard output stays for results."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=not sys.stderr.isatty())

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """The items, with a bar."""
        with self.bar(what, total) as advance:
            for item in items:
                yield item
                advance(1, "")

    @contextlib.contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A bar to be moved by calling `advance(count, note)`."""
        started = time.perf_counter()
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            _Rate(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"),
        )  # fmt: skip
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(what, total=total, completed=done, note="")

            said = started

            def advance(count: int, note: str) -> None:
                nonlocal said
                progress.update(task, advance=count)
                if note:
                    progress.update(task, note=note)
                if not self.console.is_terminal and (now := time.perf_counter()) > said + LOG_SECONDS:
                    said, at = now, progress.tasks[0].completed
                    left = (now - started) / max(1, at - done) * (total - at) / 60
                    self.say(f"{what}: {at:.0f} of {total}, {left:.0f} minutes left  {note}")

            yield advance
        if not self.console.is_terminal:
            self.say(f"{what}: {total} in {time.perf_counter() - started:.1f} s")
