"""The parts of a caption: its objects, attributes, counts and relations, each with what contradicts it.

Rules for English noun phrases, no model. What a judge is asked about is the caption reduced to one fact ("a red television");
the contrasts are the same statement with that fact changed ("a blue television"), as the parts of DSG (Cho et al. 2024) and
the swaps of Winoground (Thrush et al. 2022). A caption that the rules cannot read gives no parts rather than wrong ones.
"""

import re
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

from dovetail.evaluation import caption_words as words_of
from dovetail.evaluation.caption_words import akin, article, is_plural, plural, singular

Kind = Literal["object", "attribute", "count", "relation"]
MAX_CONTRASTS = 16  # of one part: a vocabulary may hold thousands of nouns
MAX_CHARACTERS = 4000  # of a caption are read
LONGEST_PHRASE = 10  # adjectives and nouns; a longer row of them is a list without commas
LONGEST_NOUN = 3  # words; a longer run of unknown words is no noun phrase


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
    reading = _read(caption)
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
        seen |= {singular(phrase.noun): None for phrase in _read(caption).phrases if phrase.is_thing}
    return tuple(seen)


def changed_by_one_word(caption: str, vocabulary: Collection[str]) -> list[str]:
    """The caption with one content word changed, so that it is wrong: a noun, color, count, size, material, or direction.

    An article or a plural that must follow is changed with it; all else stays as it was written. The order is the same for the
    same caption and vocabulary and takes turns between the words of the caption, so that any first few are of several kinds.
    """
    reading = _read(caption)
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


def _others(reading: "_Reading", vocabulary: Collection[str]) -> list[str]:
    """What of the vocabulary the caption does not speak of."""
    return [noun for noun in dict.fromkeys(vocabulary) if noun and not any(akin(noun, own) for own in reading.mentioned)]


# Reading: characters -> tokens -> phrases and relations.


@dataclass(frozen=True, slots=True)
class _Token:
    text: str  # lower case; "," for any break within a sentence, "." for its end
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Adjective:
    text: str  # with its shade: "light blue"
    tokens: tuple[_Token, ...]


@dataclass(slots=True)
class _Phrase:
    """A noun phrase."""

    start: int
    noun: str  # as in the caption; empty where only a background is meant
    noun_start: int
    noun_end: int
    determiner: str
    adjectives: list[_Adjective] = field(default_factory=list)
    count: int | None = None
    count_token: _Token | None = None
    is_tag: bool = False  # of a list of tags: no articles
    written: str = ""  # a proper name, as it is written

    @property
    def plural(self) -> bool:
        return is_plural(self.noun) or (self.count is not None and self.count > 1)

    @property
    def is_thing(self) -> bool:
        return bool(self.noun) and self.noun.rsplit(" ", 1)[-1] not in words_of.NO_OBJECT

    @property
    def is_background(self) -> bool:
        return not self.noun or self.noun.rsplit(" ", 1)[-1] in ("background", "backgrounds", "backdrop")

    def named(self, noun: str = "", adjective: str = "") -> str:
        """The phrase reduced to its noun (or another) and an adjective: "a red television"."""
        if self.written and not noun:
            proper = f"{adjective} {self.written}" if adjective else self.written
            return f"{self.determiner} {proper}" if self.determiner == "the" else proper
        noun = noun or self.noun or "background"
        said = f"{adjective} {noun}" if adjective else noun
        last = noun.rsplit(" ", 1)[-1]
        if self.is_background:
            return f"{article(said)} {said}"
        if last in words_of.UNIQUE and not adjective:
            return f"the {said}"
        matter = last in words_of.MATTER and not (noun == self.noun and self.determiner in ("a", "an"))  # but "a glass"
        bare = self.is_tag or is_plural(noun) or matter or (self.count or 1) > 1 or not (self.determiner or self.count)
        return said if bare else f"{article(said)} {said}"


@dataclass(frozen=True, slots=True)
class _Relation:
    start: int
    subject: _Phrase
    words: str  # as said: "to the left of"
    objects: tuple[_Phrase, ...]  # none for a place in the picture: "at the bottom"
    is_verb: bool = False


@dataclass(slots=True)
class _Reading:
    tokens: list[_Token] = field(default_factory=list)
    phrases: list[_Phrase] = field(default_factory=list)
    relations: list[_Relation] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)  # nouns, those that may not be shown among them
    directions: set[int] = field(default_factory=set)  # where a left or right is a direction


_NOISE = re.compile(
    r"<[^<>]{0,200}:[^<>]{0,200}>"  # <lora:name:0.6>
    r"|<[^<>\s]{1,60}>"  # a placeholder of textual inversion: no English word
    r"|https?://\S+|\b(?:score|rating|source)_\w+"
    r"|:\s*[+-]?\d*\.?\d+(?=\s*[)\]])"  # the weight of (word:1.3)
    r"|\\[()\[\]]"
    r"|(?<=\s)(?:[\"“][^\"“”]{1,200}[\"”])"  # what is written on a sign
)
_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*|[,;.:!?\n|/()\[\]{}&+]|--+|[\u2013\u2014]")
_BREAKS = dict.fromkeys(",;:|/()[]{}", ",") | dict.fromkeys(".!?\n", ".") | {"&": "and", "+": "and"}
_FOREIGN = words_of.word_set(
    """
    ein eine einer einem einen der das und mit auf dem den ist im am vor neben unter un une le les et avec dans sur des du
    est el los las una unos con en sobre y gli il lo di della che ett och med på og et av uma um com em no do da na het
    een op van met jest z w i nad pod ja bir ve
    """
)
_FOREIGN_AND_ENGLISH = words_of.word_set("no do on in a am")
_POSITIONS = (
    "at the top", "at the bottom", "on the left", "on the right", "on top", "at the left", "at the right", "to the left",
    "to the right", "in the foreground", "in the background", "at the back", "at the front", "in the middle",
    "in the center", "in the centre", "in the corner", "at the center", "on the side", "at the side", "in the distance",
)  # fmt: skip
_PREPOSITIONS = (
    "to the left of", "to the right of", "on the left of", "on the right of", "on the left side of", "on the right side of",
    "at the left of", "at the right of", "left of", "right of", "to the left side of", "to the right side of", "in front of",
    "in the front of", "on top of", "on the top of", "next to", "close to", "near to", "near", "beside", "behind", "above",
    "below", "beneath", "underneath", "under", "over", "inside", "inside of", "outside", "outside of", "between",
    "in between", "on", "onto", "upon", "atop", "in", "into", "within", "at", "against", "around", "along", "across",
    "through", "from", "to", "for", "of", "off", "among", "amid", "during", "towards", "toward", "down", "up", "alongside",
    "adjacent to", "in the middle of", "in the center of", "at the top of", "at the bottom of", "at the end of",
    "at the edge of", "on the side of", "full of", "filled with", "covered with", "covered in", "covered by",
    "surrounded by", "made of", "made from", "made out of", "by", "about", "after", "before", "beyond", "past", "via", "per",
    "out of", "instead of", "because of", "as well as",
)  # fmt: skip
_BY_FIRST: dict[str, list[list[str]]] = {}
for _phrase in (*_PREPOSITIONS, *_POSITIONS):
    _BY_FIRST.setdefault(_phrase.split()[0], []).append(_phrase.split())
for _listed in _BY_FIRST.values():
    _listed.sort(key=len, reverse=True)
_OPPOSITE_RELATIONS = {
    "left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of", "above": "below",
    "below": "above", "over": "under", "under": "on top of", "beneath": "above", "underneath": "on top of", "on": "under",
    "on top of": "under", "atop": "under", "onto": "under", "upon": "under", "between": "", "next to": "", "beside": "",
    "near": "", "in": "", "inside": "", "outside": "inside", "inside of": "", "outside of": "inside", "close to": "",
    "alongside": "", "adjacent to": "", "into": "", "in between": "", "by": "", "around": "", "against": "", "at": "",
    "along": "", "across": "", "through": "",
}  # fmt: skip
_ONE_DIRECTION = (  # the other way round would be another picture
    "left of", "right of", "in front of", "behind", "above", "below", "over", "under", "beneath", "underneath", "on",
    "on top of", "atop", "onto", "upon", "between", "in between", "in", "inside", "inside of", "into",
)  # fmt: skip
_DIRECTIONS = {
    "left": "right", "right": "left", "above": "below", "below": "above", "over": "under", "under": "over", "top": "bottom",
    "bottom": "top", "inside": "outside", "outside": "inside", "beneath": "above", "underneath": "above",
}  # fmt: skip
_POSSESSIVE = ("its", "his", "her", "their", "my", "your", "our")
_NEEDING_THE = ("left", "right", "top", "bottom")
_LEFT_RIGHT = re.compile(r"\b(?:on|at|to) the (left|right|top|bottom)\b|\b(left|right) of\b", re.IGNORECASE)
_STYLE = re.compile(
    r"\b(?:in|with) (?:an? |the )?(?:[\w'-]+ ){0,2}?(?:styles?|styled|colors palette|color palette)\b(?: of [^,.;]*)?"
    r"|\b(?:in the manner of|in style of|styled? (?:of|by|like)|inspired by|reminiscent of|illustrated by|painted by|drawn by"
    r"|(?:photo|photographed|art|artwork|made|directed|designed) by|rendered in|shot on|shot with|made in"
    r"|created (?:in|with|by))\b[^,.;]*"
    r"|(?:^|(?<=,))\s*(?:by|art by|style of) [^,.;]*"
    r"|\btrending on \w+|\bfeatured on \w+"
    r"|\bin (?:black and white|watercolou?rs?|pencil|oil|ink|pixel art|3d|hd|high (?:quality|resolution)|detail|full color)\b"
    r"|\bblack[- ]and[- ]white (?=(?:\w+ )?"
    r"(?:photo|photograph|picture|image|drawing|illustration|sketch|portrait|icon|painting)\b)",
    re.IGNORECASE,
)


def _read(caption: str) -> _Reading:
    text = caption[:MAX_CHARACTERS]
    masked = _STYLE.sub(_blank, _NOISE.sub(_blank, text))
    tokens = _tokens(masked)
    told = [t.text for t in tokens if t.text not in (",", ".")]
    if not told or not _is_english(text, told):
        return _Reading()
    reading = _Reading(tokens=tokens)
    reading.directions = {m.start(1) if m[1] else m.start(2) for m in _LEFT_RIGHT.finditer(masked)}
    tags = _are_tags(tokens)
    words = [m for m in tokens if m.text[0].isalpha()]
    capital = {t.start for t in words if text[t.start].isupper()}
    for sentence in _split(tokens, "."):
        _read_sentence(sentence, tags, reading)
    if 2 * len(capital) < len(words) + 1 and len(words) > 1:  # else a title, whose words are capitals all
        for phrase in reading.phrases:
            first = next((t for t in tokens if t.start == phrase.start), None)
            begins = first is None or (phrase.noun_start == first.start and _before(tokens, first) == ".")
            if phrase.noun and phrase.noun_start in capital and not begins:
                phrase.written = text[phrase.noun_start : phrase.noun_end]
    return reading


def _before(tokens: Sequence[_Token], token: _Token) -> str:
    at = tokens.index(token)
    return tokens[at - 1].text if at else "."


def _blank(match: re.Match[str]) -> str:
    """As many spaces, so that all else stays where it is. A break stays one, as a tag may stand between two phrases."""
    return " " * len(match[0])


def _tokens(text: str) -> list[_Token]:
    found = list[_Token]()
    for match in _WORD.finditer(text):
        raw = match[0]
        said = unicodedata.normalize("NFC", raw).lower().replace("\u2019", "'")
        plain = _BREAKS.get(raw, said if raw[0].isalnum() else ",")
        start, end = match.span()
        if raw == "(" or raw == ")" or raw in "[]{}":
            continue  # emphasis, as in prompts; what stands in brackets is read on
        front, _, back = plain.partition("-")
        if back in words_of.COLOR_FAMILY and front in words_of.SHADES | {"bluish", "yellowish"}:
            cut = start + len(front)
            found += [_Token(front, start, cut), _Token(back, cut + 1, end)]
            continue
        if match_person := re.fullmatch(r"(\d{1,2})(girl|boy|cat|dog|other)s?", plain):  # 2girls
            cut = start + len(match_person[1])
            found += [_Token(match_person[1], start, cut), _Token(plain[len(match_person[1]) :], cut, end)]
            continue
        found.append(_Token(plain, start, end))
    return found


def _is_english(text: str, told: Sequence[str]) -> bool:
    letters = [c for c in text if c.isalpha()]
    latin = sum(c < "\u0250" or "\u1e00" <= c <= "\u1eff" for c in letters)
    if not letters or latin < 0.6 * len(letters):
        return False
    english = sum(word in _FUNCTION_WORDS for word in told)
    foreign = sum(word in _FOREIGN and word not in _FOREIGN_AND_ENGLISH for word in told)
    if foreign > english or (foreign and foreign == english):
        return False
    accents = sum(any(c.isalpha() and c > "\x7f" for c in word) for word in told)
    return english > 0 or accents == 0


_FUNCTION_WORDS = (
    words_of.word_set(
        """
    a an the and or with of in on at to by from next near under above below behind this is are there its his her two three
    """
    )
    | words_of.BE
)


def _are_tags(tokens: Sequence[_Token]) -> bool:
    """Whether it is a list of tags: several short pieces between commas, without articles and verbs."""
    pieces = [piece for sentence in _split(tokens, ".") for piece in _split(sentence, ",") if piece]
    said = [token.text for token in tokens]
    spoken = sum(word in ("a", "an", "the", "is", "are", "there", "his", "her", "its") for word in said)
    return len(pieces) >= 2 and spoken == 0 and max(map(len, pieces)) <= 6


def _split(tokens: Iterable[_Token], mark: str) -> Iterator[list[_Token]]:
    piece = list[_Token]()
    for token in tokens:
        if token.text == mark:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


def _read_sentence(sentence: list[_Token], tags: bool, reading: _Reading) -> None:
    """One walk over a sentence: phrases, what joins them, and which of them a preposition is about."""
    if not tags:
        sentence = _without_commas_between_adjectives(sentence)
    at = 0
    subjects = list[_Phrase]()  # what the next preposition is about
    last: _Phrase | None = None
    joint = "start"  # what stood before the next phrase: start, and, relation, with, unreal, skip, be
    relation: tuple[int, str, bool] | None = None  # where, words, is a verb
    while at < len(sentence):
        if joint == "start" and (skipped := _opening(sentence, at)):
            at = skipped
            continue
        token = sentence[at]
        if (at == 0 or _word(sentence, at - 1) == ",") and joint in ("start", "and") and _is_skipped_tag(sentence, at):
            at = _next_break(sentence, at)
            continue
        # Behind a whole phrase another begins only with a determiner or a number.
        bare = token.text not in words_of.DETERMINERS and _number(token.text) is None
        phrase, after = (None, at) if joint == "done" and bare else _phrase_at(sentence, at, tags, joint == "and")
        if phrase is not None:
            reading.mentioned.add(phrase.noun)
            if joint == "unreal":
                last = None
                joint = "unreal" if _joined_next(sentence, after) else "skip"
            elif joint == "or" or _word(sentence, after) == "or":
                last = None  # it may be shown or not
                joint = "skip"
            else:
                reading.phrases.append(phrase)
                if joint == "start":
                    subjects = [phrase]
                elif joint == "and":
                    if relation is None and subjects and last is subjects[-1]:
                        subjects.append(phrase)
                    elif _begins_anew(sentence, after):
                        # "a house with a door and a roof under a tree": which of the two, the words do not tell.
                        told = relation is not None or _word(sentence, after) in words_of.HAVE | words_of.BE | {"with"}
                        subjects, relation = [phrase] if told else [_Phrase(0, "kind", 0, 0, "")], None
                elif joint == "relation" and relation is not None:
                    start, said, is_verb = relation
                    between = said in ("between", "in between")
                    pair = [phrase]
                    if between and _word(sentence, after) == "and":
                        second, further = _phrase_at(sentence, after + 1, tags)
                        if second is not None:
                            reading.phrases.append(second)
                            pair.append(second)
                            after = further
                    owned = phrase.determiner in _POSSESSIVE and said in ("in", "on", "at")  # in her arms
                    if (not between or len(pair) == 2 or phrase.plural) and (is_verb or _is_placed(phrase)) and not owned:
                        reading.relations += [
                            _Relation(start, subject, said, tuple(pair), is_verb) for subject in subjects if subject.is_thing
                        ]
                elif joint == "skip" and not subjects:
                    subjects = [phrase]
                last = phrase
                joint = "done"
            at = after
            continue
        # No phrase here: a word that joins.
        if token.text == ",":
            at += 1
            if joint == "unreal":
                joint = "skip"
            anew = _begins_anew_at(sentence, at, tags)
            joint = "start" if anew or tags or not subjects else "and"
            if joint == "start":
                relation = None
                if not tags and _word(sentence, at) not in ("and",) and _preposition(sentence, at)[0]:
                    joint = "done"  # "a cat, next to a dog"
            continue
        if token.text in ("and", "plus"):
            joint = "unreal" if joint == "unreal" else "start" if joint == "start" else "and"
            at += 1
            continue
        if token.text == "or":
            joint, at = "or", at + 1
            continue
        if token.text in words_of.UNREAL:
            joint, at = "unreal", at + 1
            continue
        said, after = _preposition(sentence, at)
        if said:
            at = after
            if joint == "unreal":
                if said == "of":  # instead of
                    continue
                joint = "unreal"
                continue
            if said in _POSITIONS:
                if (last or subjects) and said in _OPPOSITE_POSITIONS:
                    about = last if last is not None else subjects[-1]
                    if about.is_thing:
                        reading.relations.append(_Relation(token.start, about, said, ()))
                joint = "done" if subjects else "start"
                continue
            simple = _simple(said)
            color, further = _bare_color(sentence, at)
            if color is not None and simple in ("on", "against"):
                reading.phrases.append(_Phrase(color.tokens[0].start, "", 0, 0, "a", [color]))
                at, joint, last = further, "done", None
                continue
            if said == "by":  # by the window, or by Turner
                near = _word(sentence, at) in words_of.DETERMINERS and bool(subjects)
                relation, joint = (token.start, "by", False), "relation" if near else "unreal"
            elif simple in _OPPOSITE_RELATIONS:
                relation, joint = (token.start, said, False), "relation" if subjects else "skip"
            elif said == "as well as":
                joint = "and"
            else:
                joint = "with"
            continue
        if token.text in words_of.BE:
            adjective, after = _predicate(sentence, at + 1)
            if adjective and last is not None and last.is_thing:
                last.adjectives += adjective
                at, joint = after, "done"
            else:
                at += 1
                joint = "start" if not subjects else "be"
                if _word(sentence, at) in ("not", "no"):
                    joint, at = "unreal", at + 1
            continue
        if token.text in words_of.HAVE:
            joint, at = "with", at + 1
            continue
        if token.text in words_of.SHOWS and joint in ("start", "skip", "done") and not subjects:
            joint, at = "start", at + 1
            continue
        if _is_verb(token.text) and subjects and joint in ("done", "be", "relation", "and"):
            at_rest = token.text in words_of.POSTURES
            relation = None if at_rest else (token.start, token.text, True)
            joint = "done" if at_rest else "with" if token.text in words_of.SHOWS else "relation"
            at += 1
            continue
        if token.text in words_of.RELATIVES or token.text in words_of.PRONOUNS:
            joint = "start" if token.text in ("there", "here") and not subjects else "done" if subjects else "start"
            at += 1
            continue
        at += 1
        joint = joint if joint in ("unreal", "relation") else "done" if subjects else joint
        if joint == "relation" and relation is not None and not relation[2] and token.text not in words_of.ADVERBS:
            joint = "done"


def _begins_anew(sentence: list[_Token], at: int) -> bool:
    """Whether what follows a phrase says something of it: then it is a subject, not a second object."""
    if _word(sentence, at) in words_of.HAVE | words_of.BE | {"with"}:
        return True
    said, _ = _preposition(sentence, at)
    return bool(said) and said not in ("of",) and (_simple(said) in _OPPOSITE_RELATIONS or said in _POSITIONS)


def _begins_anew_at(sentence: list[_Token], at: int, tags: bool) -> bool:
    phrase, after = _phrase_at(sentence, at, tags)
    return phrase is not None and (_begins_anew(sentence, after) or _word(sentence, after) in (",", ""))


def _joined_next(sentence: list[_Token], at: int) -> bool:
    return _word(sentence, at) in ("and", "or", "nor")


def _word(sentence: list[_Token], at: int) -> str:
    return sentence[at].text if 0 <= at < len(sentence) else ""


def _next_break(sentence: list[_Token], at: int) -> int:
    while at < len(sentence) and sentence[at].text != ",":
        at += 1
    return at


def _is_skipped_tag(sentence: list[_Token], at: int) -> bool:
    """A tag about the quality of the picture."""
    piece = [token.text for token in sentence[at : _next_break(sentence, at)]]
    return "-".join(piece) in words_of.SKIPPED_TAGS


def _opening(sentence: list[_Token], at: int) -> int:
    """Where what is shown begins, after "a photo of", "there is", "this picture shows"; 0 where there is no such opening."""
    begin = at
    if _word(sentence, at) in ("there", "here", "this", "it") and _word(sentence, at + 1) in words_of.BE:
        return at + 2
    while at < len(sentence) and at - begin < 7:
        word = _word(sentence, at)
        if word in words_of.MEDIA or (word in ("up", "art", "style", "life") and at > begin):
            after = _word(sentence, at + 1)
            if after == "of" or after in words_of.SHOWS or (after == "with" and at - begin < 3 and word != "art"):
                return at + 2
            if after in words_of.BE and _word(sentence, at + 2) == "of":
                return at + 3
            at += 1
            continue
        if word in (",", "and", "of", "") or (_is_verb(word) and word not in words_of.OPPOSITES):
            return 0
        if at > begin and word in words_of.DETERMINERS:
            return 0
        if at > begin and _preposition(sentence, at)[0]:
            return 0
        at += 1
    return 0


def _preposition(sentence: list[_Token], at: int) -> tuple[str, int]:
    for phrase in _BY_FIRST.get(_word(sentence, at), ()):
        if [token.text for token in sentence[at : at + len(phrase)]] == phrase:
            said = " ".join(phrase)
            if said in _POSITIONS and _word(sentence, at + len(phrase)) == "side":
                return said, at + len(phrase) + 1
            return said, at + len(phrase)
    return "", at


_OPPOSITE_POSITIONS = {
    "at the top": "at the bottom", "at the bottom": "at the top", "on the left": "on the right", "on the right": "on the left",
    "at the left": "at the right", "at the right": "at the left", "to the left": "to the right", "to the right": "to the left",
    "in the foreground": "in the background", "in the background": "in the foreground",
}  # fmt: skip


def _simple(said: str) -> str:
    """The name of a relation: "left of" for "to the left side of"."""
    for side in ("left", "right"):
        if side in said.split() and said.endswith("of"):
            return f"{side} of"
    return {"on the top of": "on top of", "in the front of": "in front of"}.get(said, said)


def _is_placed(phrase: _Phrase) -> bool:
    """Whether a phrase after a preposition names a thing ("on a table") rather than a state ("on fire")."""
    return phrase.is_thing and bool(phrase.determiner or phrase.count or phrase.plural)


def _bare_color(sentence: list[_Token], at: int) -> tuple[_Adjective | None, int]:
    """A color where a noun would be ("on light blue"), which means the background."""
    after = at + 1 if _word(sentence, at) in ("a", "an", "the", "plain", "solid") else at
    adjective, end = _adjective_at(sentence, after)
    if adjective is None or adjective.tokens[-1].text not in words_of.COLOR_FAMILY:
        return None, at
    follows = _word(sentence, end)
    if follows in ("", ",", "and", "with") or follows in words_of.BE or (_preposition(sentence, end)[0] and follows != "of"):
        return (None, at) if after > at and _word(sentence, at) in ("a", "an", "the") else (adjective, end)
    return None, at


def _without_commas_between_adjectives(sentence: list[_Token]) -> list[_Token]:
    def adjective(at: int) -> bool:
        word = _word(sentence, at)
        return _is_adjective(word) and word not in words_of.COLOR_NOUNS

    return [t for at, t in enumerate(sentence) if not (t.text == "," and adjective(at - 1) and adjective(at + 1))]


def _is_adjective(word: str) -> bool:
    return (
        word in words_of.OPPOSITES or word in words_of.VISIBLE or word in words_of.SUBJECTIVE or word in words_of.COLOR_FAMILY
    )


def _looks_like_adjective(word: str) -> bool:
    """By its ending; only asked where a noun follows."""
    if word.endswith("ed") and len(word) > 4 and word not in words_of.ED_NOUNS:
        return True
    if "-" in word and word.endswith(("en", "ing", "less")):
        return True
    if word.endswith("ing") and len(word) > 5:
        return word not in words_of.ING_NOUNS and word not in words_of.CLASSIFYING
    return len(word) > 5 and word.endswith(("less", "ful", "ous", "ish", "-like", "-colored", "-shaped")) and word != "radish"


def _is_verb(word: str) -> bool:
    if word in words_of.FINITE_VERBS or word in words_of.POSTURES or word in words_of.SHOWS:
        return True
    if word.endswith("ing") and len(word) > 4:
        return word not in words_of.ING_NOUNS
    return word in words_of.PARTICIPLES or (
        word.endswith("ed") and len(word) > 4 and word not in words_of.ED_NOUNS and "-" not in word
    )


def _is_adverb(word: str) -> bool:
    return word in words_of.ADVERBS or (len(word) > 4 and word.endswith("ly") and word not in words_of.LY_WORDS)


def _adjective_at(sentence: list[_Token], at: int) -> tuple[_Adjective | None, int]:
    """A known adjective or a color with its shade."""
    word, following = _word(sentence, at), _word(sentence, at + 1)
    if word in words_of.SHADES and following in words_of.COLOR_FAMILY:
        only = words_of.SHADE_ONLY_BEFORE.get(word)
        if only is None or following in only:
            return _Adjective(f"{word} {following}", (sentence[at], sentence[at + 1])), at + 2
    if word in words_of.COLOR_FAMILY or _is_adjective(word):
        return _Adjective(word, (sentence[at],)), at + 1
    return None, at


def _predicate(sentence: list[_Token], at: int) -> tuple[list[_Adjective], int]:
    """Adjectives after "is": with no noun behind them."""
    found = list[_Adjective]()
    if _word(sentence, at) in ("not", "no"):
        return [], at
    while at < len(sentence):
        if _is_adverb(_word(sentence, at)):
            at += 1
            continue
        adjective, after = _adjective_at(sentence, at)
        if adjective is None:
            break
        found.append(adjective)
        at = after
        if _word(sentence, at) in ("and", ",") and _adjective_at(sentence, at + 1)[0] is not None:
            at += 1
    ends = (
        at >= len(sentence) or _word(sentence, at) in (",", "and", "with", "while", "or") or bool(_preposition(sentence, at)[0])
    )
    return (found, at) if found and ends else ([], at)


def _number(word: str) -> int | None:
    if word == "dozen":
        return 12
    if word in words_of.NUMBERS:
        return words_of.NUMBERS.index(word)
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 2 else None


def _phrase_at(sentence: list[_Token], at: int, tags: bool, joined: bool = False) -> tuple[_Phrase | None, int]:
    """The noun phrase that begins here and where it ends, or none. A phrase that is denied or measured in is read through."""
    begin, determiner = at, ""
    if _word(sentence, at) in words_of.DETERMINERS:
        determiner, at = _word(sentence, at), at + 1
        if _word(sentence, at) in words_of.DETERMINERS and _word(sentence, at) not in ("a", "an"):  # all the dogs
            determiner, at = _word(sentence, at), at + 1
    owner = at
    while (
        owner - at < 3
        and owner < len(sentence)
        and not _ends_phrase(sentence, owner, True)
        and not _owns(_word(sentence, owner))
    ):
        owner += 1
    if _owns(_word(sentence, owner)):  # a young man's hat
        determiner, at = "a", owner + 1
    measure = at
    while _is_adjective(_word(sentence, measure)) and measure - at < 2:
        measure += 1
    if (determiner or measure == at) and _word(sentence, measure) in words_of.MEASURES and _word(sentence, measure + 1) == "of":
        inner, after = _phrase_at(sentence, measure + 2, tags)
        return (inner, after) if inner is not None else (None, begin)
    count, count_token = _number(_word(sentence, at)), None
    if count is not None:
        count_token, at = sentence[at], at + 1
        if determiner and _word(sentence, at) in ("of",):
            return None, begin
        if _word(sentence, at) == "of" and _word(sentence, at + 1) in words_of.DETERMINERS:  # three of the dogs
            at += 2
    body: list[tuple[bool, _Adjective]] = []  # (is an adjective, its words)
    while at < len(sentence):
        if len(body) > LONGEST_PHRASE:
            return _denied(at)
        word, following = _word(sentence, at), _word(sentence, at + 1)
        has_noun = any(not adjective for adjective, _ in body)
        triple, pair = "-".join((word, following, _word(sentence, at + 2))), f"{word}-{following}"
        if triple in words_of.COMPOUNDS or pair in words_of.COMPOUNDS or f"{word}-{singular(following)}" in words_of.COMPOUNDS:
            size = 3 if triple in words_of.COMPOUNDS else 2
            taken = tuple(sentence[at : at + size])
            body.append((False, _Adjective(" ".join(t.text for t in taken), taken)))
            at += size
            continue
        if word == "and" and body and body[-1][0] and _adjective_at(sentence, at + 1)[0] is not None:
            if body[-1][1].tokens[-1].text in words_of.COLOR_FAMILY and _two_colors(body, sentence, at):
                second, after = _adjective_at(sentence, at + 1)
                assert second is not None
                first = body.pop()[1]
                body.append((True, _Adjective(f"{first.text} and {second.text}", (*first.tokens, *second.tokens))))
                at = after
                continue
            if _has_noun_after(sentence, at + 1):
                at += 1
                continue
            break
        if _ends_phrase(sentence, at, has_noun):
            break
        if _is_adverb(word):
            if has_noun and not (_is_noun_like(sentence, at + 1) and word not in words_of.ADVERBS):
                break
            known = _adjective_at(sentence, at + 1)[0] is not None or _looks_like_adjective(following)
            if word not in words_of.ADVERBS and not known and _is_noun_like(sentence, at + 1):  # a wobbly table
                body.append((not has_noun, _Adjective(word, (sentence[at],))))
            elif has_noun:
                break
            at += 1
            continue
        adjective, after = _adjective_at(sentence, at)
        if adjective is not None:
            body.append((True, adjective))
            at = after
            continue
        if has_noun and (_is_verb(word) or (word in words_of.PLAIN_VERBS and (joined or is_plural(body[-1][1].text)))):
            break
        looks = _looks_like_adjective(word) and _is_noun_like(sentence, at + 1)
        if not body and not determiner and count is None and _is_verb(word) and (not looks or word in words_of.ONE_WAY_VERBS):
            return None, begin
        body.append((looks, _Adjective(word, (sentence[at],))))
        at += 1
    return _made(body, begin, at, sentence, determiner, count, count_token, tags)


def _owns(word: str) -> bool:
    return word.endswith("'s") and len(word) > 2


def _two_colors(body: list[tuple[bool, _Adjective]], sentence: list[_Token], at: int) -> bool:
    second, after = _adjective_at(sentence, at + 1)
    colored = second is not None and second.tokens[-1].text in words_of.COLOR_FAMILY
    return colored and _is_noun_like(sentence, after)


def _has_noun_after(sentence: list[_Token], at: int) -> bool:
    adjective, after = _adjective_at(sentence, at)
    while adjective is not None:
        at = after
        adjective, after = _adjective_at(sentence, at)
    return _is_noun_like(sentence, at)


def _is_noun_like(sentence: list[_Token], at: int) -> bool:
    """Whether a word that can belong to a noun phrase stands here."""
    return at < len(sentence) and not _ends_phrase(sentence, at, True) and not _is_adverb(_word(sentence, at))


def _ends_phrase(sentence: list[_Token], at: int, has_noun: bool) -> bool:
    word = _word(sentence, at)
    if word in (",", "and", "or", "plus", "but", "with", "not", "") or word in words_of.DETERMINERS or word in words_of.UNREAL:
        return True
    if word in words_of.BE or word in words_of.HAVE or word in words_of.RELATIVES or word in words_of.PRONOUNS:
        return True
    if word in words_of.SHOWS and not has_noun:
        return True
    if _preposition(sentence, at)[0]:
        return (
            word not in ("left", "right", "full", "filled", "covered", "made", "surrounded")
            or _preposition(sentence, at)[1] > at + 1
        )
    if has_noun and _number(word) is not None:
        return True
    return not any(c.isalpha() for c in word) and not word[0].isdigit()


def _made(
    body: list[tuple[bool, _Adjective]], begin: int, at: int, sentence: list[_Token], determiner: str,
    count: int | None, count_token: _Token | None, tags: bool,
) -> tuple[_Phrase | None, int]:  # fmt: skip
    """A phrase of adjectives and a noun, from the words between two joints."""
    last_noun = max((i for i, (adjective, _) in enumerate(body) if not adjective), default=-1)
    if last_noun < 0:  # only adjectives: "an orange", "the wood"
        if (
            body
            and body[-1][1].text in words_of.COLOR_NOUNS | words_of.MATERIAL_NOUNS | words_of.SHAPE_NOUNS
            and (determiner or count is not None)
        ):
            last_noun = len(body) - 1
            body[last_noun] = (False, body[last_noun][1])
        else:
            return None, begin
    behind = (
        [] if determiner else [adjective for _, adjective in body[last_noun + 1 :] if _is_color(adjective)]
    )  # body dark blue
    body = body[: last_noun + 1]
    first_noun = last_noun
    while first_noun > 0 and not body[first_noun - 1][0]:
        first_noun -= 1
    # An unknown word before an adjective is one, too: "a quaint little house".
    adjectives = [adjective for _, adjective in body[:first_noun]] + behind
    noun_tokens = [token for _, part in body[first_noun:] for token in part.tokens]
    if len(noun_tokens) > LONGEST_NOUN + (1 if body[first_noun][1].text.count(" ") else 0):
        return _denied(at)  # a row of unknown words is no noun
    while (
        len(noun_tokens) > 1 and noun_tokens[-1].text in words_of.MEDIA | {"style", "clip"} and noun_tokens[-1].text != "figure"
    ):
        noun_tokens.pop()  # a television icon shows a television
    while len(noun_tokens) > 1 and noun_tokens[0].text in _DRAWN:
        noun_tokens.pop(0)
    if any(_UNIT.fullmatch(t.text) for t in noun_tokens):  # an 85mm lens, 8k wallpaper
        return _denied(at)
    if noun_tokens[0].text in ("word", "words", "number", "text", "letters"):
        return _denied(at)
    noun_tokens = [t for i, t in enumerate(noun_tokens) if i == len(noun_tokens) - 1 or not t.text[0].isdigit()]
    noun = " ".join(token.text for token in noun_tokens)
    if not any(c.isalpha() for c in noun) or any(c > "\u024f" for c in noun if c.isalpha()):
        return None, begin
    if determiner == "no" or count == 0:
        return _denied(at)
    if tags and len(noun_tokens) == 1 and noun in words_of.MEDIA:
        return None, begin
    if len(noun_tokens) == 1 and noun in words_of.MEDIA - {"figure", "logo", "sticker", "silhouette", "symbol", "doodle"}:
        return _denied(at)
    phrase = _Phrase(
        sentence[begin].start, noun, noun_tokens[0].start, noun_tokens[-1].end, determiner, adjectives, None, None, tags
    )
    one, many = singular(noun), plural(noun)
    if count is not None and 1 <= count <= 20 and (one == many or noun == (many if count > 1 else one)):  # not "2 cat"
        phrase.count, phrase.count_token = count, count_token
    return phrase, at


_UNIT = re.compile(r"f?\d+(?:mm|k|px|p|fps|iso)")
_DRAWN = words_of.word_set(
    """
    cartoon anime emoji pixel comic vector clipart animated illustrated drawn stylized 3d 2d sketch
    """
)


def _denied(at: int) -> tuple[_Phrase | None, int]:
    """A phrase of which nothing is to be said, read through."""
    return _Phrase(0, "kind", 0, 0, ""), at


# Parts: phrases and relations -> statements and what contradicts them.


def _phrase_parts(phrase: _Phrase, others: Sequence[str]) -> Iterator[Part]:
    if phrase.is_thing:
        contrasts = tuple(phrase.named(_shaped(noun, phrase.plural)) for noun in _turned(others, phrase.noun))
        yield Part(kind="object", statement=phrase.named(), contrasts=contrasts, words=phrase.noun)
    elif not phrase.is_background:
        return
    for adjective in phrase.adjectives:
        if adjective.tokens[-1].text in words_of.SUBJECTIVE or adjective.text in words_of.SUBJECTIVE:
            continue
        if phrase.is_background and not _is_color(adjective) and adjective.text not in words_of.OPPOSITES:
            continue
        statement = phrase.named(adjective=adjective.text)
        contrasts = tuple(phrase.named(adjective=other) for other in _other_adjectives(adjective, phrase))
        yield Part(kind="attribute", statement=statement, contrasts=contrasts, words=adjective.text)
    if phrase.count is not None and phrase.is_thing:
        counts = tuple(_counted(phrase.noun, n) for n in _other_counts(phrase.count))
        statement = _counted(phrase.noun, phrase.count)
        yield Part(kind="count", statement=statement, contrasts=counts, words=_number_word(phrase.count))


def _relation_parts(relation: _Relation) -> Iterator[Part]:
    subject, said = relation.subject.named(), relation.words
    if not relation.objects:
        contrast = f"{subject} {_OPPOSITE_POSITIONS[said]}"
        yield Part(kind="relation", statement=f"{subject} {said}", contrasts=(contrast,), words=said)
        return
    if any(phrase.noun == relation.subject.noun for phrase in relation.objects) or not all(
        p.is_thing for p in relation.objects
    ):
        return
    simple = _simple(said)
    named = [phrase.named() for phrase in relation.objects]
    contrasts = list[str]()
    if opposite := _OPPOSITE_RELATIONS.get(simple):
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


def _is_color(adjective: _Adjective) -> bool:
    return adjective.tokens[-1].text in words_of.COLOR_FAMILY


def _other_colors(adjective: _Adjective, phrase: _Phrase) -> list[str]:
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


def _other_adjectives(adjective: _Adjective, phrase: _Phrase) -> list[str]:
    if _is_color(adjective):
        colors = _other_colors(adjective, phrase)
        if " and " in adjective.text:  # red and white
            return [f"{one} and {other}" for one, other in zip(colors, colors[1:] + colors[:1], strict=True)]
        return colors
    return list(words_of.OPPOSITES.get(adjective.text, ()))


def _other_words(adjective: _Adjective, phrase: _Phrase) -> list[str]:
    """What the last word of an adjective can be changed to; with a shade, no black and white."""
    if not _is_color(adjective):
        return list(words_of.OPPOSITES.get(adjective.text, ()))
    colors = _other_colors(adjective, phrase)
    return [c for c in colors if len(adjective.tokens) == 1 or " and " in adjective.text or c not in ("black", "white")]


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


def _replaced(caption: str, start: int, end: int, new: str, phrase: _Phrase | None) -> str:
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


def _recounted(caption: str, phrase: _Phrase, count: int) -> str:
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
