"""The judge of colors: what it sees of pixels, what it reads of texts, and when it is asked."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks import drawings
from dovetail.evaluation import competence, evidence
from dovetail.evaluation.caption_words import COLORS
from dovetail.evaluation.color_judge import ColorJudge, color_shares, named_colors
from dovetail.records import Interval
from recipes.embedded_base import scenes


def square(color: str, ground: str, side: int = 96) -> np.ndarray:
    picture = Image.new("RGB", (side, side), scenes.COLOURS[ground])
    ImageDraw.Draw(picture).rectangle((24, 30, 70, 66), fill=scenes.COLOURS[color])
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("text", "colors", "of_ground"),
    [("a blue lamp", ("blue",), False), ("an orange background", ("orange",), True), ("a light blue car", ("blue",), False),
     ("a teal screen", ("blue", "green"), False), ("a lamp on a red to black gradient", ("red", "black"), True),
     ("a lamp", (), False),
     ("赤いランプ", (), False), ("", (), False)],
)  # fmt: skip
def test_the_color_of_the_thing_or_of_the_background_is_read(text: str, colors: tuple[str, ...], of_ground: bool) -> None:
    found, ground = named_colors(text)
    assert set(found) == set(colors) and (ground == of_ground or not colors)


@pytest.mark.parametrize("color", [c for c in COLORS if c in scenes.COLOURS])
def test_each_basic_color_is_called_by_its_name_on_every_other(color: str) -> None:
    for ground in (g for g in COLORS if g in scenes.COLOURS and g != color):
        thing, behind = color_shares(square(color, ground))
        assert COLORS[int(thing.argmax())] == color and COLORS[int(behind.argmax())] == ground, (color, ground)


def test_the_color_named_scores_above_all_others_and_other_texts_score_nothing() -> None:
    judge, picture = ColorJudge(), square("blue", "orange")
    scores = judge.score([picture] * 5, ["a blue square", "a red square", "an orange background", "a blue background", "a cat"])
    assert scores[0] > 90 and scores[2] > 90 and scores[1] == scores[3] == scores[4] == 0
    assert judge.score([], []).shape == (0,)
    assert np.isfinite(judge.score([np.zeros((8, 8, 3), np.uint8)], ["a red background"])).all()


def test_tried_on_true_drawings_it_can_be_asked_about_colors_and_on_wrong_ones_not() -> None:
    made = drawings.drawings("lamp", 16, 3)
    pictures = [d.picture for d in made]
    able = competence.try_judge(ColorJudge(), pictures, [d.caption for d in made], ["dog"]).able_kinds()
    assert able >= evidence.COLOR_KINDS
    turned = [made[k - 5].caption for k in range(len(made))]
    assert not competence.try_judge(ColorJudge(), pictures, turned, ["dog"]).able_kinds() & evidence.COLOR_KINDS


def told(color: float, background: float) -> competence.Competence:
    """A judge that is right on so many colors and backgrounds of real pictures."""
    kinds = {
        kind: Interval(mean=mean, low=mean - 0.1, high=1.0, count=12)
        for kind, mean in (("color", color), ("background", background))
    }
    return competence.Competence(able=True, others=None, changed=None, kinds=kinds)


def test_colors_are_asked_of_whoever_is_right_more_often_on_real_pictures() -> None:
    assert evidence.asked_of_pixels(told(0.6, 0.96), told(0.9, 0.9)) == {"color"}
    assert evidence.asked_of_pixels(told(0.85, 0.9), told(0.95, 0.9)) == {"color", "background"}
    assert evidence.asked_of_pixels(told(0.95, 0.95), told(0.7, 0.3)) == frozenset()


def test_a_model_that_paints_blue_lamps_red_misses_blue() -> None:
    grounds = ("white", "yellow", "black", "green")
    real = [drawings.draw("lamp", k, 3, "blue", ground) for k, ground in enumerate(grounds)]
    red = [drawings.draw("lamp", 10 + k, 3, "red", ground) for k, ground in enumerate(grounds)]
    captions = [f"a blue lamp on a {ground} background" for ground in grounds]
    for tuned, outcome in ((red, "lost"), (real, "even")):
        seeds = [picture for picture in tuned for _ in range(4)]
        pictures = evidence.Pictures(
            prompts=captions, seeds=4, base=seeds, tuned=seeds, production=[], tuned_finite=[True] * 16, real=real, general=[],
            general_base=[], general_tuned=[], held_out=real, held_out_captions=captions, held_out_groups=list("abcd"),
            train=[], train_groups=[], reconstructed=real,
        )  # fmt: skip
        axis = evidence._parts_axis(pictures, ColorJudge(), competence.try_judge(ColorJudge(), real, captions, []), [])
        assert axis.outcome == outcome and ("'blue'" in axis.sentence) == (outcome == "lost"), axis.sentence
