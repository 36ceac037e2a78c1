"""What the machine says of its memory."""

import mmap

import pytest
import torch

from dovetail.edges import machine


def test_what_is_held_is_some_of_what_there_is() -> None:
    before = machine.held_bytes()
    assert 0 < before < machine.memory_bytes(torch.device("cpu"))
    with mmap.mmap(-1, 2**26) as more:
        more.write(b"x" * 2**26)
        assert machine.held_bytes() > before + 2**25


def test_a_container_may_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: "1000000\n" if path == "/sys/fs/cgroup/memory.max" else "")
    assert machine.memory_bytes(torch.device("cpu")) == 1_000_000
    assert machine.held_bytes() == 0, "where nobody says, nothing is held"
    monkeypatch.setattr(machine, "_text", lambda path: "max\n")
    assert machine.memory_bytes(torch.device("cpu")) > 2**30
