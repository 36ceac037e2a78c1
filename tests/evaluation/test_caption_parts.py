"""Captions of all sorts and their parts: rules, contrasts, one word changed."""

import random
import time
from pathlib import Path

import pytest

from dovetail.evaluation import caption_words
from dovetail.evaluation.caption_parts import MAX_CONTRASTS, Part, caption_parts, changed_by_one_word, nouns


def _read_cases() -> list[tuple[str, list[str]]]:
    lines = (Path(__file__).parent / "captions.txt").read_text(encoding="utf-8").splitlines()
    cases = list[tuple[str, list[str]]]()
    for line in lines:
        if line.startswith(">"):
            cases.append((line[2:], []))
        elif line.startswith("  "):
            cases[-1][1].append(line.strip())
    return cases


CASES = _read_cases()
VOCABULARY = ("dog", "television", "house", "bicycles", "tv", "scissors")


@pytest.mark.parametrize(("caption", "parts"), CASES)
def test_the_parts_of_a_caption(caption: str, parts: list[str]) -> None:
    assert [f"{part.kind}: {part.statement}" for part in caption_parts(caption)] == parts


def part(caption: str, statement: str, vocabulary: tuple[str, ...] = ()) -> Part:
    return next(part for part in caption_parts(caption, vocabulary) if part.statement == statement)


TELEVISION = "a red television with two antennas to the left of a cat on a light blue background"


@pytest.mark.parametrize(
    ("statement", "words", "contrasts"),
    [
        ("a television", "television", ("a dog", "a house", "a bicycle", "scissors")),  # a tv is no contrast
        ("antennas", "antennas", ("dogs", "houses", "bicycles", "scissors")),
        ("two antennas", "two", ("one antenna", "three antennas", "four antennas")),
        (
            "a television to the left of a cat",
            "left of",
            ("a television to the right of a cat", "a cat to the left of a television"),
        ),
    ],
)
def test_what_contradicts_a_part(statement: str, words: str, contrasts: tuple[str, ...]) -> None:
    found = part(TELEVISION, statement, VOCABULARY)
    assert (found.words, found.contrasts) == (words, contrasts)


def test_a_color_is_contrasted_with_colors_that_nobody_takes_for_it() -> None:
    red = part(TELEVISION, "a red television").contrasts
    assert "a blue television" in red and "a green television" in red
    assert not {"a red television", "an orange television"} & set(red)
    light_blue = part(TELEVISION, "a light blue background")
    assert light_blue.words == "light blue"
    assert "a red background" in light_blue.contrasts
    assert not {"a blue background", "a white background"} & set(light_blue.contrasts)
    assert not any("red" in c or "white" in c for c in part("a red and white cat", "a red and white cat").contrasts)
    assert not any("blue" in c or "green" in c for c in part("a teal cup", "a teal cup").contrasts)


def test_what_is_true_of_another_thing_of_the_caption_is_no_contrast() -> None:
    assert "a red apple" not in part("a green apple and a red apple", "a green apple").contrasts
    assert part("a cat to the left of a cat", "a cat").kind == "object"
    assert all(p.kind != "relation" for p in caption_parts("a cat to the left of a cat"))


def test_relations_that_hold_both_ways_have_no_contrast() -> None:
    assert part("a cat next to a dog", "a cat next to a dog").contrasts == ()
    assert part("a cup under a table", "a cup under a table").contrasts == ("a cup on top of a table", "a table under a cup")
    assert part("a sun between two trees", "the sun between trees").contrasts == ("trees between the sun",)


def test_objects_are_contrasted_with_a_few_of_a_large_vocabulary_not_the_same_for_each() -> None:
    many = tuple(f"thing{i}" for i in range(5000))
    cat, dog = part("a cat and a dog", "a cat", many), part("a cat and a dog", "a dog", many)
    assert len(cat.contrasts) == len(set(cat.contrasts)) == MAX_CONTRASTS
    assert set(cat.contrasts) != set(dog.contrasts)


def test_the_vocabulary_of_captions() -> None:
    captions = ["two red cats on a blue background", "a cat next to a tv", "", "赤いテレビ", "boxes and wolves on gray"]
    assert nouns(captions) == ("cat", "tv", "box", "wolf")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red cat", {"a red dog", "a blue cat", "a red television"}),
        ("A red cat", {"A red dog", "A blue cat"}),
        ("an orange cat on gray", {"a blue cat on gray", "an orange cat on red", "an orange house on gray"}),
        ("a drawing of an old lamp", {"a drawing of a new lamp", "a drawing of an old house"}),
        ("two lamps", {"one lamp", "three lamps", "two dogs", "two scissors"}),
        ("2 lamps", {"1 lamp", "3 lamps"}),
        ("there are two lamps", {"there is one lamp", "there are four lamps"}),
        ("Two Lamps", {"One Lamps", "Three Lamps"}),
        ("A lamp to the LEFT of a cup", {"A lamp to the RIGHT of a cup"}),
        ("a lamp above a cup", {"a lamp below a cup"}),
        ("a lamp with a knob at the top", {"a lamp with a knob at the bottom"}),
        ("a light blue lamp", {"a light red lamp"}),
        ("(a lamp:1.3) on <lora:x:0.6> gray", {"(a dog:1.3) on <lora:x:0.6> gray", "(a lamp:1.3) on <lora:x:0.6> blue"}),
        ("1girl, red hair", {"2girls, red hair", "1girl, blue hair"}),
    ],
)
def test_one_word_is_changed(caption: str, expected: set[str]) -> None:
    changed = changed_by_one_word(caption, VOCABULARY)
    assert expected <= set(changed)
    assert len(set(changed)) == len(changed)


def test_changes_take_turns_and_repeat() -> None:
    changed = changed_by_one_word(TELEVISION, VOCABULARY)
    assert changed == changed_by_one_word(TELEVISION, VOCABULARY)
    assert changed[:4] == [
        TELEVISION.replace("television", "dog"),
        TELEVISION.replace("red", "yellow"),
        TELEVISION.replace("antennas", "dogs"),
        TELEVISION.replace("two antennas", "one antenna"),
    ]


@pytest.mark.parametrize("caption", ["", "赤いテレビ", "😀", "...", "ein roter Fernseher auf blau", "on top of", "the the"])
def test_what_has_no_words_to_change(caption: str) -> None:
    assert changed_by_one_word(caption, VOCABULARY) == []


def test_an_article_before_a_plural_is_not_made_wrong() -> None:
    assert changed_by_one_word("a lamp", ("scissors",)) == []
    assert changed_by_one_word("two lamps", ("scissors",))[0] == "two scissors"


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("box", "boxes"), ("berry", "berries"), ("toy", "toys"), ("man", "men"), ("fireman", "firemen"),
        ("child", "children"), ("leaf", "leaves"), ("mouse", "mice"), ("sheep", "sheep"), ("church", "churches"),
        ("glass", "glasses"), ("bus", "buses"), ("tomato", "tomatoes"), ("photo", "photos"), ("light bulb", "light bulbs"),
        ("house", "houses"), ("horse", "horses"), ("scissors", "scissors"), ("person", "people"), ("knife", "knives"),
    ],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert caption_words.plural(one) == many
    assert caption_words.plural(many) == many
    assert caption_words.singular(many) == (one if many != "glasses" else many)  # spectacles, too


@pytest.mark.parametrize(
    ("words", "expected"),
    [("apple", "an"), ("unicorn", "a"), ("hour", "an"), ("umbrella", "an"), ("x-ray", "an"), ("cat", "a")],
)
def test_articles(words: str, expected: str) -> None:
    assert caption_words.article(words) == expected


def test_no_text_makes_it_fail() -> None:
    dice = random.Random(5)
    words = [
        *caption_words.COLOR_FAMILY, *caption_words.OPPOSITES, *caption_words.DETERMINERS, *caption_words.MEDIA,
        *caption_words.word_set("left right of to in front on top with and or is are next between dog cats two 3 1girl no by"),
        *caption_words.word_set(", . ( ) : -- - _ ' \" \\( :1.2) <lora:x:1> <tv> 🐱 赤い é man's BREAK sitting light-blue on"),
    ]  # fmt: skip
    words.sort()
    for _ in range(1500):
        caption = " ".join(dice.choice(words) for _ in range(dice.randint(0, 14)))
        if dice.random() < 0.2:
            caption = "".join(chr(dice.choice((dice.randint(1, 0x2FFF), dice.randint(0x1F300, 0x1FAFF)))) for _ in range(30))
        for found in caption_parts(caption, VOCABULARY):
            assert found.statement.strip() and found.words, caption
            assert found.statement not in found.contrasts and len(set(found.contrasts)) == len(found.contrasts), caption
        assert caption.casefold() not in {changed.casefold() for changed in changed_by_one_word(caption, VOCABULARY)}


@pytest.mark.parametrize("word", ["a ", "(", "red ", "a cat and ", "a, ", "1", "x", "cat's ", "in a ", "on the left "])
def test_long_captions_take_no_longer_than_their_length(word: str) -> None:
    begin = time.process_time()
    caption_parts(word * 3000)
    assert time.process_time() - begin < 2
