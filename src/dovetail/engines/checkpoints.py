"""Checkpoints of a training: written to a temporary name, fsynced, read back, renamed, and only then older ones pruned.

`checkpoint-N/unet` and `unet_ema` are folders that diffusers' `from_pretrained` opens.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dovetail.edges import folders, tensors
from dovetail.errors import StoreError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on."""

    step: int  # optimizer steps done
    files: dict[str, dict[str, Tensor]]  # path below the checkpoint -> tensors by name
    state: dict[str, Any]  # plain data: what was asked, the curve so far, the loss scaler
    texts: dict[str, str] = field(default_factory=dict)  # path below the checkpoint -> text, for other tools


def save(root: Path, checkpoint: Checkpoint, kept: int | None) -> None:
    """Write `root/checkpoint-N`; then delete all but the `kept` newest."""
    write(root / f"checkpoint-{checkpoint.step}", checkpoint)
    for old in every(root)[:-kept] if kept else []:
        shutil.rmtree(old, ignore_errors=True)


def write(final: Path, checkpoint: Checkpoint) -> None:
    """Write the folder `final`, which is there whole or not at all."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        sums = {name: tensors.write(temporary / name, data) for name, data in checkpoint.files.items()}
        for name, text in checkpoint.texts.items():
            folders.write_bytes(temporary / name, text.encode())
        folders.write_json(temporary / "state.json", {"step": checkpoint.step, "sha256": sums, "state": checkpoint.state})
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, passed over when this training was taken up again
        with folders.writing(final):
            temporary.rename(final)
            folders.fsync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def prune(root: Path, kind: str, step: int | None) -> None:
    """Delete every `root/kind-N` but that of `step`."""
    for folder in every(root, kind):
        if folder.name != f"{kind}-{step}":
            shutil.rmtree(folder, ignore_errors=True)


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
