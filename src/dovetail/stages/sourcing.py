"""Stage 1, data sourcing: where are the pairs, whose are they, may we learn from them?"""

from pathlib import Path

from dovetail.config import Sourcing
from dovetail.core import digests
from dovetail.edges import listings
from dovetail.edges.folders import Desk, write_records
from dovetail.errors import BadInputError
from dovetail.records import Lead, Rejected

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp"})
LICENCE_KEYS, AUTHOR_KEYS, ORIGIN_KEYS = (
    ("license", "licence"),
    ("author", "creator", "artist"),
    ("source", "origin", "url"),
)


def stamp(config: Sourcing) -> str:
    """Digest of what lies in the folder: names, sizes, times. Another one means: look again."""
    folder = _folder(config)
    files = [
        *listings.picture_files(folder, SUFFIXES | {".txt"}),
        *(f for n in listings.METADATA for f in sorted(folder.rglob(n))),
    ]
    return digests.of_data([[f.relative_to(folder).as_posix(), (s := f.stat()).st_size, s.st_mtime_ns] for f in files])


def source(config: Sourcing, desk: Desk) -> None:
    """Folder -> leads (`records.jsonl`) and what is listed but not there (`rejected.jsonl`)."""
    folder = _folder(config)
    said = listings.read_metadata(folder)
    found = {p.relative_to(folder).as_posix(): p for p in listings.picture_files(folder, SUFFIXES)}
    pictures = {name: path for name, path in found.items() if _writable(name)}
    unnamed = [
        Rejected(name=name.encode("utf-8", "backslashreplace").decode(), reason="name is not UTF-8", detail="rename the file")
        for name in found.keys() - pictures.keys()
    ]
    if not pictures:
        kinds = ", ".join(sorted(SUFFIXES))
        raise BadInputError(f"no picture in {folder}", do=f"put pictures there ({kinds})")
    leads = [_lead(config, folder, name, path, said.get(name)) for name, path in pictures.items()]
    if not any(lead.caption.strip() for lead in leads):
        raise BadInputError(
            f"no caption for any of the {len(leads)} pictures in {folder}",
            do="add a metadata.jsonl with file_name and text, a .txt file beside each picture, or [sourcing] caption for all",
        )
    absent = [
        Rejected(name=name, reason="listed but absent", detail=f"{row.said_by} names it, the folder does not hold it")
        for name, row in said.items()
        if name not in pictures
    ]
    write_records(desk.folder / "records.jsonl", leads)
    write_records(desk.folder / "rejected.jsonl", [*absent, *unnamed])


def _writable(name: str) -> bool:
    """Whether a file name is text that a file can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _folder(config: Sourcing) -> Path:
    if not config.folder:
        raise BadInputError(
            "no folder of pictures is named", do="give it: dovetail run FOLDER, or [sourcing] folder in dovetail.toml"
        )
    folder = Path(config.folder).expanduser()
    listings.picture_files(folder, frozenset())  # says at once where the folder is missing
    return folder.resolve()


def _lead(config: Sourcing, folder: Path, name: str, path: Path, said: listings.Said | None) -> Lead:
    fields = said.fields if said else {}
    caption, caption_from = (said.caption, said.said_by) if said and said.caption else ("", "")
    if not caption and (beside := listings.caption_beside(path)) is not None:
        caption, caption_from = beside, path.with_suffix(".txt").name
    if not caption:
        caption, caption_from = config.caption, "[sourcing] caption" if config.caption else ""

    def stated(keys: tuple[str, ...], default: str) -> str:
        return next((fields[k] for k in keys if fields.get(k)), default)

    status = path.stat()
    return Lead(
        name=name,
        place=str(path),
        caption=caption,
        caption_from=caption_from,
        licence=stated(LICENCE_KEYS, config.licence),
        author=stated(AUTHOR_KEYS, config.author),
        origin=stated(ORIGIN_KEYS, config.origin or folder.name),
        group=fields.get("group", ""),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )
