"""Weights in a prompt: what is read out of any text."""

import math
import random
import time
from itertools import pairwise

import pytest
import torch

from dovetail.core import prompts
from dovetail.core.prompts import Weighted, parsed, weighed


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("a ((cat)) here", [("a ", 1), ("cat", 1.21), (" here", 1)]),
        ("a [cat]", [("a ", 1), ("cat", 0.909091)]),
        ("(two words:1.4), one", [("two words", 1.4), (", one", 1)]),
        ("(two words : .5 ) one", [("two words ", 0.5), (" one", 1)]),
        ("((a:1.5) b:2) c", [("a", 3), (" b", 2), (" c", 1)]),
        ("[(a)] b", [("a b", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(cat:1) on (red:1.0)", [("cat on red", 1)]),
        (r"a \(cat\) \[x\] \\", [(r"a (cat) [x] " + "\\", 1)]),
        (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
        (r"\a\ (b)", [(r"\a" + "\\ ", 1), ("b", 1.1)]),
        ("(a:99) (b:-3) ((c:9):9)", [("a", 10), (" ", 1), ("b", 0), (" ", 1), ("c", 10)]),
        ("(((", [("(((", 1)]),
        ("a) b] :) (c", [("a) b] :) (c", 1)]),
        ("a ((b)", [("a (", 1), ("b", 1.1)]),
        ("(a [b) c]", [("a [b", 1.1), (" c]", 1)]),
        ("[a:1.5] b:1.5) 12:30", [("a:1.5", 0.909091), (" b:1.5) 12:30", 1)]),
        ("(a:1.2.3) (b:x) (c:)", [("a:1.2.3", 1.1), (" ", 1), ("b:x", 1.1), (" ", 1), ("c:", 1.1)]),
        ("(a:\u0661)", [("a:\u0661", 1.1)]),
    ],
)
def test_brackets_are_weights(text: str, parts: list[tuple[str, float]]) -> None:
    assert parsed(text) == tuple(Weighted(*part) for part in parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat BREAK a dog", [("a cat", 1, False), ("a dog", 1, True)]),
        ("a cat,BREAK\na dog", [("a cat,", 1, False), ("a dog", 1, True)]),
        ("(a BREAK b:1.5) c", [("a", 1.5, False), ("b", 1.5, True), (" c", 1, False)]),
        ("(a)BREAK(b)", [("a", 1.1, False), ("b", 1.1, True)]),
        ("a (BREAK) b", [("a ", 1, False), (" b", 1, True)]),
        ("BREAK a BREAK BREAK b BREAK", [("a", 1, False), ("b", 1, True)]),
        ("BREAK", [("", 1, False)]),
        ("break BREAKER unBREAK Break", [("break BREAKER unBREAK Break", 1, False)]),
    ],
)
def test_break_begins_a_new_piece(text: str, parts: list[tuple[str, float, bool]]) -> None:
    assert parsed(text) == tuple(Weighted(*part) for part in parts)


def test_whether_a_prompt_weighs() -> None:
    assert all(prompts.weighs(parsed(text)) for text in ("a (b)", "[a]", "a BREAK b", "(a:0)"))
    assert not any(prompts.weighs(parsed(text)) for text in ("", "a b", "(a:1)", r"\(a\)", "a :)", "BREAK a", "()"))


def test_a_text_without_brackets_and_backslashes_is_itself() -> None:
    draw = random.Random(1)
    for _ in range(500):
        letters = [draw.choice("aBK :;,.1\n\t🐈é\u200b<>{}|") for _ in range(draw.randrange(40))]
        text = "".join(letters)
        assert parsed(text) == (Weighted(text, 1.0, False),)


def test_an_escaped_text_is_itself() -> None:
    draw = random.Random(2)
    for _ in range(500):
        text = "".join(draw.choice("ab :1.()[]\\") for _ in range(draw.randrange(40)))
        escaped = "".join("\\" * (c in "()[]\\") + c for c in text)
        assert parsed(escaped) == (Weighted(text),)


def test_any_text_has_parts_with_weights_from_0_to_10() -> None:
    draw = random.Random(3)
    for _ in range(3000):
        text = " ".join(draw.choice(["a", "(", ")", "[", "]", "\\", ":", ":1.5)", ":-2)", "BREAK"]) for _ in range(25))
        parts = parsed(text if draw.random() < 0.5 else text.replace(" ", ""))
        assert parts and all(0 <= part.weight <= 10 for part in parts) and not parts[0].begins
        assert all(part.text for part in parts)
        assert all(b.begins or a.weight != b.weight for a, b in pairwise(parts))


def _tree(draw: random.Random, depth: int, weight: float) -> tuple[str, list[tuple[str, float]]]:
    """A prompt of nested brackets, and what weight each of its letters has."""
    if not depth or draw.random() < 0.2:
        word = "".join(draw.choice("abc ,") for _ in range(draw.randrange(1, 4)))
        return word, [(letter, weight) for letter in word]
    begin, end, factor = draw.choice(
        [("", "", 1.0), ("(", ")", 1.1), ("[", "]", 1 / 1.1), ("(", ":1.3)", 1.3), ("(", ":0.4)", 0.4)]
    )
    inside = [_tree(draw, depth - 1, weight * factor) for _ in range(draw.randrange(1, 4))]
    return begin + "".join(text for text, _ in inside) + end, [letter for _, letters in inside for letter in letters]


def test_nested_brackets_multiply() -> None:
    draw = random.Random(4)
    for _ in range(300):
        text, letters = _tree(draw, 4, 1.0)
        found = [(letter, part.weight) for part in parsed(text) for letter in part.text]
        assert [letter for letter, _ in found] == [letter for letter, _ in letters]
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in letters], abs=1e-6)


@pytest.mark.parametrize("bit", ["(", ")", "([", "(]", "\\", ":", ": ", ":1", "1", " ", "BREAK ", "(a:9", "(a)"])
def test_a_hostile_text_is_read_in_no_time(bit: str) -> None:
    def seconds(count: int) -> float:
        began = time.process_time()
        assert parsed(bit * 4 * count) and parsed("(" * count + bit * count + ":9)" * count)
        return time.process_time() - began

    short, long = (min(seconds(count) for _ in range(3)) for count in (500, 2_000))
    assert long < 10 * short + 0.1  # four times as long a text: 4 where time grows with its length, 16 where with its square


def test_states_are_multiplied_and_keep_their_mean() -> None:
    states = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)) + 0.5
    weights = torch.tensor([[1, 1.5, 1.5, 1, 1], [1, 1, 0.3, 0, 1]])
    scaled = weighed(states, weights)
    torch.testing.assert_close(scaled.mean((1, 2)), states.mean((1, 2)))
    shares = scaled / states / weights[..., None]
    torch.testing.assert_close(shares[0], shares[0, :1, :1].expand(5, 7))
    assert torch.equal(weighed(states, torch.ones(2, 5)), states) and scaled[1, 3].abs().max() == 0


def test_a_mean_that_says_nothing_scales_nothing() -> None:
    states = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[1, 1.5, 0.5, 1, 1]])
    centred = states - states.mean()
    assert torch.equal(weighed(centred, weights), centred * weights[..., None])
    turned = torch.ones(1, 5, 7)
    turned[0, 1] = -2.0  # five times its weight turns the mean round
    assert torch.equal(weighed(turned, torch.tensor([[1, 5.0, 1, 1, 1]]))[0, 0], turned[0, 0])
    assert weighed(torch.zeros(1, 5, 7), weights).isfinite().all()


@pytest.mark.parametrize(
    ("text", "without", "tags"),
    [
        ("a cat <lora:tv:0.6>", "a cat", [("tv", 0.6)]), ("<lora:tv:.5>  a cat", "a cat", [("tv", 0.5)]),
        ("a <lora:tv> cat", "a cat", [("tv", 1.0)]), ("a \n <lora:my tv_2:2>, red", "a, red", [("my tv_2", 2.0)]),
        ("<lora:a:0><lora:b:-1>", "", [("a", 0.0), ("b", -1.0)]), ("(a:1.2) [b]<lora:tv:>", "(a:1.2) [b]", [("tv", 1.0)]),
    ],
)  # fmt: skip
def test_tags_are_taken_out_of_a_prompt(text: str, without: str, tags: list[tuple[str, float]]) -> None:
    assert prompts.tags(text) == (without, tuple(tags))


@pytest.mark.parametrize("scale", ["0.5:0.7", "te=0.5:unet=0.7", "half", " "])
def test_a_scale_that_is_not_one_number_is_no_number(scale: str) -> None:
    text, (tag,) = prompts.tags(f"a cat <lora:tv:{scale}>")
    assert text == "a cat" and tag.name == "tv" and math.isnan(tag.scale)


@pytest.mark.parametrize(
    "text", ["", " a  cat ", "a <b> cat", " <lora:tv", "<lora>", "< lora:tv:1>", "<Lora:tv:1>", "a <lyco:b:1>"]
)
def test_a_text_without_tags_is_what_it_was(text: str) -> None:
    assert prompts.tags(text) == (text, ())


def test_many_spaces_cost_no_time() -> None:
    began = time.process_time()
    assert prompts.tags(" " * 4000 + "x")[1] == () and time.process_time() - began < 0.1
