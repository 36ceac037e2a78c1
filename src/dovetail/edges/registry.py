"""The local registry: published models by name and version, and each name's append-only release record (file system).

REGISTRY/<name>/versions/<version>/     a diffusers folder with SHA256SUMS
REGISTRY/<name>/releases.jsonl          one line a promotion or rollback; the last one is in force
"""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Literal

from dovetail.errors import BadInputError, StoreError
from dovetail.records import Release


def default_root() -> Path:
    """$DOVETAIL_HOME/registry, else ~/.dovetail/registry."""
    return Path(os.environ.get("DOVETAIL_HOME", "~/.dovetail")).expanduser() / "registry"


def safe_name(text: str) -> str:
    """A name that is a plain folder name: lower case letters, digits, '-', '_' and '.'."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")
    return name or "model"


class Registry:
    """One registry folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def version_folder(self, name: str, version: str) -> Path:
        """Where a version lies."""
        return self.root / name / "versions" / version

    def add(self, name: str, version: str, folder: Path) -> Path:
        """Publish a folder under name and version, through a temporary name; files are shared by hard links where possible."""
        final = self.version_folder(name, version)
        if final.exists():
            return final
        temporary = final.with_name(f".{version}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder, temporary, copy_function=_link)
            temporary.rename(final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if final.is_dir():  # another process has published the same bytes meanwhile
                return final
            raise StoreError(
                f"cannot publish into {self.root}: {error.strerror or error}",
                do="free some room or set [repo] registry",
            ) from error
        return final

    def names(self) -> list[str]:
        """Published names."""
        return sorted(p.parent.name for p in self.root.glob("*/versions"))

    def versions(self, name: str) -> list[str]:
        """Published versions of a name, oldest first."""
        folders = [p for p in (self.root / name / "versions").glob("*") if not p.name.startswith(".")]
        return [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime_ns)]

    def releases(self, name: str) -> list[Release]:
        """The release record; a last line cut short by a crash is left out."""
        found = []
        try:
            lines = (self.root / name / "releases.jsonl").read_text(encoding="utf-8").split("\n")
        except OSError:
            return []
        for line in lines:
            try:
                found.append(Release(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def current(self, name: str) -> str | None:
        """The version in force; None where nothing was released."""
        record = self.releases(name)
        return record[-1].version if record else None

    def reference(self, name: str, checkpoint: str) -> str | None:
        """The version that a training competes with: in force now, or before the training's own first release.

        `checkpoint` is the content digest of the training. None where nothing was in force. The answer stays the same when the
        training is released, so that an evaluation against it need not be done again.
        """
        reference = None
        for release in self.releases(name):
            if self._checkpoint(name, release.version) == checkpoint:
                return reference
            reference = release.version
        return reference

    def _checkpoint(self, name: str, version: str) -> str:
        """Content digest of the training that a version was made of; "" where it does not say."""
        try:
            told = json.loads((self.version_folder(name, version) / "provenance.json").read_text(encoding="utf-8"))
            return str(told["checkpoint"]["content"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def promote(self, name: str, version: str, reason: str) -> Release:
        """Put a published version in force. Raises BadInputError where it is not published."""
        if not self.version_folder(name, version).is_dir():
            known = ", ".join(self.versions(name)) or "none"
            raise BadInputError(f"{name} has no version {version} (published: {known})", do="give one of these")
        return self._append(name, "promote", version, reason)

    def rollback(self, name: str, reason: str) -> Release:
        """Put the version in force before the current one back. Raises BadInputError where there is none."""
        # Walk the record as a stack: a promotion puts a version on top, a rollback takes the top one off.
        stack: list[str] = []
        for release in self.releases(name):
            if release.action == "rollback":
                stack.pop()
            elif not stack or stack[-1] != release.version:
                stack.append(release.version)
        if len(stack) < 2:
            raise BadInputError(f"there is no release of {name} before the current one", do="promote another version instead")
        return self._append(name, "rollback", stack[-2], reason)

    def _append(self, name: str, action: Literal["promote", "rollback"], version: str, reason: str) -> Release:
        path = self.root / name / "releases.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            release = Release(number=len(self.releases(name)) + 1, action=action, version=version, at=at, reason=reason)
            file.seek(0, os.SEEK_END)
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
            file.write((json.dumps(dataclasses.asdict(release), ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        return release

    def find(self, name: str) -> tuple[Path, str]:
        """Folder and version that a name stands for: the released one, else the newest. Raises BadInputError."""
        wanted, _, version = name.partition("@")
        version = version or self.current(wanted) or next(iter(reversed(self.versions(wanted))), "")
        folder = self.version_folder(wanted, version)
        if not version or not folder.is_dir():
            known = ", ".join(self.names()) or "none"
            raise BadInputError(
                f"no model {name!r} in {self.root} (published: {known})",
                do="give a folder, one of these names, or embedded",
            )
        return folder, version


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
