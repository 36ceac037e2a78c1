"""Digests: of bytes, of plain data, of a list of files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def of_bytes(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def of_data(data: Any) -> str:
    """SHA-256 of the canonical JSON of plain data (sorted keys, no spaces, UTF-8)."""
    return of_bytes(
        json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    )


def of_files(files: Mapping[str, str]) -> str:
    """Content digest of a folder, from path -> SHA-256."""
    return of_data(dict(files))


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that follows from the parts alone: the same today, tomorrow and on another machine."""
    return int(of_data(list(parts))[:13], 16) / 16**13


def differing_fields(old: Any, new: Any, at: str = "") -> list[str]:
    """'training.steps: 320 -> 400' for each leaf in which two trees of plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            rows += differing_fields(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return rows
    return [] if old == new else [f"{at}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text if len(text) <= 60 else text[:57] + "..."
