"""Cards written from facts: the dataset's and the model's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.records import Example

# Statements people make of rights, and the identifiers that a hub knows.
HUB_LICENCES = {
    "apache-2.0": "apache-2.0", "mit": "mit", "cc-by-4.0": "cc-by-4.0", "cc-by-sa-4.0": "cc-by-sa-4.0", "cc0-1.0": "cc0-1.0",
    "creativeml-openrail-m": "creativeml-openrail-m", "openrail++": "openrail++",
}  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def licence_rows(examples: Sequence[Example]) -> list[tuple[str, str, int]]:
    """(licence, author, pictures), most pictures first."""
    counts = Counter((e.licence, e.author) for e in examples)
    return [(licence, author, n) for (licence, author), n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]


def one_licence(statements: Sequence[str]) -> str:
    """The hub's identifier where all agree on a known one, else 'other'."""
    distinct = {s.lower() for s in statements}
    return HUB_LICENCES.get(distinct.pop(), "other") if len(distinct) == 1 else "other"


def dataset_card(examples: Sequence[Example], rejected: Mapping[str, int]) -> str:
    """README.md of a dataset: front matter, splits, licences, what was left out."""
    splits = [s for s in ("train", "validation", "test") if any(e.split == s for e in examples)]
    head = [
        "---",
        f"license: {one_licence([e.licence for e in examples])}",
        "task_categories:",
        "- text-to-image",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(line for s in splits for line in (f"  - split: {s}", f"    path: {s}/*")),
        "---",
    ]
    rows = []
    for s in splits:
        chosen = [e for e in examples if e.split == s]
        rows.append((s, len(chosen), len({e.group for e in chosen})))
    parts = [
        "\n".join(head),
        "# Captioned pictures, split and checked",
        'Open with `datasets.load_dataset("imagefolder", data_dir=...)`; the caption is in the column `text`.',
        "## Splits",
        "Pictures that belong together (near-duplicates, or the same `group`) stand on one side only.",
        table(("split", "pictures", "groups"), rows),
        "## Licences",
        table(("licence", "author", "pictures"), licence_rows(examples)),
        "## Left out",
        table(("reason", "pictures"), sorted(rejected.items())) if rejected else "Nothing was left out.",
    ]
    return "\n\n".join(parts) + "\n"
