"""Which icons are used: open licenses only, no brands or flags, sets and kinds kept back before anything is trained."""

import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import icon_names

HERE = Path(__file__).parent
BARRED = re.compile(r"(^|[^A-Za-z])(NC|SA|GPL|LGPL|AGPL|MPL|ND)([^A-Za-z]|$)")
LISTS = tomllib.loads((HERE / "lists.toml").read_text())
TELEVISION = re.compile(r"(^|-)(tvs?|televisions?)(-|$|\d)|television")
VARIANTS = 4  # drawings of one name that a set may give
ORDER = (
    "",
    "outline",
    "line",
    "linear",
    "regular",
    "fill",
    "filled",
    "solid",
    "bold",
    "duotone",
    "twotone",
    "rounded",
    "sharp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Icon:
    """One drawing: where it lies and what it is called."""

    set: str
    icon: str
    family: str  # sets of one family are one hand
    name: str  # what a person would say
    style: str
    part: str  # "train", "held-out set" or "held-out kind"


def is_open(license_title: str) -> bool:
    """Whether a license (SPDX id) is neither share-alike, non-commercial, no-derivatives nor of the GPL and MPL families."""
    return bool(license_title) and not BARRED.search(license_title)


def usable_sets(collections: dict[str, dict]) -> list[str]:
    """Sets with an open license that are no brands, flags, file types or code."""
    found = []
    for name, about in sorted(collections.items()):
        license_title = about["license"].get("spdx") or about["license"]["title"]
        if is_open(license_title) and about.get("category") != "Logos" and name not in LISTS["left_out"]["sets"]:
            found.append(name)
    return found


def family_of(set_name: str) -> str:
    """The hand that drew a set: forks and styles of one drawing are one family."""
    for family, members in LISTS["families"].items():
        if set_name in members:
            return str(family)
    return set_name


def is_television(icon: str) -> bool:
    """Whether tv or television is a word of the icon's name."""
    return bool(TELEVISION.search(icon))


def may_show(set_name: str, icon: str) -> bool:
    """Whether a television is the judge's: of one of its sets, and no near copy of one that the tuning example uses."""
    held = LISTS["televisions"]
    return set_name in held["sets"] and f"{set_name}:{icon}" not in held["near_copies"]


def kinds_of(name: str, kinds: Iterable[str]) -> list[str]:
    """The held-out kinds that a name speaks of, plurals and spellings in one word included."""
    joined = name.replace(" ", "")
    words = set(name.split())
    words |= {w[:-1] for w in words if w.endswith("s")} | {w[:-2] for w in words if w.endswith("es")}
    found = []
    for kind in kinds:
        whole = set(kind.split()) <= words if " " in kind else kind in words
        if whole or (len(kind) > 4 and kind.replace(" ", "") in joined):
            found.append(kind)
    return found


def select(package: Path) -> list[Icon]:
    """Every icon in use, in a fixed order. `package` is npm's `@iconify/json`, unpacked."""
    collections = json.loads((package / "collections.json").read_text())
    names: dict[str, dict[str, tuple[str, str]]] = {}
    for set_name in usable_sets(collections):
        data = json.loads((package / "json" / f"{set_name}.json").read_text())
        icons = {k for k, v in data["icons"].items() if not v.get("hidden") and "<animate" not in v["body"]}
        cut = {icon: icon_names.plain(set_name, icon, data.get("suffixes", {}), icons) for icon in sorted(icons)}
        said = {icon: (icon_names.phrase(set_name, dashed), style) for icon, (dashed, style) in cut.items()}
        names[set_name] = {icon: (p, style) for icon, (p, style) in said.items() if p}
    known = icon_names.known_words({s: {p for p, _ in found.values()} for s, found in names.items()})
    chosen: list[Icon] = []
    for set_name, found in names.items():
        chosen += _of_one_set(set_name, {icon: (icon_names.parted(p, known), s) for icon, (p, s) in found.items()})
    return chosen


def _of_one_set(set_name: str, found: dict[str, tuple[str, str]]) -> list[Icon]:
    """Up to `VARIANTS` styles of each name, one size of each."""
    by_name: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for icon, (text, style) in found.items():
        if is_television(icon) and not may_show(set_name, icon):
            continue
        by_name[text][style].append(icon)
    back = set_name in LISTS["held_out"]["sets"]
    rows = []
    for text, styles in sorted(by_name.items()):
        part = "held-out set" if back else "train"
        if kinds_of(text, [*LISTS["held_out"]["kinds"], *LISTS["held_out"]["aliases"]]):
            part = "held-out kind"
        ranked = sorted(styles, key=lambda s: (ORDER.index(s) if s in ORDER else len(ORDER), s))
        for style in ranked[: 2 if set_name in LISTS["left_out"]["few"] else VARIANTS]:
            icon = sorted(styles[style], key=lambda i: ("24" not in i, len(i), i))[0]
            row = Icon(set=set_name, icon=icon, family=family_of(set_name), name=text, style=style, part=part)
            rows.append(row)
    return rows


def main() -> None:
    import sys

    rows = select(Path(sys.argv[1]))
    hands: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        if r.part == "train":
            hands[r.name].add(r.family)
    print(len(rows), Counter(r.part for r in rows), len({r.set for r in rows}), "names", len(hands))
    print("names by hands at least:", {n: sum(len(h) >= n for h in hands.values()) for n in (1, 2, 3, 4, 6, 10)})
    for least in (1, 2, 3, 4, 6):
        met = {r.name for r in rows if r.part == "held-out set" and len(hands[r.name]) >= least}
        print("held-out names known by", least, "hands:", len(met))
    kinds = LISTS["held_out"]["kinds"]
    drawn: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        if r.name in kinds:
            drawn[r.name].add(r.family)
    print("kinds", len(kinds), "with two hands", sum(len(h) >= 2 for h in drawn.values()))
    print("few:", [k for k in kinds if len(drawn[k]) < 2])
    print(Counter(r.set for r in rows).most_common(60))


if __name__ == "__main__":
    main()
