"""The television drawings: many, by many hands, each one once; captions that say what is there; colors put on plain icons."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import dovetail
from dovetail.core import fingerprints
from dovetail.records import Example
from recipes.embedded_base import coloring, scenes, televisions

EXAMPLES = ROOT / "examples" / "televisions"
ROWS = [json.loads(line) for line in (EXAMPLES / "metadata.jsonl").read_text().splitlines()]
TABLE = televisions.TABLE["drawings"]
JUDGES = {  # sets whose televisions are the judge's
    "ic", "material-symbols", "material-symbols-light", "eva", "fa", "fa-solid", "fa6-solid", "fa7-solid", "gg",
    "heroicons", "la", "bx", "bxs", "cuida", "dinkie-icons", "proicons", "system-uicons", "vadivam", "cil", "zmdi",
    "f7", "mynaui", "majesticons", "griddy-icons", "teenyicons", "uil"
}  # fmt: skip
OPEN = {"MIT", "ISC", "Apache-2.0", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "OFL-1.1", televisions.PUBLIC_DOMAIN}
ICON = '<path d="M2 8h20v14H2z M5 11h10v8H5z" fill-rule="evenodd"/><path d="M11 8L7 3h2l3 4l3 -4h2L13 8z"/>'


def shown(row: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(EXAMPLES / row["file_name"]).convert("RGB"))


def share_of(picture: np.ndarray, color: str, within: float = 60.0) -> float:
    """Share of the picture that is nearer than `within` levels to a color."""
    return float((np.linalg.norm(picture.astype(float) - scenes.COLOURS[color], axis=2) < within).mean())


def test_there_are_eighty_drawings_by_forty_hands_and_one_picture_of_each() -> None:
    assert len(ROWS) >= 80 and len({row["author"] for row in ROWS}) >= 40
    assert all(count == 1 for count in Counter(row["group"] for row in ROWS).values())
    assert all(count == 1 for count in Counter(row["source"] for row in ROWS).values())


def test_licenses_are_open_and_every_drawing_stands_in_the_attribution() -> None:
    assert {row["license"] for row in ROWS} <= OPEN
    told = (EXAMPLES / "ATTRIBUTION.md").read_text()
    for row in ROWS:
        assert f"| {row['group']} | {row['author']} | {row['license']} | {row['source']} |" in told


def test_no_drawing_is_of_a_set_whose_televisions_are_the_judges() -> None:
    assert not {row["icon"].split(":")[0] for row in TABLE.values() if "icon" in row} & JUDGES


def test_the_product_splits_them_by_drawing_and_joins_none(tmp_path: Path) -> None:
    sealed = dovetail.run(str(EXAMPLES), run=str(tmp_path / "run"), until="buildout")
    made = sealed["buildout"].records(Example)
    assert len({example.group for example in made}) == len(made) == len(ROWS)
    count = Counter(example.split for example in made)
    assert count["test"] >= 16 and count["validation"] >= 12 and count["train"] >= 45, count


def test_no_two_pictures_look_the_same_not_even_mirrored() -> None:
    grey = [
        np.asarray(Image.open(EXAMPLES / row["file_name"]).convert("L").resize((32, 32), Image.Resampling.BOX)) for row in ROWS
    ]
    hashes = [[fingerprints.perceptual_hash(g[:, ::turn]) for g in grey] for turn in (1, -1)]
    close = [
        (ROWS[i]["group"], ROWS[j]["group"])
        for i in range(len(ROWS))
        for j in range(i)
        if min(fingerprints.hamming(hashes[0][i], h[j]) for h in hashes) <= 4
    ]
    assert not close


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["group"])
def test_a_caption_says_what_the_table_says_is_there(row: dict[str, str]) -> None:
    drawn, caption = TABLE[row["group"]], row["text"]
    assert len(re.findall("television", caption)) == 1
    for part in ("antennas", "knobs", "legs", "stand", "cabinet"):
        assert part not in caption or part in drawn.get("parts", "").split()
    assert "old" not in caption.split() or drawn["kind"] == "old"
    assert "flat-screen" not in caption or drawn["kind"] == "flat"


@pytest.mark.parametrize("row", [r for r in ROWS if "paint" in TABLE[r["group"]]], ids=lambda row: row["group"])
def test_colors_that_a_caption_names_are_in_the_picture(row: dict[str, str]) -> None:
    picture, caption = shown(row), row["text"]
    ground = re.search(r" on (?:an? )?(?:gradient from )?(\w+)(?: to (\w+))?(?: background| gradient)?$", caption)
    if ground and ground[1] in scenes.COLOURS:
        names = [name for name in ground.groups() if name]
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
        for name in names:
            assert np.linalg.norm(corners - scenes.COLOURS[name], axis=1).min() < 25, name
    for pattern, least in ((r"(\w+) screen", 0.03), (r"(\w+) (?:flat-screen )?television", 0.04)):
        for word in re.findall(pattern, caption):
            if word in scenes.COLOURS:
                assert share_of(picture, word) > least, word


def test_most_captions_name_the_background_and_each_fact_is_said_sometimes() -> None:
    said = Counter(word for row in ROWS for word in set(row["text"].split()))
    assert all(said[word] >= 4 for word in ("old", "flat-screen", "antennas", "screen", "stand")), said
    assert all(said[word] >= 2 for word in ("knobs", "legs")), said
    assert len({row["text"] for row in ROWS}) > 0.8 * len(ROWS)
    assert len(set(said) & set(scenes.COLOURS)) >= 10


def icon_folder(tmp_path: Path) -> Path:
    """A collection of one set with two icons, laid out as npm's."""
    folder = tmp_path / "iconify"
    (folder / "json").mkdir(parents=True)
    about = {"plain": {"author": {"name": "A Hand"}, "license": {"spdx": "MIT"}}}
    (folder / "collections.json").write_text(json.dumps(about))
    bodies = {"tv": {"body": ICON}, "tv-red": {"body": '<path fill="#f00" d="M2 2h20v20H2z"/>'}}
    (folder / "json" / "plain.json").write_text(json.dumps({"width": 24, "height": 24, "icons": bodies}))
    return tmp_path


def test_one_command_makes_the_set_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {
        "one": {"icon": "plain:tv", "kind": "old", "parts": "antennas", "paint": "solid"},
        "two": {"icon": "plain:tv-red", "kind": "flat", "body": "red"},
    }
    monkeypatch.setitem(televisions.TABLE, "drawings", drawn)
    downloads = icon_folder(tmp_path)
    for out in ("first", "second"):
        televisions.write_examples(downloads, tmp_path / out)
    rows = [json.loads(line) for line in (tmp_path / "first" / "metadata.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows] == ["one", "two"]
    assert {(row["author"], row["license"]) for row in rows} == {("A Hand", "MIT")}
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), "made again, it is the same"
    red = np.asarray(Image.open(tmp_path / "first" / "two.png"))
    assert red.shape == (128, 128, 3) and tuple(red[64, 64]) == (255, 0, 0)


def painted(tmp_path: Path, **look: bool) -> tuple[np.ndarray, str]:
    svg = televisions.icon_svg(icon_folder(tmp_path) / "iconify", "plain:tv")
    alpha = televisions.icons.render(svg, coloring.SIDE)[..., 3]
    paint = coloring.Paint(
        **{"body": "red", "screen": "blue", "line": "white", "shine": False, "ringed": False, "outlined": False} | look
    )
    return coloring.colored(np.random.default_rng(1), alpha, paint)


def near(pixel: np.ndarray, name: str) -> bool:
    return bool(pixel[3] == 255 and np.abs(pixel[:3].astype(float) - scenes.COLOURS[name]).max() <= 11)


def test_body_screen_and_antennas_of_a_plain_icon_get_colors_of_their_own(tmp_path: Path) -> None:
    picture, body = painted(tmp_path)
    height, width = picture.shape[:2]
    assert max(height, width) == 256 and body == "red"
    at = {"screen": (0.68, 0.4), "frame": (0.68, 0.9), "antenna": (0.06, 0.3), "beside": (0.1, 0.05)}
    seen = {what: picture[int(y * height), int(x * width)] for what, (y, x) in at.items()}
    assert near(seen["screen"], "blue") and near(seen["frame"], "red") and near(seen["antenna"], "white")
    assert seen["beside"][3] == 0


def test_an_outlined_one_is_told_by_the_color_of_its_lines(tmp_path: Path) -> None:
    picture, body = painted(tmp_path, outlined=True)
    assert body == "white" and near(picture[int(0.68 * picture.shape[0]), int(0.9 * picture.shape[1])], "white")


def test_thin_lines_are_thickened_and_thick_ones_are_not() -> None:
    for width, wider in ((4, True), (40, False)):
        alpha = np.zeros((300, 380), np.uint8)
        alpha[:] = 255
        alpha[width:-width, width:-width] = 0
        paint = coloring.Paint(body="red", screen="blue", line="black", outlined=False, ringed=False, shine=False)
        picture, _ = coloring.colored(np.random.default_rng(2), alpha, paint)
        frame = (picture[128 if picture.shape[0] > 128 else 64, :128, 0] > 150).sum() * 380 / 256
        assert (frame > 1.3 * width) == wider, frame


def test_where_the_lines_are_open_the_table_says_where_body_and_screen_lie() -> None:
    alpha = np.zeros((300, 380), np.uint8)
    alpha[:20] = alpha[-20:] = 255
    paint = coloring.Paint(body="red", screen="blue", line="black", outlined=True, ringed=False, shine=False)
    boxes = {"case": (0.0, 0.0, 1.0, 1.0), "glass": (0.2, 0.2, 0.8, 0.8)}
    picture, _ = coloring.colored(np.random.default_rng(3), alpha, paint, **boxes)
    height, width = picture.shape[:2]
    assert near(picture[height // 2, width // 2], "blue") and near(picture[height // 2, width // 10], "red")


def test_a_clip_that_its_own_view_cuts_off_is_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10" viewBox="0 0 10 10"><path d="M5 5h20v10H5z"/></svg>'
    (tmp_path / "clip.svg").write_text(svg)
    monkeypatch.setattr(televisions, "OPENCLIPART", tmp_path)
    cut, whole = (televisions.icons.render(televisions.clip_svg("clip.svg", view), 100) for view in (None, "0 0 40 40"))
    assert cut.shape[:2] == (100, 100) and whole.shape[:2] == (50, 100)
