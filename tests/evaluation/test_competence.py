"""A judge that knows what it knows: tried on pictures that it can judge, and on such that it cannot."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dovetail.evaluation import competence, parts
from dovetail.evaluation.caption_parts import Part

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 220, 40)}
NOUNS = ("cat", "dog", "house", "tree", "boat")


class ColorJudge:
    """Knows colors, and that what it is shown are squares; counts the words that are true of the picture."""

    name = "color judge"

    def __init__(self, thing: str = "square") -> None:
        self.thing = thing

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self._one(image, text) for image, text in zip(images, texts, strict=True)])

    def _one(self, image: NDArray[np.uint8], text: str) -> float:
        seen = min(COLORS, key=lambda c: float(np.abs(image[16, 16].astype(float) - COLORS[c]).sum()))
        return float((seen in text) - sum(c in text for c in COLORS if c != seen) + 2 * (self.thing in text))


class Constant:
    name = "constant"

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        return np.full(len(texts), self.value)


def pictures(count: int = 12) -> tuple[list[NDArray[np.uint8]], list[str]]:
    names = [list(COLORS)[i % len(COLORS)] for i in range(count)]
    return [np.full((32, 32, 3), COLORS[name], np.uint8) for name in names], [f"a {name} square" for name in names]


def test_a_judge_that_sees_what_the_captions_say_is_able() -> None:
    found = competence.try_judge(ColorJudge(), *pictures(), NOUNS)
    assert found.able and not found.reason
    assert found.able_kinds() >= {"object", "color"}


def test_a_judge_that_does_not_know_the_thing_is_not_able_though_it_knows_the_colors() -> None:
    found = competence.try_judge(ColorJudge(thing="dog"), *pictures(), NOUNS)
    assert not found.able and "color" in found.able_kinds() and "object" not in found.able_kinds()


class Listed(ColorJudge):
    """Says which words it learned."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words

    def knows(self, word: str) -> bool:
        return word in self.words


def test_a_word_never_learned_cannot_be_judged_and_is_named() -> None:
    assert competence.try_judge(Listed("square"), *pictures(), NOUNS).able
    found = competence.try_judge(Listed("cat", "red"), *pictures(), NOUNS)
    assert not found.able and found.reason == "never learned the word square"


def test_captions_that_have_nothing_to_do_with_the_pictures_cannot_be_judged() -> None:
    images, captions = pictures()
    shuffled = [captions[(i * 5 + 1) % len(captions)] for i in range(len(captions))]
    found = competence.try_judge(ColorJudge(), images, shuffled, NOUNS)
    assert not found.able and "captions of these pictures" in found.reason


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_judge_of_one_opinion_or_of_none_is_not_able(value: float) -> None:
    found = competence.try_judge(Constant(value), *pictures(), NOUNS)
    assert not found.able and found.reason and "\n" not in found.reason


def test_captions_that_are_all_alike_leave_the_changed_words() -> None:
    images, _ = pictures()
    found = competence.try_judge(ColorJudge(), images, ["a square"] * len(images), NOUNS)
    assert found.others is None and found.able
    nothing = competence.try_judge(ColorJudge(), images, ["!!!"] * len(images), NOUNS)
    assert not nothing.able and "alike" in nothing.reason


def test_three_pictures_are_too_few_to_try_a_judge_on() -> None:
    assert not competence.try_judge(ColorJudge(), *pictures(3), NOUNS).able


def test_other_scripts_are_no_failure() -> None:
    images, _ = pictures()
    found = competence.try_judge(ColorJudge(), images, [f"赤い四角 {i}" for i in range(len(images))], NOUNS)
    assert not found.able


def part(words: str) -> Part:
    return Part(kind="attribute", statement=f"a {words} square", contrasts=("a red square",), words=words)


def test_a_part_that_real_pictures_show_and_samples_never_do_is_missed_by_name() -> None:
    asked = [(0, part("blue")), (1, part("blue")), (2, part("green")), (3, part("green"))]
    never, always = [False] * 4, [True] * 4
    found = parts.score_parts(asked, [never] * 4, [never, never, always, always], [True] * 4)
    axis = parts.parts_axis(found, 4)
    assert axis.outcome == "lost" and "'blue' (0%)" in axis.sentence and "green" not in axis.sentence


def test_a_part_that_even_real_pictures_do_not_show_is_not_held_against_the_model() -> None:
    asked = [(0, part("blue")), (1, part("blue"))]
    found = parts.score_parts(asked, [[False] * 4] * 2, [[False] * 4] * 2, [False, False])
    assert parts.parts_axis(found, 2).outcome != "lost"


def test_one_prompt_is_no_proof_that_a_part_is_missed() -> None:
    found = parts.score_parts([(0, part("blue"))], [[False] * 4], [[False] * 4], [True])
    assert parts.parts_axis(found, 1).outcome != "lost"
    assert parts.parts_axis([], 1).outcome == "cannot judge"
