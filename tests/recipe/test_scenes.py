"""The recipe's scenes: captions that are true, false captions that are not, combinations that are never shown."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from recipes.embedded_base import icons, prompts, scenes

PAIRS = prompts.PAIRS
STYLES = prompts.STYLES
BESIDE = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}


def drawn(count: int, shares: tuple[float, ...] = scenes.SHARES) -> list[tuple[scenes.Scene, str]]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        scene = scenes.draw_scene(rng, PAIRS, shares)
        found.append((scene, scenes.describe(rng, scene, STYLES)))
    return found


def test_there_are_a_hundred_things_and_more_each_in_three_styles() -> None:
    assert len(icons.THINGS) >= 100 and len(STYLES) == 3 and len(PAIRS) == 3 * len(icons.THINGS)


def test_scenes_hold_one_to_three_different_things_in_the_shares_asked_for() -> None:
    rng = np.random.default_rng(5)
    found = [scenes.draw_any(rng, PAIRS) for _ in range(1500)]
    counts = Counter(len(s.objects) for s in found)
    assert all(abs(counts[n] / 1500 - share) < 0.05 for n, share in enumerate(scenes.SHARES, 1))
    assert all(len({o.thing for o in s.objects}) == len(s.objects) for s in found)


def test_objects_lie_inside_the_picture_and_apart_from_each_other() -> None:
    for scene, _ in drawn(800):
        for o in scene.objects:
            assert all(o.size / 2 - 0.03 <= c <= 1.03 - o.size / 2 for c in o.centre), scene
        if scene.layout in ("across", "down"):
            (a, b), axis = scene.objects, scene.layout == "down"
            assert b.centre[axis] - a.centre[axis] > 0.9 * (a.size + b.size) / 2


def test_a_caption_names_every_thing_and_says_truly_where_it_stands() -> None:
    said = Counter()
    for scene, caption in drawn(1500):
        assert all(o.thing in caption for o in scene.objects)
        for words, (axis, sign) in BESIDE.items():
            if words in caption and scene.layout in ("across", "down"):
                first, second = (next(o for o in scene.objects if o.thing in part) for part in caption.split(words))
                assert sign * (second.centre[axis] - first.centre[axis]) > 0.3, caption
                said[words] += 1
        if scene.layout == "single":
            x, y = scene.objects[0].centre
            for word, true in {"left": x < 0.45, "right": x > 0.55, "top": y < 0.45, "bottom": y > 0.55}.items():
                assert word not in caption.replace("top hat", "").split() or true, caption
        if "small" in caption:
            assert min(o.size for o in scene.objects) < 0.5
    assert min(said[words] for words in BESIDE) > 20


def test_a_caption_names_the_background_and_the_style_that_are_there() -> None:
    for scene, caption in drawn(800):
        told = re.findall(r" on an? (\w+) background| on (\w+)$", caption)
        for word in (a or b for a, b in told if (a or b) in scenes.COLOURS):
            assert scene.background == (word,), caption
        words = {w for w in STYLES.values() if f" {w} " in f" {caption} "}
        assert words <= {STYLES[o.style] for o in scene.objects}, caption


def test_a_false_caption_is_not_the_true_one_and_differs_in_a_fact() -> None:
    rng = np.random.default_rng(8)
    kinds = Counter()
    for _ in range(1000):
        scene = scenes.draw_scene(rng, PAIRS)
        wording = int(rng.integers(2**32))
        true = scenes.describe(np.random.default_rng(wording), scene, STYLES)
        false = scenes.false_caption(rng, scene, PAIRS, STYLES, wording)
        kinds["none" if false is None else len(scene.objects)] += 1
        if false is None:
            continue
        assert false != true
        if len(scene.objects) > 1 and not re.search(r" (left|right|above|below|top|bottom) ", f"{true} "):
            bare = [Counter(re.findall(r"[a-z]+", caption)) for caption in (true, false)]
            assert bare[0] != bare[1] or "gradient" in true, (true, false)
    assert kinds["none"] < 400 and kinds[1] > 200 and kinds[2] > 100 and kinds[3] > 20


def test_no_scene_to_learn_from_is_one_that_is_held_out() -> None:
    assert not [scene for scene, _ in drawn(1500) if scenes.held_out(scene)]
    assert {scenes.apart(thing) for thing in icons.THINGS} == set(scenes.COLOURS)


def test_every_prompt_that_scores_or_shows_is_of_a_held_out_scene_and_none_is_a_lesson() -> None:
    scored, card = prompts.scored(), prompts.card()
    assert len(scored) == 512 and len({a.prompt for a in scored}) == 512 and len(card) == 48
    assert all(scenes.held_out(a.scene) for a in scored + card)
    lessons = {caption for _, caption in drawn(3000)}
    assert not lessons & {a.prompt for a in scored + card}
    assert {o.thing for a in scored for o in a.scene.objects} == set(icons.THINGS)


def test_the_prompts_are_the_same_each_time_and_tell_their_scene() -> None:
    assert prompts.scored()[:40] == prompts.scored()[:40]
    for ask in prompts.scored()[::7]:
        assert ask.prompt == prompts.said(ask.scene, ask.wording)
        assert ask.scene.background[0] in ask.prompt and len(ask.scene.background) == 1
        assert all(o.thing in ask.prompt for o in ask.scene.objects)
        assert not ask.style or STYLES[ask.style] in ask.prompt


@pytest.mark.parametrize("layout", ["single", "across", "down", "row", "pyramid"])
def test_a_picture_shows_each_object_where_the_scene_has_it(layout: str) -> None:
    art = {pair: np.dstack([np.full((20, 20, 3), 40 * k, np.uint8), np.full((20, 20), 255, np.uint8)]) for k, pair in
           enumerate([("cat", "noto"), ("dog", "noto"), ("car", "noto"), ("bus", "noto")])}  # fmt: skip
    rng = np.random.default_rng(2)
    shares = {"single": (1.0,), "across": (0.0, 1.0), "down": (0.0, 1.0)}.get(layout, (0.0, 0.0, 1.0))
    while (scene := scenes.draw_any(rng, list(art), shares)).layout != layout:
        pass
    picture = scenes.paint_scene(rng, scene, art)
    assert picture.shape == (64, 64, 3)
    for o in scene.objects:
        x, y = (int(c * 64) for c in o.centre)
        assert abs(int(picture[y, x, 0]) - int(art[o.thing, o.style][0, 0, 0])) <= 2


def test_the_seed_alone_decides_a_scene() -> None:
    one, two = (scenes.draw_scene(np.random.default_rng([29, 7]), PAIRS) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("noun", "wanted"), [("apple", "an apple"), ("cat", "a cat"), ("unicorn", "a unicorn"), ("big grapes", "big grapes")]
)
def test_articles(noun: str, wanted: str) -> None:
    assert scenes.article(noun) == wanted


def test_scaled_icons_keep_their_shape() -> None:
    wide = np.dstack([np.zeros((10, 40, 3), np.uint8), np.full((10, 40), 255, np.uint8)])
    placed = scenes.Placed(thing="bus", style="noto", centre=(0.5, 0.5), size=0.8)
    scene = scenes.Scene(objects=(placed,), background=("white",), direction=0)
    dark = scenes.paint_scene(np.random.default_rng(1), scene, {("bus", "noto"): wide})[..., 0] < 60
    rows, columns = dark.any(1).sum(), dark.any(0).sum()
    assert abs(columns - 51) <= 2 and abs(rows - 13) <= 2 and isinstance(Image.fromarray(dark), Image.Image)
