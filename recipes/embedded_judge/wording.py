"""How a user might write what a picture shows: the right caption, and one with a single word made wrong."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recipes.embedded_base.scenes import COLOURS, article

_WORDS = tomllib.loads((Path(__file__).parent / "wording.toml").read_text())
SYNONYMS: dict[str, list[str]] = {}  # word -> what else it is called
for _group in _WORDS["synonyms"]["groups"]:
    for _word in _group:
        SYNONYMS.setdefault(_word, []).extend(w for w in _group if w != _word)
CANON = {w: group[0] for group in _WORDS["synonyms"]["groups"] for w in group if " " not in w}
PAIRS = frozenset(_WORDS["nouns"]["pairs"])
COLORS: dict[str, tuple[int, int, int]] = dict(COLOURS) | {k: tuple(v) for k, v in _WORDS["colors"].items()}
PLAIN_COLORS = tuple(COLOURS)
GROUNDS: dict[str, tuple[tuple[int, int, int], list[str]]] = {
    k: (tuple(v["color"]), v["words"]) for k, v in _WORDS["grounds"].items()
}
KINDS_OF_PICTURE = _WORDS["openings"]["words"]
IGNORED = _WORDS["openings"]["adjectives"]  # say nothing that a drawing shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is true of a picture of one thing."""

    name: str
    color: str = ""  # of the thing, "" where it has no single one
    background: tuple[str, ...] = ()  # one color name, or two of a gradient
    ground: str = ""  # key of GROUNDS, "" for a plain background
    place: str = ""  # "on the left", ...
    style: str = ""  # "outline" or "silhouette"


def canon(name: str) -> frozenset[str]:
    """The words of a name without plural and with one word for each group of synonyms."""
    words = set()
    for word in name.split():
        single = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        words.add(CANON.get(single, CANON.get(word, single)))
    return frozenset(words)


def other_words(rng: np.random.Generator, name: str, chance: float = 0.15) -> str:
    """The name, now and then with a synonym in it."""
    if rng.random() > chance:
        return name
    if name in SYNONYMS:
        return str(rng.choice(SYNONYMS[name]))
    words = name.split()
    k = int(rng.integers(len(words)))
    return " ".join([*words[:k], str(rng.choice(SYNONYMS[words[k]])), *words[k + 1 :]]) if words[k] in SYNONYMS else name


def noun_phrase(rng: np.random.Generator, name: str) -> str:
    """'a kettle', 'an old kettle', 'kettle', 'headphones', 'a pair of headphones'."""
    last = name.split()[-1]
    if last in PAIRS:
        return str(rng.choice([name, name, f"a pair of {name}", f"the {name}"]))
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return str(rng.choice([name, name, f"some {name}"]))
    form = rng.random()
    return article(name) if form < 0.8 else name if form < 0.92 else f"the {name}"


def describe(wording: int, facts: Facts) -> str:
    """A caption of the facts, or of some of them; `wording` seeds which and in which words."""
    rng = np.random.default_rng(wording)
    name = facts.name
    adjective = f"{rng.choice(IGNORED)} " if rng.random() < 0.06 else ""
    before = bool(rng.random() < 0.75)
    says_color, says_ground, says_place = rng.random() < 0.8, rng.random() < 0.75, rng.random() < 0.8
    noun_seed = int(rng.integers(2**32))
    color = facts.color if says_color else ""
    what = noun_phrase(np.random.default_rng(noun_seed), adjective + (f"{color} " if color and before else "") + name)
    if color and not before:
        what += f" in {color}"
    if facts.place and says_place:
        what += f" {facts.place}"
    opening = rng.random()
    if facts.style and opening < 0.15:
        words = {"outline": ["a line drawing of", "an outline of"], "silhouette": ["a silhouette of", "a solid icon of"]}
        what = f"{rng.choice(words[facts.style])} {what}"
    elif opening < 0.5:
        what = f"{rng.choice(KINDS_OF_PICTURE)} {what}"
    if not says_ground:
        return what
    form = rng.random()
    if facts.ground:
        return f"{what} {rng.choice(GROUNDS[facts.ground][1])}"
    if len(facts.background) == 2:
        a, b = facts.background
        return f"{what} on a gradient from {a} to {b}" if form < 0.5 else f"{what} on {article(a)} to {b} gradient"
    if facts.background:
        ground = facts.background[0]
        forms = [f"on {article(ground)} background", f"on {ground}", f"against {article(ground)} background",
                 f"in front of {article(ground)} wall", f"with {article(ground)} background"]  # fmt: skip
        return f"{what} {forms[int(np.searchsorted([0.6, 0.75, 0.85, 0.92], form))]}"
    return what


def alterations(rng: np.random.Generator, facts: Facts, other_name: str) -> list[Facts]:
    """The facts with each of them made wrong in turn: the thing, its color, the background, the place."""
    found = [replace(facts, name=other_name)]
    if facts.color:
        found.append(replace(facts, color=str(rng.choice([c for c in PLAIN_COLORS if c not in facts.color]))))
    if facts.ground:
        found.append(replace(facts, ground=str(rng.choice([g for g in GROUNDS if g != facts.ground]))))
    elif facts.background:
        color = str(rng.choice([c for c in PLAIN_COLORS if all(c not in b for b in facts.background)]))
        found.append(replace(facts, background=(color, *facts.background[1:])))
    if facts.place:
        places = ["on the left", "on the right", "at the top", "at the bottom"]
        found.append(replace(facts, place=str(rng.choice([p for p in places if p.split()[-1] not in facts.place]))))
    return found
