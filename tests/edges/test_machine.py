"""What the machine says of its memory."""

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path

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


def test_what_is_free_is_what_the_machine_and_its_container_still_give(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < machine.free_bytes() < machine.memory_bytes(torch.device("cpu"))
    told = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n"}
    monkeypatch.setattr(machine, "_text", lambda path: told.get(path, ""))
    assert machine.free_bytes() == 5000 * 1024
    told |= {"/sys/fs/cgroup/memory.max": "4000000\n", "/sys/fs/cgroup/memory.current": "3000000\n"}
    assert machine.free_bytes() == 1_000_000
    told |= {"/sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 500000\n"}
    assert machine.free_bytes() == 1_500_000, "what is kept of files is given up where it is wanted"
    told |= {"/sys/fs/cgroup/memory.max": "max\n"}
    assert machine.free_bytes() == 5000 * 1024
    told.clear()
    assert machine.free_bytes() == machine.memory_bytes(torch.device("cpu")), "where nobody says"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is done")
def test_a_thread_that_gives_way_leaves_all_others_as_they_are() -> None:
    before, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    def low() -> None:
        machine.give_way()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=low)
    thread.start()
    thread.join()
    assert seen == [min(19, before + 5)] and os.getpriority(os.PRIO_PROCESS, 0) == before


def test_large_pages_are_asked_for_where_nothing_lies_yet() -> None:
    with mmap.mmap(-1, 3 * machine.LARGE) as room:
        where = ctypes.addressof(ctypes.c_char.from_buffer(room))
        machine.large_pages(where, len(room))
        text = Path("/proc/self/smaps").read_text() if Path("/proc/self/smaps").exists() else ""
        asked = [span for span in text.split("VmFlags:") if " hg" in span.splitlines()[0]]
        if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
            assert asked, "no memory of this process may lie in large pages"
        machine.large_pages(where, 10)  # too little for one


def test_memory_that_is_held_is_none_until_it_is_used() -> None:
    before = machine.held_bytes()
    machine.hold_memory(large=True)
    assert machine.held_bytes() < before + machine.AHEAD // 16
