"""A folder of pictures and what is said of them: metadata.jsonl, metadata.csv, .txt beside a picture (standard library)."""

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from dovetail.errors import BadInputError

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_KEYS = ("text", "caption", "prompt")
NAME_KEYS = ("file_name", "image", "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the metadata says of one file."""

    caption: str
    said_by: str  # file of the metadata
    fields: dict[str, str]


def picture_files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """All files below `folder` that look like pictures by their suffix, sorted; hidden ones are left out."""
    if not folder.exists():
        raise BadInputError(f"there is no folder {folder}", do="give the folder that holds the pictures")
    if not folder.is_dir():
        raise BadInputError(f"{folder} is not a folder", do="give the folder that holds the pictures")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def read_metadata(folder: Path) -> dict[str, Said]:
    """Path below `folder` -> what is said of it, from every metadata file in the tree."""
    said: dict[str, Said] = {}
    for name in METADATA:
        for file in sorted(folder.rglob(name)):
            rows = _jsonl_rows(file) if name.endswith("jsonl") else _csv_rows(file)
            for line, row in rows:
                listed = next((row[k] for k in NAME_KEYS if isinstance(row.get(k), str) and row[k]), None)
                if listed is None:
                    raise BadInputError(f"{file}, line {line}: no file_name", do="give each row a file_name and a text")
                # Not resolved: a picture that is a symbolic link keeps its own name.
                place = Path(os.path.normpath(file.parent / listed))
                if "\0" in listed or not place.is_relative_to(folder):
                    raise BadInputError(f"{file}, line {line}: {listed} lies outside the folder", do="move the picture into it")
                caption = next((_whole(row[k]) for k in CAPTION_KEYS if row.get(k) not in (None, "")), "")
                fields = {k: _whole(v) for k, v in row.items() if isinstance(k, str) and v not in (None, "")}
                said[place.relative_to(folder).as_posix()] = Said(caption=caption, said_by=file.name, fields=fields)
    return said


def caption_beside(picture: Path) -> str | None:
    """The text of the .txt file with the picture's name; None where there is none."""
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        return None
    return beside.read_text(encoding="utf-8-sig", errors="replace")


def _jsonl_rows(file: Path) -> list[tuple[int, dict]]:
    rows = []
    for line, text in enumerate(_text(file).split("\n"), start=1):  # splitlines breaks at U+2028 too
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise BadInputError(
                f"{file}, line {line}: not JSON", do='write one object a line: {"file_name": ..., "text": ...}'
            ) from error
        if not isinstance(row, dict):
            raise BadInputError(
                f"{file}, line {line}: not an object", do='write one object a line: {"file_name": ..., "text": ...}'
            )
        rows.append((line, row))
    return rows


def _csv_rows(file: Path) -> list[tuple[int, dict]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))
    return [(reader.line_num, row) for row in reader]


def _whole(value: object) -> str:
    """As text, without the half characters that JSON lets through and no file can hold."""
    return str(value).encode("utf-8", "ignore").decode()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig", errors="replace")
