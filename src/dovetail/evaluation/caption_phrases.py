"""Noun phrases of English captions: a determiner, a number, adjectives and a noun, found by rules."""

import re
from dataclasses import dataclass, field

from dovetail.evaluation import caption_words as words_of
from dovetail.evaluation.caption_tokens import Token, number_of, word_at
from dovetail.evaluation.caption_words import article, is_plural, plural, singular

LONGEST_PHRASE = 10  # adjectives and nouns; a longer row of them is a list without commas
LONGEST_NOUN = 3  # words; a longer run of unknown words is no noun phrase
POSITIONS = (
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
for _phrase in (*_PREPOSITIONS, *POSITIONS):
    _BY_FIRST.setdefault(_phrase.split()[0], []).append(_phrase.split())
for _listed in _BY_FIRST.values():
    _listed.sort(key=len, reverse=True)
_DRAWN_THINGS = ("figure", "logo", "sticker", "silhouette", "symbol", "doodle")
_UNIT = re.compile(r"f?\d+(?:mm|k|px|p|fps|iso)")
_DRAWN = words_of.word_set(
    """
    cartoon anime emoji pixel comic vector clipart animated illustrated drawn stylized 3d 2d sketch
    """
)


@dataclass(frozen=True, slots=True)
class Adjective:
    """One adjective, or a color with its shade, or two colors: "light blue", "red and white"."""

    text: str  # with its shade: "light blue"
    tokens: tuple[Token, ...]


@dataclass(slots=True)
class Phrase:
    """A noun phrase."""

    start: int
    noun: str  # as in the caption; empty where only a background is meant
    noun_start: int
    noun_end: int
    determiner: str
    adjectives: list[Adjective] = field(default_factory=list)
    count: int | None = None
    count_token: Token | None = None
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
        return not self.noun or self.noun.rsplit(" ", 1)[-1] in ("background", "backgrounds", "backdrop", "gradient")

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


def phrase_at(sentence: list[Token], at: int, tags: bool, joined: bool = False) -> tuple[Phrase | None, int]:
    """The noun phrase that begins here and where it ends, or none. A phrase that is denied or measured in is read through.

    `tags`: of a list of tags, without articles. `joined`: behind an "and", so that a plain verb may follow.
    """
    begin = at
    if at >= len(sentence):
        return None, at
    determiner, at = _determiner_at(sentence, at)
    measure = at
    while is_adjective(word_at(sentence, measure)) and measure - at < 2:
        measure += 1
    measured = word_at(sentence, measure) in words_of.MEASURES and word_at(sentence, measure + 1) == "of"
    if measured and (determiner or measure == at):  # a group of dogs
        inner, after = phrase_at(sentence, measure + 2, tags)
        return (inner, after) if inner is not None else (None, begin)
    count, count_token = number_of(word_at(sentence, at)), None
    if count is not None:
        count_token, at = sentence[at], at + 1
        if word_at(sentence, at) == "of":  # three of the dogs
            if determiner or word_at(sentence, at + 1) not in words_of.DETERMINERS:
                return None, begin
            at += 2
    word = word_at(sentence, at)
    looks = looks_like_adjective(word) and _is_noun_like(sentence, at + 1)
    verb = is_verb(word) and adjective_at(sentence, at)[0] is None and (not looks or word in words_of.ONE_WAY_VERBS)
    if verb and not determiner and count is None and not _ends_phrase(sentence, at, False):
        return None, begin
    body, at = _body_at(sentence, at, joined)
    if len(body) > LONGEST_PHRASE:
        return _denied(at)
    return _made(_Body(body, determiner, count, count_token), sentence[begin].start, begin, at, tags)


def _determiner_at(sentence: list[Token], at: int) -> tuple[str, int]:
    determiner = ""
    if word_at(sentence, at) in words_of.DETERMINERS:
        determiner, at = word_at(sentence, at), at + 1
        if word_at(sentence, at) in words_of.DETERMINERS and word_at(sentence, at) not in ("a", "an"):  # all the dogs
            determiner, at = word_at(sentence, at), at + 1
    for owner in range(at, min(at + 4, len(sentence))):
        if _owns(sentence[owner].text):  # a young man's hat
            return "a", owner + 1
        if _ends_phrase(sentence, owner, True):
            break
    return determiner, at


def _body_at(sentence: list[Token], at: int, joined: bool) -> tuple[list[tuple[bool, Adjective]], int]:
    """The adjectives and nouns from here on, as (is an adjective, its words), and where they end."""
    body: list[tuple[bool, Adjective]] = []
    while at < len(sentence) and len(body) <= LONGEST_PHRASE:
        word, has_noun = word_at(sentence, at), any(not adjective for adjective, _ in body)
        if compound := _compound_at(sentence, at):
            body.append((False, Adjective(" ".join(t.text for t in compound), compound)))
            at += len(compound)
            continue
        adjective, after = adjective_at(sentence, at)
        if word == "and" and body and body[-1][0] and adjective_at(sentence, at + 1)[0] is not None:
            if not _has_noun_after(sentence, at + 1):
                break
            if (both := _two_colors(body[-1][1], sentence, at + 1)) is not None:
                body[-1] = (True, both)
                at = adjective_at(sentence, at + 1)[1]
            else:
                at += 1
        elif _ends_phrase(sentence, at, has_noun):
            break
        elif is_adverb(word):
            kind = _adverb_at(sentence, at, has_noun)
            if kind == "ends":
                break
            if kind == "adjective":
                body.append((not has_noun, Adjective(word, (sentence[at],))))
            at += 1
        elif adjective is not None:
            body.append((True, adjective))
            at = after
        elif has_noun and (is_verb(word) or (word in words_of.PLAIN_VERBS and (joined or is_plural(body[-1][1].text)))):
            break
        else:
            looks = looks_like_adjective(word) and _is_noun_like(sentence, at + 1)
            body.append((looks, Adjective(word, (sentence[at],))))
            at += 1
    return body, at


def _compound_at(sentence: list[Token], at: int) -> tuple[Token, ...]:
    """Words that name a thing only together: "hot dog"."""
    for size in (3, 2):
        words = [token.text for token in sentence[at : at + size]]
        if len(words) == size and {"-".join(words), "-".join([*words[:-1], singular(words[-1])])} & words_of.COMPOUNDS:
            return tuple(sentence[at : at + size])
    return ()


def _adverb_at(sentence: list[Token], at: int, has_noun: bool) -> str:
    """What a word like an adverb is: an adverb, an adjective ("a wobbly table"), or the end of the phrase."""
    sure = sentence[at].text in words_of.ADVERBS
    before_noun = _is_noun_like(sentence, at + 1)
    if has_noun and (sure or not before_noun):
        return "ends"
    known = adjective_at(sentence, at + 1)[0] is not None or looks_like_adjective(word_at(sentence, at + 1))
    if not sure and not known and before_noun:
        return "adjective"
    return "ends" if has_noun else "adverb"


def _owns(word: str) -> bool:
    return word.endswith("'s") and len(word) > 2


def _two_colors(first: Adjective, sentence: list[Token], at: int) -> Adjective | None:
    """Both colors of "red and white", where the second stands before a noun."""
    second, after = adjective_at(sentence, at)
    if second is None or not is_color(first) or not is_color(second) or not _is_noun_like(sentence, after):
        return None
    return Adjective(f"{first.text} and {second.text}", (*first.tokens, *second.tokens))


def _has_noun_after(sentence: list[Token], at: int) -> bool:
    adjective, after = adjective_at(sentence, at)
    while adjective is not None:
        at = after
        adjective, after = adjective_at(sentence, at)
    return _is_noun_like(sentence, at)


def _is_noun_like(sentence: list[Token], at: int) -> bool:
    """Whether a word that can belong to a noun phrase stands here."""
    return at < len(sentence) and not _ends_phrase(sentence, at, True) and not is_adverb(word_at(sentence, at))


def _ends_phrase(sentence: list[Token], at: int, has_noun: bool) -> bool:
    word = word_at(sentence, at)
    if word in (",", "and", "or", "plus", "but", "with", "not", "") or word in words_of.DETERMINERS or word in words_of.UNREAL:
        return True
    if word in words_of.BE or word in words_of.HAVE or word in words_of.RELATIVES or word in words_of.PRONOUNS:
        return True
    if word in words_of.SHOWS and not has_noun:
        return True
    if preposition_at(sentence, at)[0]:
        return (
            word not in ("left", "right", "full", "filled", "covered", "made", "surrounded")
            or preposition_at(sentence, at)[1] > at + 1
        )
    if has_noun and number_of(word) is not None:
        return True
    return not any(c.isalpha() for c in word) and not word[0].isdigit()


@dataclass(frozen=True, slots=True)
class _Body:
    words: list[tuple[bool, Adjective]]  # (is an adjective, its words)
    determiner: str
    count: int | None
    count_token: Token | None


def _made(body: _Body, start: int, begin: int, at: int, tags: bool) -> tuple[Phrase | None, int]:
    """A phrase of the adjectives and the noun of a body, from the words between two joints."""
    words = body.words
    last_noun = max((i for i, (adjective, _) in enumerate(words) if not adjective), default=-1)
    if last_noun < 0:  # only adjectives: "an orange", "the wood"
        nameable = words_of.COLOR_NOUNS | words_of.MATERIAL_NOUNS | words_of.SHAPE_NOUNS
        if not words or words[-1][1].text not in nameable or not (body.determiner or body.count is not None):
            return None, begin
        last_noun = len(words) - 1
    first_noun = last_noun
    while first_noun > 0 and not words[first_noun - 1][0]:
        first_noun -= 1
    # An unknown word before an adjective is one, too: "a quaint little house".
    adjectives = [adjective for _, adjective in words[:first_noun]]
    if not body.determiner:  # body dark blue
        adjectives += [adjective for _, adjective in words[last_noun + 1 :] if is_color(adjective)]
    longest = LONGEST_NOUN + (" " in words[first_noun][1].text)
    tokens = _noun_of([token for _, part in words[first_noun : last_noun + 1] for token in part.tokens], longest)
    if not tokens or body.determiner == "no" or body.count == 0:
        return _denied(at)
    noun = " ".join(token.text for token in tokens)
    if not any(c.isalpha() for c in noun) or any(c > "\u024f" for c in noun if c.isalpha()):
        return None, begin
    if len(tokens) == 1 and noun in words_of.MEDIA and (tags or noun not in _DRAWN_THINGS):
        return _denied(at)
    phrase = Phrase(start, noun, tokens[0].start, tokens[-1].end, body.determiner, adjectives, is_tag=tags)
    one, many, count = singular(noun), plural(noun), body.count
    if count is not None and 1 <= count <= 20 and (one == many or noun == (many if count > 1 else one)):  # not "2 cat"
        phrase.count, phrase.count_token = count, body.count_token
    return phrase, at


def _noun_of(tokens: list[Token], longest: int) -> list[Token]:
    """The noun of a row of words; none where it names nothing that is shown, or is a row of unknown words."""
    if len(tokens) > longest or tokens[0].text in ("word", "words", "number", "text", "letters"):
        return []
    while len(tokens) > 1 and tokens[-1].text in (words_of.MEDIA - {"figure"}) | {"style", "clip"}:
        tokens = tokens[:-1]  # a television icon shows a television
    while len(tokens) > 1 and tokens[0].text in _DRAWN:
        tokens = tokens[1:]
    if any(_UNIT.fullmatch(token.text) for token in tokens):  # an 85mm lens, 8k wallpaper
        return []
    return [token for token in tokens[:-1] if not token.text[0].isdigit()] + tokens[-1:]


def _denied(at: int) -> tuple[Phrase | None, int]:
    """A phrase of which nothing is to be said, read through."""
    return Phrase(0, "kind", 0, 0, ""), at


def preposition_at(sentence: list[Token], at: int) -> tuple[str, int]:
    """The longest preposition that begins here, and where it ends; "" where there is none."""
    for phrase in _BY_FIRST.get(word_at(sentence, at), ()):
        if [token.text for token in sentence[at : at + len(phrase)]] == phrase:
            said = " ".join(phrase)
            if said in POSITIONS and word_at(sentence, at + len(phrase)) == "side":
                return said, at + len(phrase) + 1
            return said, at + len(phrase)
    return "", at


def is_adjective(word: str) -> bool:
    """Whether a word is a known adjective or color."""
    return (
        word in words_of.OPPOSITES or word in words_of.VISIBLE or word in words_of.SUBJECTIVE or word in words_of.COLOR_FAMILY
    )


def looks_like_adjective(word: str) -> bool:
    """By its ending; only asked where a noun follows."""
    if word.endswith("ed") and len(word) > 4 and word not in words_of.ED_NOUNS:
        return True
    if "-" in word and word.endswith(("en", "ing", "less")):
        return True
    if word.endswith("ing") and len(word) > 5:
        return word not in words_of.ING_NOUNS and word not in words_of.CLASSIFYING
    return len(word) > 5 and word.endswith(("less", "ful", "ous", "ish", "-like", "-colored", "-shaped")) and word != "radish"


def is_verb(word: str) -> bool:
    """Whether a word is a verb by itself or by its ending; behind a noun, it is."""
    if word in words_of.FINITE_VERBS or word in words_of.POSTURES or word in words_of.SHOWS:
        return True
    if word.endswith("ing") and len(word) > 4:
        return word not in words_of.ING_NOUNS
    return word in words_of.PARTICIPLES or (
        word.endswith("ed") and len(word) > 4 and word not in words_of.ED_NOUNS and "-" not in word
    )


def is_adverb(word: str) -> bool:
    """Whether a word is a known adverb or ends like one."""
    return word in words_of.ADVERBS or (len(word) > 4 and word.endswith("ly") and word not in words_of.LY_WORDS)


def adjective_at(sentence: list[Token], at: int) -> tuple[Adjective | None, int]:
    """A known adjective or a color with its shade."""
    word, following = word_at(sentence, at), word_at(sentence, at + 1)
    if word in words_of.SHADES and following in words_of.COLOR_FAMILY:
        only = words_of.SHADE_ONLY_BEFORE.get(word)
        if only is None or following in only:
            return Adjective(f"{word} {following}", (sentence[at], sentence[at + 1])), at + 2
    if word in words_of.COLOR_FAMILY or is_adjective(word):
        return Adjective(word, (sentence[at],)), at + 1
    return None, at


def predicate_at(sentence: list[Token], at: int) -> tuple[list[Adjective], int]:
    """Adjectives after "is": with no noun behind them."""
    found = list[Adjective]()
    if word_at(sentence, at) in ("not", "no"):
        return [], at
    while at < len(sentence):
        if is_adverb(word_at(sentence, at)):
            at += 1
            continue
        adjective, after = adjective_at(sentence, at)
        if adjective is None:
            break
        found.append(adjective)
        at = after
        if word_at(sentence, at) in ("and", ",") and adjective_at(sentence, at + 1)[0] is not None:
            at += 1
    ends = (
        at >= len(sentence)
        or word_at(sentence, at) in (",", "and", "with", "while", "or")
        or bool(preposition_at(sentence, at)[0])
    )
    return (found, at) if found and ends else ([], at)


def is_color(adjective: Adjective) -> bool:
    """Whether an adjective is a color, with or without a shade."""
    return adjective.tokens[-1].text in words_of.COLOR_FAMILY
