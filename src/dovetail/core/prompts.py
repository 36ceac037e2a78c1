"""Prompts whose words have weights, as the users of stable-diffusion-webui and ComfyUI write them.

`(word)` has 1.1 times the weight, `[word]` a 1.1th, `(some words:1.4)` 1.4 times; brackets within brackets multiply.
A backslash before a bracket or a backslash means that character, a bracket without its partner is text. `BREAK`, upper
case and a word of its own, begins a new piece. (AUTOMATIC1111, `parse_prompt_attention` in modules/prompt_parser.py.)
"""

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

ROUND = 1.1  # times the weight, for each pair of round brackets; the square ones take as much away
MOST = 10.0  # weight of a word
TELLING = 0.02  # a mean below this part of the states' mean size says nothing
_TOKEN = re.compile(
    r"\\[\\()\[\]]"  # a character that means itself
    r"|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)"  # the end of (words:1.4)
    r"|[()\[\]]|[^\\()\[\]:]+|[\\:]"
)
_BREAK = re.compile(r"\bBREAK\b")
_LORA = re.compile(r"(?:(?<!\s)\s+)?<lora:([^:>]*)(?::([^>]*))?>")


class Weighted(NamedTuple):
    """A part of a prompt: a tuple, so that it goes as plain data where this module is not known."""

    text: str
    weight: float = 1.0  # 0 to 10
    begins: bool = False  # a new piece


class Tag(NamedTuple):
    """A LoRA that a prompt asks for, with its scale; NaN where it is not one number."""

    name: str
    scale: float


def tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt without its `<lora:name:0.6>`, and what they ask for, in order; a scale that is left out is 1.

    With a tag goes the space before it. A text without tags is what it was. (AUTOMATIC1111, modules/extra_networks.py, where a
    second number is for the U-Net alone: that is no one number.)
    """
    found = tuple(Tag(name, _number(scale)) for name, scale in _LORA.findall(text))
    if not found:
        return text, ()
    without = _LORA.sub("", text)
    return without.lstrip() if _LORA.match(text) else without, found


def _number(scale: str) -> float:
    try:
        return float(scale or 1)
    except ValueError:
        return math.nan


def parsed(text: str) -> tuple[Weighted, ...]:
    """The parts of a prompt in order, at least one. Never fails; a text without brackets and BREAK is one part, unchanged."""
    tokens = list(_TOKEN.finditer(text))
    opens, closes = _pairs(tokens)
    within, said = [1.0], list[tuple[float, str]]()
    for number, token in enumerate(tokens):
        if number in opens:
            within.append(min(within[-1] * opens[number], 1e30))  # so that no nesting makes it infinite
        elif number in closes:
            within.pop()
        else:
            escaped = token[0][0] == "\\" and len(token[0]) == 2
            said.append((round(min(within[-1], MOST), 6), token[0][escaped:]))
    parts, begins = list[Weighted](), False
    for weight, run in groupby(said, key=lambda part: part[0]):
        sections = _BREAK.split("".join(words for _, words in run))
        for place, section in enumerate(sections):
            begins = begins or place > 0
            words = section.lstrip() if place else section
            words = words.rstrip() if place < len(sections) - 1 else words
            if words:
                parts.append(Weighted(words, weight, begins and bool(parts)))
                begins = False
    return tuple(parts) or (Weighted(""),)


def _pairs(tokens: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Numbers of the tokens that open brackets, with their factors, and of those that close them; properly nested."""
    opens: dict[int, float] = {}
    closes: set[int] = set()
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for number, token in enumerate(tokens):
        if token[0] in waiting:
            waiting[token[0]].append(number)
        elif token[0] in (")", "]") or token[1]:
            own, other = (waiting["["], waiting["("]) if token[0] == "]" else (waiting["("], waiting["["])
            if own:
                begin = own.pop()
                while other and other[-1] > begin:  # opened within and not closed: text
                    other.pop()
                factor = float(token[1]) if token[1] else ROUND if own is waiting["("] else 1 / ROUND
                opens[begin] = min(max(factor, 0.0), MOST)
                closes.add(number)
    return opens, closes


def weighs(parts: Sequence[Weighted]) -> bool:
    """Whether any part has a weight, or begins a new piece."""
    return any(part.weight != 1 or part.begins for part in parts)


def weighed(states: Tensor, weights: Tensor) -> Tensor:
    """Text states (pieces, tokens, width), each token's times its weight (pieces, tokens), each piece with the mean it had.

    (AUTOMATIC1111, `EmphasisOriginal` in modules/sd_emphasis.py.) A mean that is nearly nothing beside the states' sizes, or
    that the weights turn round or change more than tenfold, would scale by chance: such a piece is only multiplied.
    """
    scaled = states * weights[..., None]
    before, after = (x.mean((1, 2), keepdim=True) for x in (states, scaled))
    ratio = before / after
    telling = (before.abs() > TELLING * states.abs().mean((1, 2), keepdim=True)) & (ratio >= 1 / MOST) & (ratio <= MOST)
    return scaled * torch.where(telling, ratio, torch.ones_like(ratio))
