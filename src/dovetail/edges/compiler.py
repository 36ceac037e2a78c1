"""The C compiler of this machine, where it has one: source files become functions, once per machine.

`DOVETAIL_CPU` names what they may use of the processor at most: `avx2`, `avx512`, `avx512_bf16` or `amx`; all that it has where
it is not set.
"""

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

from dovetail.errors import BadConfigError

FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
SECONDS = 300  # that a compiler may take: a few of work, more on a machine that is busy
MOST = "DOVETAIL_CPU"
NO_AMX = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
LESS = {  # flags that take away what a processor has beyond that
    "avx2": (*NO_AMX, "-mno-avx512f"),  # and all that stands on it
    "avx512": (*NO_AMX, "-mno-avx512bf16"),
    "avx512_bf16": NO_AMX,
    "amx": (),
}
_ONE = threading.Lock()


@functools.cache
def compiled(sources: tuple[Path, ...]) -> ctypes.CDLL | None:
    """The functions of C files; None where no compiler makes them.

    They are kept in `$XDG_CACHE_HOME/dovetail` or `~/.cache/dovetail`, by the sources, the compiler and the processor. Raises
    BadConfigError where `DOVETAIL_CPU` names no kind of processor.
    """
    flags = (*FLAGS, *less())
    for _ in range(2):
        made = _made(sources, flags)
        if made is None:
            return None
        try:
            return ctypes.CDLL(str(made))
        except OSError:  # a file that is damaged: it is made again
            made.unlink(missing_ok=True)
    return None


def ahead(sources: tuple[Path, ...]) -> None:
    """Have them compiled beside what is done next. Raises as `compiled` does."""
    threading.Thread(target=_made, args=(sources, (*FLAGS, *less())), daemon=True).start()


def less() -> tuple[str, ...]:
    """Flags for what `DOVETAIL_CPU` allows. Raises BadConfigError where that is no kind of processor."""
    most = os.environ.get(MOST, "")
    if most and most not in LESS:
        raise BadConfigError(f"{MOST} is {most!r}", do=f"take one of {', '.join(LESS)}, or leave it")
    return LESS[most] if most and platform.machine() in ("x86_64", "AMD64") else ()


def _made(sources: tuple[Path, ...], flags: tuple[str, ...]) -> Path | None:
    """Where they are; nothing is loaded, so that PyTorch's OpenMP will be there first."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        return None
    with _ONE, contextlib.suppress(OSError, subprocess.SubprocessError):
        told = [*(source.read_bytes() for source in sources), *map(str.encode, (compiler, *flags, _processor()))]
        made = _home() / f"{sources[0].parent.name}-{hashlib.sha256(b'|'.join(told)).hexdigest()[:16]}.so"
        if not made.exists():
            _make(compiler, flags, sources, made)
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


def _make(compiler: str, flags: tuple[str, ...], sources: tuple[Path, ...], made: Path) -> None:
    plain = tuple(flag for flag in flags if flag != "-mprefer-vector-width=512")
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        temporary = Path(folder) / made.name
        try:
            _build(compiler, flags, sources, temporary)
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
