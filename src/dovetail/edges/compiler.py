"""The C compiler of this machine, where it has one: source files become functions, once per machine."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
SECONDS = 60  # that a compiler may take
_ONE = threading.Lock()


@functools.cache
def compiled(sources: tuple[Path, ...]) -> ctypes.CDLL | None:
    """The functions of C files; None where no compiler makes them.

    They are kept in `$XDG_CACHE_HOME/dovetail` or `~/.cache/dovetail`, by the sources, the compiler and the processor.
    """
    for _ in range(2):
        made = _made(sources)
        if made is None:
            return None
        try:
            return ctypes.CDLL(str(made))
        except OSError:  # a file that is damaged: it is made again
            made.unlink(missing_ok=True)
    return None


def ahead(sources: tuple[Path, ...]) -> None:
    """Have them compiled beside what is done next."""
    threading.Thread(target=_made, args=(sources,), daemon=True).start()


def _made(sources: tuple[Path, ...]) -> Path | None:
    """Where they are; nothing is loaded, so that PyTorch's OpenMP will be there first."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        return None
    with _ONE, contextlib.suppress(OSError, subprocess.SubprocessError):
        told = [*(source.read_bytes() for source in sources), *map(str.encode, (compiler, *FLAGS, _processor()))]
        made = _home() / f"{sources[0].parent.name}-{hashlib.sha256(b'|'.join(told)).hexdigest()[:16]}.so"
        if not made.exists():
            _make(compiler, sources, made)
        return made
    return None


def _home() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dovetail"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="dovetail-"))


def _processor() -> str:
    """What `-march=native` depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _make(compiler: str, sources: tuple[Path, ...], made: Path) -> None:
    plain = tuple(flag for flag in FLAGS if flag != "-mprefer-vector-width=512")
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        temporary = Path(folder) / made.name
        try:
            _build(compiler, FLAGS, sources, temporary)
        except subprocess.CalledProcessError:  # another compiler's flags, another processor's
            _build(compiler, plain, sources, temporary)
        temporary.replace(made)


def _build(compiler: str, flags: tuple[str, ...], sources: tuple[Path, ...], made: Path) -> None:
    """Each source by a process of its own, then all together."""
    run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=SECONDS)
    parts = {source: made.with_name(f"{source.stem}.o") for source in sources if source.suffix == ".c"}  # headers: by those
    commands = [[compiler, *flags, "-fPIC", "-c", str(source), "-o", str(part)] for source, part in parts.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    run([compiler, *flags, "-shared", *map(str, parts.values()), "-o", str(made), "-lm"])
