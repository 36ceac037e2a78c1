"""Checkpoints of a training: written to a temporary name, fsynced, renamed, and only then older ones pruned."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dovetail.edges import folders, tensors
from dovetail.errors import StoreError

KEPT = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on."""

    step: int  # optimizer steps done
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # plain data: the curve so far, the loss scaler


def save(root: Path, checkpoint: Checkpoint) -> None:
    """Write `root/step-N`; it is there whole or not at all."""
    final = root / f"step-{checkpoint.step:07d}"
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    data = tensors.to_bytes(checkpoint.tensors)
    try:
        folders.write_bytes(temporary / "tensors.safetensors", data)
        folders.write_json(
            temporary / "state.json",
            {"step": checkpoint.step, "sha256": folders.digest_bytes(data), "state": checkpoint.state},
        )
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, passed over when this training was taken up again
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in sorted(root.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is passed over for the one before it."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            told = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            loaded = tensors.read(folder / "tensors.safetensors", told["sha256"])
            return Checkpoint(step=told["step"], tensors=loaded, state=told["state"])
        except (OSError, ValueError, KeyError, StoreError):
            continue
    return None
