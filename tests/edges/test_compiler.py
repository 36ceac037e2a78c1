"""The C compiler: once per machine, by what is asked for; and machines that have none."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from dovetail.edges import compiler
from dovetail.errors import BadConfigError

SOURCE = "int twice(int n) { return 2 * n; }"


@pytest.fixture(autouse=True)
def _afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CC", raising=False)
    compiler.compiled.cache_clear()


def source(folder: Path, text: str = SOURCE) -> tuple[Path, ...]:
    (folder / "some.c").write_text(text)
    return (folder / "some.c",)


def needs_one() -> None:
    if compiler.shutil.which("cc") is None:
        pytest.skip("no C compiler")


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_one()
    found = compiler.compiled(source(tmp_path))
    assert found is not None and found.twice(21) == 42
    compiler.compiled.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was compiled again"))
    assert isinstance(compiler.compiled(source(tmp_path)), ctypes.CDLL)
    assert [p.suffix for p in (tmp_path / "home" / "dovetail").iterdir()] == [".so"]


def test_what_was_begun_ahead_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_one()
    made: list[object] = []
    make = compiler._make
    monkeypatch.setattr(compiler, "_make", lambda *told: made.append(1) or make(*told))
    sources = source(tmp_path)  # written once: the thread reads it at once
    compiler.ahead(sources)
    found = compiler.compiled(sources)
    assert found is not None and found.twice(2) == 4 and len(made) == 1


def test_another_source_is_another_file(tmp_path: Path) -> None:
    needs_one()
    assert compiler.compiled(source(tmp_path)).twice(1) == 2
    compiler.compiled.cache_clear()
    assert compiler.compiled(source(tmp_path, SOURCE.replace("2 * n", "3 * n"))).twice(1) == 3


@pytest.mark.parametrize("why", ["no compiler", "not C", "it hangs", "another system"])
def test_a_machine_that_cannot_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    text = "this is not C" if why == "not C" else SOURCE
    if why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    if why == "another system":
        monkeypatch.setattr(compiler.platform, "system", lambda: "Windows")
    if why == "it hangs":
        (tmp_path / "cc").write_text("#!/bin/sh\nexec sleep 600\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
        monkeypatch.setattr(compiler, "SECONDS", 0.2)
    assert compiler.compiled(source(tmp_path, text)) is None


def test_a_home_that_cannot_be_written_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_one()
    (tmp_path / "home").write_text("a file where a folder should be")
    found = compiler.compiled(source(tmp_path))
    assert found is not None and found.twice(4) == 8


def test_a_damaged_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_one()
    make, made = compiler._make, []

    def damaged(compiler: str, flags: tuple[str, ...], sources: tuple[Path, ...], to: Path) -> None:
        made.append(to)
        make(compiler, flags, sources, to) if len(made) > 1 else to.write_bytes(b"not a library")

    monkeypatch.setattr(compiler, "_make", damaged)
    found = compiler.compiled(source(tmp_path))
    assert found is not None and found.twice(4) == 8 and len(made) == 2


BEYOND = {
    "avx2": ("__AVX512F__", "__AVX512BF16__", "__AMX_TILE__", "__AMX_BF16__", "__AMX_INT8__"),
    "avx512": ("__AVX512BF16__", "__AMX_TILE__", "__AMX_BF16__", "__AMX_INT8__"),
    "avx512_bf16": ("__AMX_TILE__", "__AMX_BF16__", "__AMX_INT8__"),
    "amx": (),
}


@pytest.mark.skipif(compiler.platform.machine() != "x86_64", reason="another processor")
@pytest.mark.parametrize("most", ["", *BEYOND])
def test_no_more_of_the_processor_is_used_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str) -> None:
    """Above all on one that has it all; what a name allows is there wherever the processor has it."""
    needs_one()
    names = BEYOND["avx2"]
    text = "\n".join(f"#ifdef {name}\nint has{name}(void) {{ return 1; }}\n#endif" for name in names)
    monkeypatch.delenv("DOVETAIL_CPU", raising=False)
    every = {name for name in names if hasattr(compiler.compiled(source(tmp_path, text)), f"has{name}")}
    compiler.compiled.cache_clear()
    monkeypatch.setenv("DOVETAIL_CPU", most)
    found = compiler.compiled(source(tmp_path, text))
    assert found is not None
    assert {name for name in names if hasattr(found, f"has{name}")} == every - set(BEYOND.get(most, ()))


def test_a_processor_that_nobody_knows_is_said_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOVETAIL_CPU", "sse9")
    for asked in (compiler.compiled, compiler.ahead):
        with pytest.raises(
            BadConfigError, match="DOVETAIL_CPU is 'sse9'; take one of avx2, avx512, avx512_bf16, amx, or leave it"
        ):
            asked(source(tmp_path))
