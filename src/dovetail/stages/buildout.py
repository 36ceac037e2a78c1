"""Stage 4, dataset buildout: train / validation / test, no near-duplicate across a border, in the imagefolder layout."""

import json
from collections import Counter

from dovetail.config import Buildout
from dovetail.core import cards, fingerprints, splits
from dovetail.edges.folders import Artifact, Desk, link_or_copy, write_bytes, write_records
from dovetail.records import Example, Pair, Rejected


def build(pairs: Artifact, config: Buildout, desk: Desk) -> None:
    """Pairs -> a dataset that `datasets.load_dataset("imagefolder", data_dir=...)` opens, its card, and `records.jsonl`.

    Files are named by digest, one metadata.jsonl lies in each split's own folder, and every column is text in every
    row: the three things without which imagefolder drops captions or fails (a file called `train station.jpg` is one).
    """
    found = pairs.records(Pair)
    examples = _examples(found, config)
    root = desk.folder / "dataset"
    suffixes = {pair.key: _suffix(desk, pair) for pair in found}
    written = []
    for example, pair in zip(examples, found, strict=True):
        file = f"{example.split}/{pair.pixels_key[:16]}{suffixes[pair.key]}"
        link_or_copy(desk.run.object_path(pair.pixels_key), root / file)
        written.append(Example(**{f: getattr(example, f) for f in Example.__slots__ if f != "file"}, file=file))
    for split in {e.split for e in written}:
        rows = (json.dumps(_metadata(e), ensure_ascii=False) + "\n" for e in written if e.split == split)
        write_bytes(root / split / "metadata.jsonl", "".join(rows).encode())
    rejected = Counter(r.reason for r in pairs.records(Rejected, "rejected.jsonl"))
    write_bytes(root / "README.md", cards.dataset_card(written, rejected).encode())
    write_records(desk.folder / "records.jsonl", written)


def _examples(pairs: list[Pair], config: Buildout) -> list[Example]:
    links = fingerprints.near_duplicates([p.fingerprint for p in pairs], [p.colours for p in pairs], config.near_duplicate_bits)
    numbers = splits.joined_groups(len(pairs), links, [p.group for p in pairs])
    # A joined group is called after the smallest name in it, so that the split follows from the data, not from its order.
    members: dict[int, list[Pair]] = {}
    for number, pair in zip(numbers, pairs, strict=True):
        members.setdefault(number, []).append(pair)
    names = {number: min(p.group or p.key for p in group) for number, group in members.items()}
    sizes = {names[number]: len(group) for number, group in members.items()}
    chosen = splits.assign(sizes, config.validation_share, config.test_share, config.seed)
    return [
        Example(
            key=pair.key,
            split=chosen[names[number]],
            file="",
            name=pair.name,
            caption=pair.caption,
            licence=pair.licence,
            author=pair.author,
            origin=pair.origin,
            group=names[number],
            width=pair.width,
            height=pair.height,
        )  # fmt: skip
        for number, pair in zip(numbers, pairs, strict=True)
    ]


def _metadata(example: Example) -> dict[str, str]:
    return {
        "file_name": example.file.split("/", 1)[1],
        "text": example.caption,
        "license": example.licence,
        "author": example.author,
        "origin": example.origin,
        "original_name": example.name,
        "group": example.group,
        "sha256": example.key,
    }


def _suffix(desk: Desk, pair: Pair) -> str:
    """By the first bytes: what the file is, whatever it was called."""
    with desk.run.object_path(pair.pixels_key).open("rb") as file:
        head = file.read(4)
    return ".jpg" if head.startswith(b"\xff\xd8") else ".webp" if head == b"RIFF" else ".png"
