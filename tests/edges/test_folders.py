"""The run folder: sealed or not there, whole or not there, one process at a time."""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovetail.edges import folders
from dovetail.edges.folders import Run
from dovetail.errors import StoreError
from dovetail.records import Rejected


def _seal(run: Run, asked: str = "a" * 64, text: str = "hello") -> folders.Artifact:
    folders.write_bytes(run.partial("wrangling", asked) / "said.txt", text.encode())
    return run.seal("wrangling", {"stage": "wrangling"}, asked, 1.0, "0")


def test_a_sealed_artifact_is_found_and_another_request_is_not(run_folder: Run) -> None:
    made = _seal(run_folder)
    assert run_folder.find("wrangling", "a" * 64) == made
    assert run_folder.find("wrangling", "b" * 64) is None
    assert run_folder.find("wrangling", "a" * 16 + "c" * 48) is None  # the same folder name, another request
    assert made.manifest.files == {"said.txt": folders.digest_file(made.folder / "said.txt")}


def test_a_folder_without_a_whole_manifest_is_no_artifact(run_folder: Run) -> None:
    made = _seal(run_folder)
    text = (made.folder / "manifest.json").read_text()
    for broken in ("", text[:40], '{"stage": "wrangling"}', "[]"):
        (made.folder / "manifest.json").write_text(broken)
        assert run_folder.find("wrangling", "a" * 64) is None and run_folder.all_sealed("wrangling") == []
    (made.folder / "manifest.json").unlink()
    assert run_folder.find("wrangling", "a" * 64) is None


def test_work_under_way_is_no_artifact_and_is_still_there_next_time(run_folder: Run) -> None:
    folders.write_bytes(run_folder.partial("training", "a" * 64) / "half.bin", b"x")
    assert run_folder.find("training", "a" * 64) is None and run_folder.all_sealed("training") == []
    assert (run_folder.partial("training", "a" * 64) / "half.bin").read_bytes() == b"x"


def test_the_same_files_have_the_same_content_digest_whatever_was_asked(run_folder: Run) -> None:
    first, second, third = _seal(run_folder), _seal(run_folder, "b" * 64), _seal(run_folder, "c" * 64, "other")
    assert first.content == second.content != third.content


def test_all_sealed_lists_oldest_first(run_folder: Run) -> None:
    made = [_seal(run_folder, c * 64) for c in "dacb"]
    for number, artifact in enumerate(made):
        told = json.loads((artifact.folder / "manifest.json").read_text()) | {"made_at": f"2025-01-0{number + 1}T00:00:00Z"}
        folders.write_json(artifact.folder / "manifest.json", told)
    assert [a.folder for a in run_folder.all_sealed("wrangling")] == [a.folder for a in made]


def test_bytes_live_once_under_their_digest(run_folder: Run) -> None:
    key = run_folder.put(b"picture")
    first = run_folder.object_path(key).stat()
    assert run_folder.put(b"picture") == key == folders.digest_bytes(b"picture")
    assert run_folder.object_path(key).stat().st_mtime_ns == first.st_mtime_ns
    assert run_folder.object_path(key).read_bytes() == b"picture"


def test_records_come_back_as_they_were_even_with_line_separators_and_emoji(tmp_path: Path) -> None:
    said = [Rejected(name="a\u2028b.png", reason="x", detail="🦊\nnext\r\n"), Rejected(name="b", reason="y", detail="")]
    folders.write_records(tmp_path / "r.jsonl", said)
    assert folders.read_records(tmp_path / "r.jsonl", Rejected) == said


def test_a_digest_of_a_folder_leaves_out_the_manifest_and_hidden_files(tmp_path: Path) -> None:
    for name in ("a", "sub/b", ".hidden", "sub/.tmp", "manifest.json", "sub/manifest.json"):
        folders.write_bytes(tmp_path / name, b"")
    assert list(folders.digest_folder(tmp_path)) == ["a", "sub/b", "sub/manifest.json"]


def test_linked_files_hold_the_same_bytes_and_are_not_written_twice(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for _ in range(2):
        folders.link_or_copy(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_bytes() == b"x"


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """The system refuses to write files of more than 1,000 bytes; for a moment only, since pytest may write to a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    folders.write_bytes(tmp_path / "file", b"old")
    with pytest.raises(StoreError, match="file"), small_files():
        folders.write_bytes(tmp_path / "file", b"x" * 5000)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A folder in which this process may not write, be it root or not."""
    folder = tmp_path / "guarded"
    folder.mkdir()
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)


def test_a_folder_without_permission_gives_one_line_with_the_place(guarded: Path) -> None:
    for work in (lambda: folders.write_bytes(guarded / "x", b""), lambda: Run(guarded / "run").partial("training", "a" * 64)):
        with pytest.raises(StoreError, match=r"no permission to write .*guarded"):
            work()
    with pytest.raises(StoreError, match="no permission"), Run(guarded / "run").locked():
        pass


def test_a_file_where_a_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="run"):
        Run(tmp_path / "run").put(b"x")


def _try_lock(root: str, answer: "multiprocessing.connection.Connection") -> None:
    try:
        with Run(Path(root)).locked():
            answer.send("mine")
    except StoreError as error:
        answer.send(str(error))


def test_a_second_process_is_refused_while_the_first_works_and_let_in_after(run_folder: Run) -> None:
    context = multiprocessing.get_context("spawn")

    def ask() -> str:
        ours, theirs = context.Pipe()
        process = context.Process(target=_try_lock, args=(str(run_folder.root), theirs))
        process.start()
        assert ours.poll(60)
        said = str(ours.recv())
        process.join()
        return said

    with run_folder.locked():
        assert "another dovetail works in" in ask()
    assert ask() == "mine"
