"""What the machine says of its memory."""

import torch

from dovetail.edges import machine


def test_what_is_free_is_some_of_what_there_is() -> None:
    assert 0 < machine.free_bytes() <= machine.memory_bytes(torch.device("cpu"))


def test_a_container_may_have_less(monkeypatch) -> None:
    told = {
        "/proc/meminfo": "MemTotal: 4000 kB\nMemAvailable: 3000 kB\n", "/sys/fs/cgroup/memory.max": "1000000\n",
        "/sys/fs/cgroup/memory.current": "900000\n", "/sys/fs/cgroup/memory.stat": "anon 700000\nfile 150000\n",
    }  # fmt: skip
    monkeypatch.setattr(machine, "_text", lambda path: told.get(path, ""))
    assert machine.free_bytes() == 250_000
    told["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.free_bytes() == 3_072_000
    told["/proc/meminfo"] = ""
    assert machine.free_bytes() > 2**60, "where nobody says, nothing is short"
