"""Captioned pictures as the `datasets` library loads them: an imagefolder, a local data set, or one of the hub."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import BadInputError

TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One row: the bytes of a picture as they came, and what may be said of it."""

    data: bytes
    captions: tuple[str, ...]
    name: str  # file name where there is one, else the row's number


class Table(Sequence[Captioned]):
    """The rows of a data set's training split, read when asked for."""

    def __init__(self, rows: Any, image_column: str, caption_column: str) -> None:
        self.rows, self.image_column, self.caption_column = rows, image_column, caption_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        told = row[self.image_column]
        data = told["bytes"] if told["bytes"] is not None else Path(told["path"]).read_bytes()
        name = Path(told["path"]).name if told["path"] else str(index)
        return Captioned(data=data, captions=self._captions(row[self.caption_column], index), name=name)

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Of every row, without its picture. Raises BadInputError where one is no text."""
        for number, told in enumerate(self.rows[self.caption_column]):
            yield self._captions(told, number)

    def _captions(self, told: Any, number: int) -> tuple[str, ...]:
        found = (told,) if isinstance(told, str) else tuple(told) if isinstance(told, Sequence) else ()
        if not found or not all(isinstance(c, str) for c in found):
            raise BadInputError(
                f"row {number} of the column {self.caption_column} holds {told!r:.60} and no text",
                do="give each picture a caption or a list of captions, or name another --caption_column",
            )
        return found


def load(
    name: str | None,
    config: str | None,
    folder: str | None,
    cache: str | None,
    image_column: str | None,
    caption_column: str | None,
) -> Table:
    """The training split of data set `name` (of the hub, or a local folder), or of the imagefolder `folder`.

    A column that is not named is the first (pictures) or second (captions). Raises BadInputError, one line, where there is no
    picture, a column is missing, or a column holds something else.
    """
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    if name is None and folder and not Path(folder).is_dir():
        raise BadInputError(f"there is no folder {folder}", do="give the folder that holds the pictures")
    try:
        if name is not None:
            found = datasets.load_dataset(name, config, cache_dir=cache, data_dir=folder)
        else:
            found = datasets.load_dataset("imagefolder", data_files={TRAIN: f"{folder}/**"}, cache_dir=cache)
    except Exception as error:  # each kind of source raises its own
        raise BadInputError(
            f"cannot load the pictures of {name or folder}: {' '.join(str(error).split())[:200]}",
            do="give a folder of pictures with a metadata.jsonl that names their files and captions",
        ) from error
    if TRAIN not in found:
        raise BadInputError(
            f"{name or folder} has no split {TRAIN}, but {', '.join(found)}", do="name the split to learn from so"
        )
    rows = found[TRAIN]
    pictures = _column(rows, image_column, 0, "image")
    table = Table(
        rows.cast_column(pictures, datasets.Image(decode=False)), pictures, _column(rows, caption_column, 1, "caption")
    )
    if not len(table):
        raise BadInputError(f"there is no picture in {name or folder}", do="add pictures and their captions")
    return table


def _column(rows: Any, named: str | None, place: int, what: str) -> str:
    import datasets

    names = rows.column_names
    if named is not None and named not in names:
        raise BadInputError(f"there is no column {named}", do=f"name one of {', '.join(names)} as --{what}_column")
    if named is None and len(names) <= place:
        raise BadInputError(
            f"the only column is {', '.join(names)}: nothing says what the pictures show",
            do="add a metadata.jsonl with file_name and text",
        )
    chosen = named or names[place]
    kind = rows.features[chosen]
    if (what == "image") != isinstance(kind, datasets.Image):
        right = "no pictures" if what == "image" else "pictures and no captions"
        raise BadInputError(f"the column {chosen} holds {right}", do=f"name one of {', '.join(names)} as --{what}_column")
    if what == "caption" and isinstance(kind, datasets.ClassLabel):
        raise BadInputError(
            f"the column {chosen} holds names of folders and no captions", do="add a metadata.jsonl with file_name and text"
        )
    return str(chosen)


def chosen(table: Table, most: int | None, seed: int) -> Table:
    """At most `most` of the rows, drawn at random by `seed`; all where it is None."""
    if most is None or most >= len(table):
        return table
    return Table(table.rows.shuffle(seed=seed).select(range(most)), table.image_column, table.caption_column)
