"""Captions as words with their places: what prompts add to them is left out, and what is not English is told."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dovetail.evaluation import caption_words as words_of

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
_FUNCTION_WORDS = (
    words_of.word_set(
        """
    a an the and or with of in on at to by from next near under above below behind this is are there its his her two three
    """
    )
    | words_of.BE
)
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


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a break, with its place in the caption."""

    text: str  # lower case; "," for any break within a sentence, "." for its end
    start: int
    end: int


def masked(text: str) -> str:
    """The text with spaces where LoRA tags, weights, writing and words about the style stood; all else in its place."""
    return _STYLE.sub(_blank, _NOISE.sub(_blank, text))


def _blank(match: re.Match[str]) -> str:
    """As many spaces, so that all else stays where it is."""
    return " " * len(match[0])


def tokens_of(text: str) -> list[Token]:
    """The words of a text in lower case, and "," and "." for its breaks; brackets are left out."""
    found = list[Token]()
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
            found += [Token(front, start, cut), Token(back, cut + 1, end)]
            continue
        if match_person := re.fullmatch(r"(\d{1,2})(girl|boy|cat|dog|other)s?", plain):  # 2girls
            cut = start + len(match_person[1])
            found += [Token(match_person[1], start, cut), Token(plain[len(match_person[1]) :], cut, end)]
            continue
        found.append(Token(plain, start, end))
    return found


def is_english(text: str, told: Sequence[str]) -> bool:
    """Whether most letters are Latin, and more of the small words English than of other languages."""
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


def are_tags(tokens: Sequence[Token]) -> bool:
    """Whether it is a list of tags: several short pieces between commas, without articles and verbs."""
    pieces = [piece for sentence in split_at(tokens, ".") for piece in split_at(sentence, ",") if piece]
    said = [token.text for token in tokens]
    spoken = sum(word in ("a", "an", "the", "is", "are", "there", "his", "her", "its") for word in said)
    return len(pieces) >= 2 and spoken == 0 and max(map(len, pieces)) <= 6


def split_at(tokens: Iterable[Token], mark: str) -> Iterator[list[Token]]:
    """The pieces between marks."""
    piece = list[Token]()
    for token in tokens:
        if token.text == mark:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


def word_at(sentence: list[Token], at: int) -> str:
    """The word at a place, "" outside of the sentence."""
    return sentence[at].text if 0 <= at < len(sentence) else ""


def next_break(sentence: list[Token], at: int) -> int:
    """Where the next comma stands, or the end."""
    while at < len(sentence) and sentence[at].text != ",":
        at += 1
    return at


def number_of(word: str) -> int | None:
    """The number that a word names, in letters or up to two digits; None where it names none."""
    if word == "dozen":
        return 12
    if word in words_of.NUMBERS:
        return words_of.NUMBERS.index(word)
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 2 else None
