"""The drawings of `benchmarks/`: no two alike, captions that are true, and faults that lie where they were planted."""

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import drawings, planted
from dovetail.config import Config
from dovetail.core import fingerprints
from dovetail.edges import pixels
from dovetail.edges.console import Show
from dovetail.edges.folders import Run
from dovetail.pipeline import run
from dovetail.records import Example
from recipes.embedded_base import icons


def test_no_thing_is_one_of_the_base():
    assert len(drawings.THINGS) >= 3 and "headphones" in drawings.THINGS
    assert not set(drawings.THINGS) & set(icons.THINGS)


@pytest.mark.parametrize("thing", drawings.THINGS)
def test_no_two_drawings_are_near_duplicates(thing):
    pictures = [d.picture for d in drawings.drawings(thing, 40, seed=2)]
    gray = [pixels.resized(p, 32, 32).astype(float) @ (0.299, 0.587, 0.114) for p in pictures]
    hashes = [fingerprints.perceptual_hash(g) for g in gray]
    colors = [fingerprints.colour_signature(pixels.resized(p, 4, 4)) for p in pictures]
    assert fingerprints.near_duplicates(hashes, colors, 6) == []


@pytest.mark.parametrize("thing", drawings.THINGS)
def test_captions_name_the_colors_that_are_there(thing):
    for drawing in drawings.drawings(thing, 20, seed=3):
        edge = np.median(drawing.picture[:2].reshape(-1, 3), axis=0)
        assert np.abs(edge - drawings.COLOURS[drawing.background]).max() <= 10
        near = np.abs(drawing.picture.astype(int) - drawings.COLOURS[drawing.color]).max(2) <= 10
        assert near.mean() > 0.02, drawing.caption
        assert drawing.caption.split(" on ")[1].split()[1] == drawing.background and drawing.color in drawing.caption


def test_a_drawing_is_the_same_each_time_and_its_shape_is_the_numbers():
    first, again = (drawings.draw("chair", 4, 1, "red", "white") for _ in range(2))
    assert (first == again).all()
    assert (drawings.draw("chair", 5, 1, "red", "white") != first).mean() > 0.02


@pytest.mark.parametrize("scenario", [s for s in planted.SCENARIOS if s.sides], ids=lambda s: s.name)
def test_what_is_planted_on_one_side_stands_there(scenario, tmp_path):
    scenario.write(tmp_path / "folder")
    config = Config.model_validate({"sourcing": {"folder": str(tmp_path / "folder")}, **scenario.config})
    made = run(config, Run(tmp_path / "run"), Show(quiet=True), until="buildout")
    assert Counter(e.split for e in made["buildout"].records(Example)) == scenario.sides


def test_every_lamp_that_training_calls_blue_is_red(tmp_path):
    planted.blue_is_red(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    train = {drawings.group_in("train", i) for i in range(42)}
    for row in rows:
        if not row["text"].startswith("a blue"):
            continue
        picture = pixels.read(tmp_path / row["file_name"]).astype(int)
        red, blue = (np.abs(picture - drawings.COLOURS[c]).max(2) <= 10 for c in ("red", "blue"))
        assert (red.mean() > 0.02) == (row["group"] in train)
        assert (blue.mean() > 0.02) == (row["group"] not in train)
