"""The parts of a caption: its objects, attributes, counts and relations, each with what contradicts it.

Rules for English noun phrases, no model. What a judge is asked about is the caption reduced to one fact ("a red television");
the contrasts are the same statement with that fact changed ("a blue television"), as the parts of DSG (Cho et al. 2024) and
the swaps of Winoground (Thrush et al. 2022). A caption that the rules cannot read gives no parts rather than wrong ones.
"""

import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from dovetail.evaluation import caption_words as words_of
from dovetail.evaluation.caption_phrases import Adjective, Phrase, is_color
from dovetail.evaluation.caption_reading import OPPOSITE_POSITIONS, OPPOSITE_RELATIONS, Reading, Relation, read, simple_relation
from dovetail.evaluation.caption_words import akin, article, is_plural, plural, singular

Kind = Literal["object", "color", "background", "attribute", "count", "relation"]
MAX_CONTRASTS = 16  # of one part: a vocabulary may hold thousands of nouns
_ONE_DIRECTION = (  # the other way round would be another picture
    "left of", "right of", "in front of", "behind", "above", "below", "over", "under", "beneath", "underneath", "on",
    "on top of", "atop", "onto", "upon", "between", "in between", "in", "inside", "inside of", "into",
)  # fmt: skip
_DIRECTIONS = {
    "left": "right", "right": "left", "above": "below", "below": "above", "over": "under", "under": "over", "top": "bottom",
    "bottom": "top", "inside": "outside", "outside": "inside", "beneath": "above", "underneath": "above",
}  # fmt: skip
_NEEDING_THE = ("left", "right", "top", "bottom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One fact of a caption."""

    kind: Kind
    statement: str  # the caption reduced to this fact
    contrasts: tuple[str, ...]  # the same statement with the fact changed; empty where none is known
    words: str  # that name the fact: "television", "red", "two", "left of"


def caption_parts(caption: str, vocabulary: Collection[str] = ()) -> tuple[Part, ...]:
    """The parts of a caption in its order, each statement once; none where the rules cannot read it.

    `vocabulary` holds nouns of the other captions (`nouns`): they are what an object is contrasted with. Never fails.
    """
    reading = read(caption)
    found: dict[str, Part] = {}
    others = _others(reading, vocabulary)
    parts = [(phrase.start, part) for phrase in reading.phrases for part in _phrase_parts(phrase, others)]
    parts += [(relation.start, part) for relation in reading.relations for part in _relation_parts(relation)]
    for _, part in sorted(parts, key=lambda at: at[0]):
        found.setdefault(part.statement, part)
    for statement, part in found.items():  # what is true of another thing of the caption contradicts nothing
        if any(contrast in found for contrast in part.contrasts):
            found[statement] = replace(part, contrasts=tuple(c for c in part.contrasts if c not in found))
    return tuple(found.values())


def nouns(captions: Iterable[str]) -> tuple[str, ...]:
    """The nouns of all captions, singular, in the order in which they first come."""
    seen = dict[str, None]()
    for caption in captions:
        seen |= {singular(phrase.noun): None for phrase in read(caption).phrases if phrase.is_thing}
    return tuple(seen)


def changed_by_one_word(caption: str, vocabulary: Collection[str]) -> list[str]:
    """The caption with one content word changed, so that it is wrong: a noun, color, count, size, material, or direction.

    An article or a plural that must follow is changed with it; all else stays as it was written. The order is the same for the
    same caption and vocabulary and takes turns between the words of the caption, so that any first few are of several kinds.
    """
    reading = read(caption)
    others = _others(reading, vocabulary)
    by_word: list[list[str]] = []
    for phrase in reading.phrases:
        if phrase.is_thing:
            named = (_shaped(noun, phrase.plural) for noun in _turned(others, phrase.noun))
            by_word.append([_replaced(caption, phrase.noun_start, phrase.noun_end, noun, phrase) for noun in named])
        for adjective in phrase.adjectives:
            token = adjective.tokens[-1]
            changes = [new for new in _other_words(adjective, phrase) if " " not in new]
            by_word.append([_replaced(caption, token.start, token.end, new, phrase) for new in changes])
        if phrase.count is not None and phrase.count_token is not None:
            by_word.append([_recounted(caption, phrase, n) for n in _other_counts(phrase.count)])
    for token in reading.tokens:
        if (opposite := _DIRECTIONS.get(token.text)) and (token.text not in _NEEDING_THE or token.start in reading.directions):
            by_word.append([_replaced(caption, token.start, token.end, opposite, None)])
    changed = dict[str, None]()
    for turn in zip_longest(*by_word):
        changed |= {text: None for text in turn if text and text.casefold() != caption.casefold()}
    return list(changed)


def _others(reading: "Reading", vocabulary: Collection[str]) -> list[str]:
    """What of the vocabulary the caption does not speak of."""
    return [noun for noun in dict.fromkeys(vocabulary) if noun and not any(akin(noun, own) for own in reading.mentioned)]


# Parts: phrases and relations -> statements and what contradicts them.


def _phrase_parts(phrase: Phrase, others: Sequence[str]) -> Iterator[Part]:
    if phrase.is_thing:
        contrasts = tuple(phrase.named(_shaped(noun, phrase.plural)) for noun in _turned(others, phrase.noun))
        yield Part(kind="object", statement=phrase.named(), contrasts=contrasts, words=phrase.noun)
    elif not phrase.is_background:
        return
    for adjective in phrase.adjectives:
        if adjective.tokens[-1].text in words_of.SUBJECTIVE or adjective.text in words_of.SUBJECTIVE:
            continue
        if phrase.is_background and not is_color(adjective) and adjective.text not in words_of.OPPOSITES:
            continue
        statement = phrase.named(adjective=adjective.text)
        contrasts = tuple(phrase.named(adjective=other) for other in _other_adjectives(adjective, phrase))
        kind: Kind = "attribute" if not is_color(adjective) else "background" if phrase.is_background else "color"
        yield Part(kind=kind, statement=statement, contrasts=contrasts, words=adjective.text)
    if phrase.count is not None and phrase.is_thing:
        counts = tuple(_counted(phrase.noun, n) for n in _other_counts(phrase.count))
        statement = _counted(phrase.noun, phrase.count)
        yield Part(kind="count", statement=statement, contrasts=counts, words=_number_word(phrase.count))


def _relation_parts(relation: Relation) -> Iterator[Part]:
    subject, said = relation.subject.named(), relation.words
    if not relation.objects:
        contrast = f"{subject} {OPPOSITE_POSITIONS[said]}"
        yield Part(kind="relation", statement=f"{subject} {said}", contrasts=(contrast,), words=said)
        return
    if any(phrase.noun == relation.subject.noun for phrase in relation.objects) or not all(
        p.is_thing for p in relation.objects
    ):
        return
    simple = simple_relation(said)
    named = [phrase.named() for phrase in relation.objects]
    contrasts = list[str]()
    if opposite := OPPOSITE_RELATIONS.get(simple):
        told = said.replace(simple.split()[0], opposite.split()[0]) if simple in ("left of", "right of") else opposite
        contrasts.append(f"{subject} {told} {' and '.join(named)}")
    one_way = said in words_of.ONE_WAY_VERBS if relation.is_verb else simple in _ONE_DIRECTION
    if one_way and not relation.subject.plural == relation.objects[0].plural is True:
        contrasts.append(f"{named[0]} {said} {' and '.join([subject, *named[1:]])}")
    statement = f"{subject} {said} {' and '.join(named)}"
    yield Part(kind="relation", statement=statement, contrasts=tuple(contrasts), words=simple)


def _turned(others: Sequence[str], noun: str) -> list[str]:
    """At most MAX_CONTRASTS of the others, from a place that the noun decides: not the same few for every noun."""
    if len(others) <= MAX_CONTRASTS:
        return list(others)
    step, first = len(others) / MAX_CONTRASTS, zlib.crc32(noun.encode()) % len(others)
    return [others[(first + int(i * step)) % len(others)] for i in range(MAX_CONTRASTS)]


def _shaped(noun: str, many: bool) -> str:
    return plural(noun) if many else singular(noun)


def _other_colors(adjective: Adjective, phrase: Phrase) -> list[str]:
    """Plain colors that nobody would call what the phrase has."""
    own = {
        near
        for each in (*phrase.adjectives, adjective)
        for token in each.tokens
        if token.text in words_of.COLOR_FAMILY
        for near in (token.text, *words_of.COLOR_FAMILY[token.text].split(), *words_of.NEAR_COLORS.get(token.text, "").split())
    }
    shade = adjective.tokens[0].text if len(adjective.tokens) == 2 and adjective.tokens[0].text in words_of.SHADES else ""
    if shade in ("light", "pale"):
        own |= {"white", "gray"}
    elif shade in ("dark", "deep"):
        own |= {"black", "gray"}
    return [color for color in words_of.COLORS if color not in own]


def _other_adjectives(adjective: Adjective, phrase: Phrase) -> list[str]:
    if is_color(adjective):
        colors = _other_colors(adjective, phrase)
        for joint in (" and ", " to "):  # red and white, or from red to white
            if joint in adjective.text:
                return [one + joint + other for one, other in zip(colors, colors[1:] + colors[:1], strict=True)]
        return colors
    return list(words_of.OPPOSITES.get(adjective.text, ()))


def _other_words(adjective: Adjective, phrase: Phrase) -> list[str]:
    """What the last word of an adjective can be changed to; with a shade, no black and white."""
    if not is_color(adjective):
        return list(words_of.OPPOSITES.get(adjective.text, ()))
    colors = _other_colors(adjective, phrase)
    shaded = len(adjective.tokens) > 1 and adjective.tokens[-2].text in words_of.SHADES
    return [c for c in colors if not shaded or c not in ("black", "white")]


def _other_counts(count: int) -> tuple[int, ...]:
    """Counts that are seen to differ: two -> one, three, four; seven -> three, five, ten."""
    if count <= 4:
        return tuple(n for n in (1, 2, 3, 4) if n != count)
    return (max(1, round(count * 0.4)), max(2, round(count * 0.7)), round(count * 1.5))


def _number_word(count: int) -> str:
    return words_of.NUMBERS[count] if count < len(words_of.NUMBERS) else str(count)


def _counted(noun: str, count: int) -> str:
    return f"{_number_word(count)} {_shaped(noun, count > 1)}"


# Captions with a word changed, all else as it was written.


def _replaced(caption: str, start: int, end: int, new: str, phrase: Phrase | None) -> str:
    """The caption with these characters changed, and the article before them where it must follow."""
    old = caption[start:end] if phrase is None or not phrase.written else ""
    new = new.upper() if old.isupper() and len(old) > 1 else new[:1].upper() + new[1:] if old[:1].isupper() else new
    front, back = caption[:start], caption[end:]
    before = re.search(r"\b(an?)(\s+)$", front, re.IGNORECASE)
    if before and phrase is not None and phrase.determiner in ("a", "an"):
        wanted = article(new)
        if is_plural(new) and new.rsplit(" ", 1)[-1] in words_of.ALWAYS_PLURAL:
            return ""  # "a scissors" would be wrong in another way
        if before[1].lower() != wanted:
            said = wanted.upper() if before[1].isupper() and len(before[1]) > 1 else wanted
            said = said.capitalize() if before[1][0].isupper() else said
            front = front[: before.start(1)] + said + before[2]
    return front + new + back


def _recounted(caption: str, phrase: Phrase, count: int) -> str:
    """The caption with another number, its noun in the number that it wants."""
    token = phrase.count_token
    assert token is not None
    old = caption[token.start : token.end]
    said = str(count) if old.isdigit() else _number_word(count)
    said = said.capitalize() if old[:1].isupper() else said
    noun = caption[phrase.noun_start : phrase.noun_end]
    shaped = _shaped(noun, count > 1) if noun.islower() else noun
    front = caption[: token.start]
    if there := re.search(r"\bthere (are|is)(\s+)$", front, re.IGNORECASE):
        front = front[: there.start(1)] + ("are" if count > 1 else "is") + there[2]
    return front + said + caption[token.end : phrase.noun_start] + shaped + caption[phrase.noun_end :]
