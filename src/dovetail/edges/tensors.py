"""Tensors on disk: safetensors, with a digest that can be checked when they are read."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from dovetail.errors import StoreError


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy in this machine's memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """safetensors bytes; the same tensors give the same bytes."""
    return save({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, metadata)


def write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a file without a second copy in memory, and fsync it; returns the SHA-256 of what the disk then holds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (SafetensorError, OSError) as error:
        full = "No space left" in str(error)
        raise StoreError(
            f"the disk is full while writing {path}" if full else f"cannot write {path}: {error}",
            do="free some room and run the same command again",
        ) from error


def read(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file. Raises StoreError where the bytes are not those of `sha256`."""
    try:
        if sha256 is not None:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise StoreError(f"{path} is damaged", do="delete it and run the same command again")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"cannot read {path}: {error}", do="delete it and run the same command again") from error


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    h = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()
