"""A result is there whole or not at all: `make base` takes a folder that exists for one that is done."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into; it takes the name `folder` when all is written."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def do_missing(pool: Executor, what: str, do: Callable[..., None], jobs: Sequence[tuple[Any, ...]]) -> None:
    """Call `do(*job)` for each job whose last word, the file that it writes, is not there yet."""
    waiting = [pool.submit(do, *job) for job in jobs if not job[-1].exists()]
    for number, part in enumerate(waiting, 1):
        part.result()
        print(f"{what}: {number} of {len(waiting)} parts", flush=True)
