"""Tensors on disk: safetensors, with a digest that can be checked when they are read."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from dovetail.errors import StoreError


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """safetensors bytes; the same tensors give the same bytes."""
    return save({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, metadata)


def read(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file. Raises StoreError where the bytes are not those of `sha256`."""
    if sha256 is None:
        return load_file(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"{path} is damaged", do="delete it and run the same command again")
    return load(data)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    h = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()
