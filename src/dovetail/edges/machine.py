"""The machine: which device there is, how much memory it has, how the C library keeps it."""

import contextlib
import functools
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

PROBE_SECONDS = 0.4
AHEAD = 1 << 30  # bytes that the C library has room for from the start; only what is used is taken
LARGE = 1 << 21  # a large page
MMAP_MAX = -4  # of glibc's malloc.h


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name(device: torch.device) -> str:
    """What it is called."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cores = len(os.sched_getaffinity(0))
    return f"{cores} CPU core{'s' * (cores > 1)}"


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held at once: of a GPU's memory, else of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def peak_tflops(device: torch.device) -> float:
    """The most bf16 arithmetic that this device was seen to do in a good third of a second of convolutions, TFLOP/s."""
    channels, side, pictures = (256, 16, 16) if device.type == "cpu" else (1280, 32, 32)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, dtype=torch.bfloat16, device=device)
    seen = torch.randn(pictures, channels, side, side, dtype=torch.bfloat16, device=device)
    operations, best = 2 * 9 * channels**2 * side**2 * pictures, 0.0
    ends = time.perf_counter() + PROBE_SECONDS
    with torch.no_grad():
        while time.perf_counter() < ends:
            began = time.perf_counter()
            for _ in range(4):
                layer(seen)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 4 * operations / (time.perf_counter() - began))
    return best / 1e12


def threads() -> int:
    """That PyTorch works with on the CPU."""
    return torch.get_num_threads()


def memory_bytes(device: torch.device) -> int:
    """Of a GPU, else of this machine or of the container that it gives us."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = _text("/sys/fs/cgroup/memory.max").strip()
    return min(whole, int(told)) if told.isdecimal() else whole


def little_bytes(device: torch.device) -> int:
    """Of its memory: what takes less is not worth saving."""
    return memory_bytes(device) // 16


def held_bytes() -> int:
    """Of the machine's memory, that this process holds now; 0 where that is not told."""
    told = _text("/proc/self/statm").split()
    return int(told[1]) * os.sysconf("SC_PAGE_SIZE") if told else 0


def free_bytes() -> int:
    """Of this machine's memory, or of the container's that it gives us: what can still be taken, files' caches among it."""
    told = dict(line.split(":", 1) for line in _text("/proc/meminfo").splitlines())
    free = int(told["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in told else memory_bytes(torch.device("cpu"))
    most, now = (_text(f"/sys/fs/cgroup/memory.{what}").strip() for what in ("max", "current"))
    if not (most.isdecimal() and now.isdecimal()):
        return free
    cached = dict(line.split() for line in _text("/sys/fs/cgroup/memory.stat").splitlines()).get("inactive_file", "0")
    return max(0, min(free, int(most) - int(now) + int(cached)))


def give_way() -> None:
    """Have the thread that calls give way to the process' others. Elsewhere than on Linux nothing is done.

    By five steps, a third of their share: by all 19 it would get nothing at all where other programs keep the processor busy,
    and the training would wait for it in vain.
    """
    if sys.platform == "linux":  # there, this number is a thread's and not the whole process'
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + 5))


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def hold_memory(large: bool = False) -> None:
    """Have the C library keep what is freed: a training frees and takes the same memory thousands of times a second.

    Giving it back to the system and taking it anew cost a tenth of a small U-Net's step; that it lies in small pages, most of
    another: it does not where it may be `large` ones. Other C libraries are left alone.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # numbers of glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = _libc().mallopt
        for option, value in ((mmap_threshold, 32 << 20), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)):
            mallopt(option, value)
        if large:
            _ahead(mallopt)


def _ahead(mallopt: Any) -> None:
    """Have room in large pages for what comes."""
    mallopt(MMAP_MAX, 0)  # what is asked for now is then where all else will be, too
    try:
        if room := _libc().malloc(AHEAD):
            large_pages(room, AHEAD)
            _libc().free(room)
    finally:
        mallopt(MMAP_MAX, 1 << 16)


def large_pages(address: int, size: int) -> None:
    """Have memory that nothing is in yet lie in pages of 2 MiB, where the system has them: fewer addresses to look up."""
    begin, end = -(-address // LARGE) * LARGE, (address + size) // LARGE * LARGE
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "linux" and end > begin:
            _libc().madvise(begin, end - begin, 14)  # MADV_HUGEPAGE of the system's mman.h; a refusal changes nothing


@functools.cache
def _libc() -> Any:
    import ctypes

    found = ctypes.CDLL("libc.so.6")
    found.malloc.restype, found.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    found.free.restype, found.free.argtypes = None, [ctypes.c_void_p]
    found.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


def give_memory_back() -> None:
    """Have the C library give what is freed back to the system, now: a large model's peaks then do not add up."""
    with contextlib.suppress(OSError, AttributeError):
        _libc().malloc_trim(0)
