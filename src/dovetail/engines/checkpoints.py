"""Checkpoints of a training: written to a temporary name, fsynced, read back, renamed, and only then older ones pruned.

`checkpoint-N/unet` and `unet_ema` are folders that diffusers' `from_pretrained` opens. They are written from a copy while the
training goes on.
"""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from dovetail.edges import folders, machine, tensors
from dovetail.errors import StoreError

SHARE = 4  # a copy takes this part at most of the memory that is free: where it would take more, the training waits
WAITING = 2  # copies at a time, of the best weights and of all that a step depends on


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on."""

    step: int  # optimizer steps done
    files: dict[str, dict[str, Tensor]]  # path below the checkpoint -> tensors by name
    state: dict[str, Any]  # plain data: what was asked, the curve so far, the loss scaler
    texts: dict[str, str] = field(default_factory=dict)  # path below the checkpoint -> text, for other tools

    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for data in self.files.values() for tensor in data.values())

    def copied(self) -> "Checkpoint":
        """The same, with tensors in this machine's memory that no step changes."""
        return replace(self, files={name: {k: tensors.copied(v) for k, v in data.items()} for name, data in self.files.items()})


class Writer:
    """Writes checkpoints one after another, in a thread that takes what the training leaves of the processor."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints", machine.give_way)
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self._thread.shutdown()

    def add(self, checkpoint: Checkpoint, work: Callable[[Checkpoint], None], live: bool) -> None:
        """Have `work` write it: from a copy, where its tensors are `live`, or at once where memory is too short for one."""
        if checkpoint.bytes() > machine.free_bytes() // SHARE:
            self.wait()
            work(checkpoint)
            return
        self.look(WAITING - 1)
        self._under_way.append(self._thread.submit(work, checkpoint.copied() if live else checkpoint))

    def look(self, most: int = WAITING) -> None:
        """Forget what is written, and wait until no more than `most` are under way. Raises what went wrong with one."""
        while self._under_way and (len(self._under_way) > most or self._under_way[0].done()):
            self._under_way.popleft().result()

    def wait(self) -> None:
        """Until all is on the disk. Raises what went wrong."""
        self.look(0)


def save(root: Path, checkpoint: Checkpoint, kept: int | None, best: int | None) -> None:
    """Write `root/checkpoint-N`; then delete all but the `kept` newest, and all best weights but those of the step `best`."""
    write(root / f"checkpoint-{checkpoint.step}", checkpoint)
    for old in every(root)[:-kept] if kept else []:
        _delete(old)
    for old in every(root, "best"):
        if old.name != f"best-{best}":
            _delete(old)


def save_best(root: Path, weights: Checkpoint, known: int | None) -> None:
    """Write `root/best-N`; then delete all other best weights but those of the step `known`."""
    write(root / f"best-{weights.step}", weights)
    for old in every(root, "best"):
        if old.name not in (f"best-{weights.step}", f"best-{known}"):
            _delete(old)


def write(final: Path, checkpoint: Checkpoint) -> None:
    """Write the folder `final`, which is there whole or not at all."""
    temporary = _aside(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        sums = {name: tensors.write(temporary / name, data) for name, data in checkpoint.files.items()}
        for name, text in checkpoint.texts.items():
            folders.write_bytes(temporary / name, text.encode())
        folders.write_json(temporary / "state.json", {"step": checkpoint.step, "sha256": sums, "state": checkpoint.state})
        _delete(final)  # a damaged one, passed over when this training was taken up again
        with folders.writing(final):
            temporary.rename(final)
            folders.fsync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _aside(final: Path, why: str = "tmp") -> Path:
    return final.with_name(f".{final.name}.{os.getpid()}.{why}")


def _delete(folder: Path) -> None:
    """A folder that was there whole is gone at once: killed in between, nothing half deleted has its name."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(_aside(folder, "old")), ignore_errors=True)


def sweep(root: Path) -> None:
    """Delete what a killed process had half written, or half deleted."""
    for name in (f".{kind}-*.{why}" for kind in ("checkpoint", "best") for why in ("tmp", "old")):
        for half in root.glob(name):
            shutil.rmtree(half, ignore_errors=True)


def every(root: Path, kind: str = "checkpoint") -> list[Path]:
    """The folders `root/kind-N`, oldest first."""
    found = [p for p in root.glob(f"{kind}-*") if p.name.removeprefix(f"{kind}-").isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(f"{kind}-")))


def put_aside(root: Path, step: int) -> None:
    """Rename the checkpoints after `step` to `left-checkpoint-N`: another training goes on from there."""
    for newer in every(root):
        if int(newer.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(aside := newer.with_name(f"left-{newer.name}"), ignore_errors=True)
            newer.rename(aside)


def latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is passed over for the one before it."""
    for folder in reversed(every(root)):
        try:
            return read(folder)
        except StoreError:
            continue
    return None


def read(folder: Path) -> Checkpoint:
    """One checkpoint. Raises StoreError where it is damaged or no checkpoint of ours."""
    try:
        told = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = {name: tensors.read(folder / name, sha256) for name, sha256 in told["sha256"].items()}
        return Checkpoint(step=told["step"], files=files, state=told["state"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{folder} is damaged, or no checkpoint of dovetail's", do="give another one") from error
