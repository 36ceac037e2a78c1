"""A caption read: its noun phrases, and what joins them."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from dovetail.evaluation import caption_words as words_of
from dovetail.evaluation.caption_phrases import (
    POSITIONS,
    Adjective,
    Phrase,
    adjective_at,
    is_adjective,
    is_color,
    is_verb,
    phrase_at,
    predicate_at,
    preposition_at,
)
from dovetail.evaluation.caption_tokens import (
    Token,
    are_tags,
    is_english,
    masked,
    next_break,
    number_of,
    split_at,
    tokens_of,
    word_at,
)

MAX_CHARACTERS = 4000  # of a caption are read
OPPOSITE_RELATIONS = {
    "left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of", "above": "below",
    "below": "above", "over": "under", "under": "on top of", "beneath": "above", "underneath": "on top of", "on": "under",
    "on top of": "under", "atop": "under", "onto": "under", "upon": "under", "between": "", "next to": "", "beside": "",
    "near": "", "in": "", "inside": "", "outside": "inside", "inside of": "", "outside of": "inside", "close to": "",
    "alongside": "", "adjacent to": "", "into": "", "in between": "", "by": "", "around": "", "against": "", "at": "",
    "along": "", "across": "", "through": "",
}  # fmt: skip
OPPOSITE_POSITIONS = {
    "at the top": "at the bottom", "at the bottom": "at the top", "on the left": "on the right", "on the right": "on the left",
    "at the left": "at the right", "at the right": "at the left", "to the left": "to the right", "to the right": "to the left",
    "in the foreground": "in the background", "in the background": "in the foreground",
}  # fmt: skip
_POSSESSIVE = ("its", "his", "her", "their", "my", "your", "our")
_LEFT_RIGHT = re.compile(r"\b(?:on|at|to) the (left|right|top|bottom)\b|\b(left|right) of\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Relation:
    """How a phrase lies to others, or where in the picture it is."""

    start: int
    subject: Phrase
    words: str  # as said: "to the left of"
    objects: tuple[Phrase, ...]  # none for a place in the picture: "at the bottom"
    is_verb: bool = False


@dataclass(slots=True)
class Reading:
    """What was found in a caption."""

    tokens: list[Token] = field(default_factory=list)
    phrases: list[Phrase] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)  # nouns, those that may not be shown among them
    directions: set[int] = field(default_factory=set)  # where a left or right is a direction


@lru_cache(maxsize=4096)
def read(caption: str) -> Reading:
    """What a caption says; empty where it is no English. The result is shared and only read."""
    text = caption[:MAX_CHARACTERS]
    plain = masked(text)
    tokens = tokens_of(plain)
    told = [t.text for t in tokens if t.text not in (",", ".")]
    if not told or not is_english(text, told):
        return Reading()
    reading = Reading(tokens=tokens)
    reading.directions = {m.start(1) if m[1] else m.start(2) for m in _LEFT_RIGHT.finditer(plain)}
    tags = are_tags(tokens)
    for sentence in split_at(tokens, "."):
        _Walk(sentence if tags else _without_commas_between_adjectives(sentence), tags, reading).walk()
    _keep_names(text, reading)
    return reading


def _keep_names(text: str, reading: Reading) -> None:
    """Proper names are kept as they are written, unless the text is a title, whose words are capitals all."""
    words = [token for token in reading.tokens if token.text[0].isalpha()]
    capital = {token.start for token in words if text[token.start].isupper()}
    if len(words) < 2 or 2 * len(capital) > len(words):
        return
    first = {t.start for b, t in zip([None, *reading.tokens], reading.tokens, strict=False) if b is None or b.text == "."}
    for phrase in reading.phrases:
        if phrase.noun and phrase.noun_start in capital - first:
            phrase.written = text[phrase.noun_start : phrase.noun_end]


class _Walk:
    """One walk over a sentence: phrases, what joins them, and which of them a preposition is about."""

    def __init__(self, sentence: list[Token], tags: bool, reading: Reading) -> None:
        self.sentence, self.tags, self.reading = sentence, tags, reading
        self.at = 0
        self.joint = "start"  # what stood before the next phrase: start, and, or, relation, with, be, unreal, skip, done
        self.subjects: list[Phrase] = []  # what the next preposition is about
        self.last: Phrase | None = None
        self.relation: tuple[int, str, bool] | None = None  # where, its words, whether it is a verb

    def word(self, ahead: int = 0) -> str:
        return word_at(self.sentence, self.at + ahead)

    def walk(self) -> None:
        while self.at < len(self.sentence):
            before = self.at
            if self.joint == "start" and (after := _opening(self.sentence, self.at)):
                self.at = after
            elif self._begins_piece() and self.joint in ("start", "and") and _is_skipped_tag(self.sentence, self.at):
                self.at = next_break(self.sentence, self.at)
            elif not self._take_phrase():
                self._take_joint()
            assert self.at > before

    def _begins_piece(self) -> bool:
        return self.at == 0 or self.word(-1) == ","

    def _take_phrase(self) -> bool:
        """Behind a whole phrase another begins only with a determiner or a number."""
        bare = self.word() not in words_of.DETERMINERS and number_of(self.word()) is None
        if self.joint == "done" and bare:
            return False
        phrase, after = phrase_at(self.sentence, self.at, self.tags, self.joint == "and")
        if phrase is None:
            return False
        self.at = after
        self.reading.mentioned.add(phrase.noun)
        if self.joint == "unreal":
            self.last, self.joint = None, "unreal" if self.word() in ("and", "or", "nor") else "skip"
        elif self.joint == "or" or self.word() == "or":
            self.last, self.joint = None, "skip"  # it may be shown or not
        else:
            self.reading.phrases.append(phrase)
            self._place(phrase)
            self.last, self.joint = phrase, "done"
        return True

    def _place(self, phrase: Phrase) -> None:
        """What a phrase is to the others: a new subject, one more, or what a subject stands in a relation to."""
        if self.joint == "start" or (self.joint == "skip" and not self.subjects):
            self.subjects = [phrase]
        elif self.joint == "and":
            if self.relation is None and self.subjects and self.last is self.subjects[-1]:
                self.subjects.append(phrase)
            elif _begins_anew(self.sentence, self.at):
                # "a house with a door and a roof under a tree": which of the two, the words do not tell.
                told = self.relation is not None or self.word() in words_of.HAVE | words_of.BE | {"with"}
                self.subjects, self.relation = [phrase] if told else [Phrase(0, "kind", 0, 0, "")], None
        elif self.joint == "relation" and self.relation is not None:
            self._relate(phrase, *self.relation)

    def _relate(self, phrase: Phrase, start: int, said: str, is_a_verb: bool) -> None:
        pair = [phrase]
        if said in ("between", "in between"):
            second, after = phrase_at(self.sentence, self.at + 1, self.tags) if self.word() == "and" else (None, self.at)
            if second is not None:
                self.reading.phrases.append(second)
                pair, self.at = [phrase, second], after
            elif not phrase.plural:
                return
        if phrase.determiner in _POSSESSIVE and said in ("in", "on", "at"):  # in her arms
            return
        if is_a_verb or _is_placed(phrase):
            about = [subject for subject in self.subjects if subject.is_thing]
            self.reading.relations += [Relation(start, subject, said, tuple(pair), is_a_verb) for subject in about]

    def _take_joint(self) -> None:
        """A word that begins no phrase: what it says of the next one."""
        word = self.word()
        if word == ",":
            self._take_comma()
        elif word in ("and", "plus"):
            self.joint = self.joint if self.joint in ("unreal", "start") else "and"
            self.at += 1
        elif word == "or":
            self.joint, self.at = "or", self.at + 1
        elif word in words_of.UNREAL:
            self.joint, self.at = "unreal", self.at + 1
        elif preposition_at(self.sentence, self.at)[0]:
            self._take_preposition()
        elif word in words_of.BE:
            self._take_be()
        elif word in words_of.HAVE:
            self.joint, self.at = "with", self.at + 1
        elif word in words_of.SHOWS and self.joint in ("start", "skip", "done") and not self.subjects:
            self.joint, self.at = "start", self.at + 1
        elif is_verb(word) and self.subjects and self.joint in ("done", "be", "relation", "and"):
            at_rest = word in words_of.POSTURES
            self.relation = None if at_rest else (self.sentence[self.at].start, word, True)
            self.joint = "done" if at_rest else "with" if word in words_of.SHOWS else "relation"
            self.at += 1
        elif word in words_of.RELATIVES or word in words_of.PRONOUNS:
            self.joint = "done" if self.subjects else "start"
            self.at += 1
        else:
            broken = self.joint == "relation" and self.relation is not None and not self.relation[2]
            keeps = self.joint in ("unreal", "relation") and not (broken and word not in words_of.ADVERBS)
            self.joint = self.joint if keeps or not self.subjects else "done"
            self.at += 1

    def _take_comma(self) -> None:
        self.at += 1
        phrase, after = phrase_at(self.sentence, self.at, self.tags)
        anew = phrase is not None and (_begins_anew(self.sentence, after) or word_at(self.sentence, after) in (",", ""))
        self.joint = "start" if anew or self.tags or not self.subjects else "and"
        if self.joint == "start":
            self.relation = None
            if not self.tags and self.word() != "and" and preposition_at(self.sentence, self.at)[0]:
                self.joint = "done"  # "a cat, next to a dog"

    def _take_preposition(self) -> None:
        start = self.sentence[self.at].start
        said, self.at = preposition_at(self.sentence, self.at)
        simple = simple_relation(said)
        if self.joint == "unreal":
            return
        if said in POSITIONS:
            about = self.last if self.last is not None else self.subjects[-1] if self.subjects else None
            if about is not None and about.is_thing and said in OPPOSITE_POSITIONS:
                self.reading.relations.append(Relation(start, about, said, ()))
            self.joint = "done" if self.subjects else "start"
            return
        ground, after = background_at(self.sentence, self.at) if simple in ("on", "against") else (None, self.at)
        if ground is not None:
            self.reading.phrases.append(ground)
            self.at, self.joint, self.last = after, "done", None
        elif said == "by":  # by the window, or by Turner
            near = self.word() in words_of.DETERMINERS and bool(self.subjects)
            self.relation, self.joint = (start, said, False), "relation" if near else "unreal"
        elif simple in OPPOSITE_RELATIONS:
            self.relation, self.joint = (start, said, False), "relation" if self.subjects else "skip"
        else:
            self.joint = "and" if said == "as well as" else "with"

    def _take_be(self) -> None:
        adjectives, after = predicate_at(self.sentence, self.at + 1)
        if adjectives and self.last is not None and self.last.is_thing:
            self.last.adjectives += adjectives
            self.at, self.joint = after, "done"
            return
        self.at += 1
        self.joint = "be" if self.subjects else "start"
        if self.word() in ("not", "no"):
            self.joint, self.at = "unreal", self.at + 1


def _begins_anew(sentence: list[Token], at: int) -> bool:
    """Whether what follows a phrase says something of it: then it is a subject, not a second object."""
    if word_at(sentence, at) in words_of.HAVE | words_of.BE | {"with"}:
        return True
    said, _ = preposition_at(sentence, at)
    return bool(said) and said not in ("of",) and (simple_relation(said) in OPPOSITE_RELATIONS or said in POSITIONS)


def _is_skipped_tag(sentence: list[Token], at: int) -> bool:
    """A tag about the quality of the picture."""
    piece = [token.text for token in sentence[at : next_break(sentence, at)]]
    return "-".join(piece) in words_of.SKIPPED_TAGS


def _opening(sentence: list[Token], at: int) -> int:
    """Where what is shown begins, after "a photo of", "there is", "this picture shows"; 0 where there is no such opening."""
    begin = at
    if word_at(sentence, at) in ("there", "here", "this", "it") and word_at(sentence, at + 1) in words_of.BE:
        return at + 2
    while at < len(sentence) and at - begin < 7:
        word = word_at(sentence, at)
        if word in words_of.MEDIA or (word in ("up", "art", "style", "life") and at > begin):
            after = word_at(sentence, at + 1)
            if after == "of" or after in words_of.SHOWS or (after == "with" and at - begin < 3 and word != "art"):
                return at + 2
            if after in words_of.BE and word_at(sentence, at + 2) == "of":
                return at + 3
            at += 1
            continue
        if word in (",", "and", "of", "") or (is_verb(word) and word not in words_of.OPPOSITES):
            return 0
        if at > begin and word in words_of.DETERMINERS:
            return 0
        if at > begin and preposition_at(sentence, at)[0]:
            return 0
        at += 1
    return 0


def simple_relation(said: str) -> str:
    """The name of a relation: "left of" for "to the left side of"."""
    for side in ("left", "right"):
        if side in said.split() and said.endswith("of"):
            return f"{side} of"
    return {"on the top of": "on top of", "in the front of": "in front of"}.get(said, said)


def _is_placed(phrase: Phrase) -> bool:
    """Whether a phrase after a preposition names a thing ("on a table") rather than a state ("on fire")."""
    return phrase.is_thing and bool(phrase.determiner or phrase.count or phrase.plural)


def background_at(sentence: list[Token], at: int) -> tuple[Phrase | None, int]:
    """A background where a noun would be: "on light blue", "on a blue to red gradient", "on a gradient from blue to red"."""
    begin = at + 1 if word_at(sentence, at) in ("a", "an", "the") else at
    turned = word_at(sentence, begin) == "gradient" and word_at(sentence, begin + 1) == "from"
    first, end = adjective_at(sentence, begin + 2 if turned else begin)
    if first is None or not is_color(first):
        return None, at
    if word_at(sentence, end) == "to":
        second, after = adjective_at(sentence, end + 1)
        whole = turned or word_at(sentence, after) == "gradient"
        if second is not None and is_color(second) and whole:
            both = Adjective(f"{first.text} to {second.text}", (*first.tokens, *second.tokens))
            ground = Phrase(first.tokens[0].start, "gradient", 0, 0, "a", [both])
            return ground, after if turned else after + 1
    follows = word_at(sentence, end)
    ends = follows in ("", ",", "and", "with") or follows in words_of.BE
    ends = ends or (bool(preposition_at(sentence, end)[0]) and follows != "of")
    return (Phrase(first.tokens[0].start, "", 0, 0, "a", [first]), end) if ends and begin == at else (None, at)


def _without_commas_between_adjectives(sentence: list[Token]) -> list[Token]:
    def adjective(at: int) -> bool:
        word = word_at(sentence, at)
        return is_adjective(word) and word not in words_of.COLOR_NOUNS

    return [t for at, t in enumerate(sentence) if not (t.text == "," and adjective(at - 1) and adjective(at + 1))]
