"""The run folder: artifacts sealed by a manifest written last, and bytes that live once under their digest.

RUN/objects/ab/abcdef...              bytes, by SHA-256
RUN/<stage>/<asked>/                  a sealed artifact: its files and manifest.json
RUN/<stage>/<asked>.partial/          work under way; the same command goes on from it
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dovetail.errors import StoreError
from dovetail.records import Manifest

Record = TypeVar("Record")
Item = TypeVar("Item")
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """A sealed folder."""

    folder: Path
    manifest: Manifest

    @property
    def content(self) -> str:
        """Content digest: two artifacts with the same one are interchangeable."""
        return self.manifest.content

    def records(self, kind: type[Record], file: str = "records.jsonl") -> list[Record]:
        """The records of one file, in order."""
        return read_records(self.folder / file, kind)


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn what the system says of a write into one line that names the place and the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full while writing {where}", do="free some room and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(f"no permission to write {where}", do="choose another folder with --run") from error
        raise StoreError(
            f"cannot write {where}: {error.strerror or error}", do="look at the folder and run the same command again"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write through a temporary name, fsync, rename: a file is there whole or not at all."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, data: Any) -> None:
    """Readable JSON, written whole or not at all."""
    write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode())


def write_records(path: Path, records: Iterable[Any]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in records)
    write_bytes(path, "".join(lines).encode())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, keys sorted: the same rows give the same bytes, whatever they went through."""
    write_bytes(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """What `write_records` wrote."""
    with path.open(encoding="utf-8") as file:
        return [kind(**json.loads(line)) for line in file]


def digest_bytes(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """Path below the folder -> SHA-256, for all files but the manifest and hidden ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not any(part.startswith(".") for part in name.split("/")):
            found[name] = digest_file(path)
    return found


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system can."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return
        try:
            os.link(source, target)
        except OSError:
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(source, temporary)
            temporary.replace(target)


class Run:
    """One run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works in a run folder; the lock dies with its holder."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("w")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"another dovetail works in {self.root}", do="wait for it, or give another folder with --run"
                ) from error
            yield

    def object_path(self, key: str) -> Path:
        """Where the bytes of `key` live."""
        return self.root / "objects" / key[:2] / key

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their SHA-256."""
        key = digest_bytes(data)
        if not self.object_path(key).exists():
            write_bytes(self.object_path(key), data)
        return key

    def find(self, stage: str, asked_digest: str) -> Artifact | None:
        """The sealed artifact that answers exactly what is asked, if there is one."""
        folder = self.root / stage / asked_digest[:16]
        manifest = read_manifest(folder)
        return Artifact(folder, manifest) if manifest and manifest.asked_digest == asked_digest else None

    def all_sealed(self, stage: str) -> list[Artifact]:
        """Every sealed artifact of a stage, oldest first."""
        folders = [f for f in (self.root / stage).glob("*") if f.is_dir() and f.suffix != ".partial"]
        found = [Artifact(f, m) for f in folders if (m := read_manifest(f))]
        return sorted(found, key=lambda a: a.manifest.made_at)

    def partial(self, stage: str, asked_digest: str) -> Path:
        """Where work under way lies; what an interrupted run left is still in it."""
        folder = self.root / stage / f"{asked_digest[:16]}.partial"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def seal(self, stage: str, asked: dict[str, Any], asked_digest: str, seconds: float, version: str) -> Artifact:
        """Write the manifest, then rename the partial folder: the artifact exists from that moment on."""
        partial = self.partial(stage, asked_digest)
        files = digest_folder(partial)
        content = digest_bytes(json.dumps(files, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
        manifest = Manifest(
            stage=stage, asked=asked, asked_digest=asked_digest, content=content, files=files,
            made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), seconds=round(seconds, 3), dovetail=version,
        )  # fmt: skip
        write_json(partial / MANIFEST, dataclasses.asdict(manifest))
        final = partial.with_suffix("")
        with writing(final):
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            fsync_folder(final.parent)
        return Artifact(final, manifest)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a sealed folder; None where there is none or it cannot be read."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclasses.dataclass(frozen=True, slots=True)
class Desk:
    """What a stage works on: the run, its own folder under way, and a bar to show how far it is."""

    run: Run
    folder: Path
    show: "Showing"
    before: list[Artifact]  # earlier sealed artifacts of the same stage: what they hold need not be made again


class Showing(Protocol):
    """A way to show progress (`edges.console.Show`)."""

    def say(self, text: str) -> None: ...

    def track(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]: ...

    def bar(self, what: str, total: int, done: int = 0) -> contextlib.AbstractContextManager[Callable[[int, str], None]]: ...
