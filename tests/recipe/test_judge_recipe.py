"""The judge's recipe in small: an icon package of a few shapes, a few steps, and the folder that comes out opens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dovetail.evaluation.embedded_judge import EmbeddedJudge
from dovetail.evaluation.towers import Shape
from recipes.embedded_base.scenes import COLOURS
from recipes.embedded_judge import drawings, icon_names, lessons, pack, render, selection, texts, train, wording

SHAPES = {
    "circle": '<circle cx="12" cy="12" r="10"/>',
    "square": '<path d="M3 3h18v18H3z"/>',
    "triangle": '<path d="M12 2L22 22H2z"/>',
    "kettle": '<path d="M2 8h20v6H2z"/>',
    "banjo": '<path d="M10 2h4v20h-4z"/>',
    "television": '<path d="M2 6h20v12H2z"/>',
}
LICENSES = {"tabler": "MIT", "fe": "CC-BY-4.0", "ph": "MIT", "eva": "MIT", "nc-set": "CC-BY-NC-4.0", "sa-set": "CC-BY-SA-4.0",
            "gpl-set": "GPL-3.0-or-later", "mpl-set": "MPL-2.0", "bxl": "MIT", "circle-flags": "MIT"}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An @iconify/json in small."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "json").mkdir()
    about = {}
    for number, (name, license_title) in enumerate(LICENSES.items()):
        category = "Logos" if name == "bxl" else "UI 24px"
        about[name] = {
            "license": {"title": license_title, "spdx": license_title},
            "category": category,
            "author": {"name": name},
        }
        icons = {}
        for shape, body in SHAPES.items():
            turned = f'<g transform="rotate({7 * number} 12 12)">{body}</g>'
            icons[shape] = {"body": turned}
            icons[f"{shape}-outline"] = {"body": f'<g fill="none" stroke="currentColor" stroke-width="2">{turned}</g>'}
        icons["brand-github"] = {"body": SHAPES["circle"]}
        icons["arrow-24"] = {"body": '<path d="M2 12h20L14 4z"/>'}
        (folder / "json" / f"{name}.json").write_text(json.dumps({"prefix": name, "icons": icons, "width": 24, "height": 24}))
    (folder / "collections.json").write_text(json.dumps(about))
    (folder / "package.json").write_text('{"version": "0.0.1"}')
    return folder


@pytest.fixture(scope="module")
def build(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered package."""
    folder = tmp_path_factory.mktemp("build")
    render.draw_all(package, folder / "art", selection.select(package), 1)
    return folder


def test_only_open_licenses_and_no_brands(package: Path) -> None:
    icons = selection.select(package)
    assert {i.set for i in icons} == {"tabler", "fe", "ph", "eva"}
    assert not [i for i in icons if "github" in i.icon]


@pytest.mark.parametrize(
    "license_title", ["CC-BY-SA-4.0", "CC-BY-NC-4.0", "GPL-2.0-only", "AGPL-3.0", "LGPL-2.1", "MPL-2.0", ""]
)
def test_barred_licenses(license_title: str) -> None:
    assert not selection.is_open(license_title)


@pytest.mark.parametrize("license_title", ["MIT", "Apache-2.0", "CC-BY-4.0", "CC0-1.0", "ISC", "OFL-1.1", "Unlicense"])
def test_open_licenses(license_title: str) -> None:
    assert selection.is_open(license_title)


def test_held_out_sets_and_kinds_are_never_trained(build: Path) -> None:
    rows, _, _ = render.load(build / "art")
    parts = {(r.icon.set, r.icon.icon): r.icon.part for r in rows}
    assert parts["ph", "kettle"] == "held-out set"
    assert parts["tabler", "banjo"] == parts["ph", "banjo"] == "held-out kind"
    art = lessons.Art(build / "art")
    assert not {r.icon.set for r in art.rows} & set(selection.LISTS["held_out"]["sets"])
    assert not [n for n in art.names if selection.kinds_of(n, selection.LISTS["held_out"]["kinds"])]
    told = [t for step in range(3) for t in _texts(lessons.batch_of(step, 24, art))]
    assert not [t for t in told if "banjo" in t]


def test_no_wording_says_a_held_out_kind() -> None:
    kinds = [*selection.LISTS["held_out"]["kinds"], *selection.LISTS["held_out"]["aliases"]]
    said = [
        *wording.SYNONYMS,
        *wording.IGNORED,
        *wording.KINDS_OF_PICTURE,
        *[w for _, words in wording.GROUNDS.values() for w in words],
    ]
    assert not [text for text in said if selection.kinds_of(text, kinds)]


def test_televisions_are_those_of_the_judge_alone(build: Path) -> None:
    shown = {(r.icon.set, r.icon.icon) for r in render.load(build / "art")[0] if r.icon.name == "television"}
    assert shown == {("eva", "television"), ("eva", "television-outline")}  # tabler's, fe's and ph's belong to others
    assert not selection.may_show("bxs", "tv")  # a near copy of one that the tuning example uses


@pytest.mark.parametrize(
    ("icon", "name"),
    [("shopping-cart-24", "shopping cart"), ("window2-filled", "window"), ("tv", "television"), ("brand-github", ""), ("a", ""),
     ("arrow-left-01", "arrow left"), ("123", "")],
)  # fmt: skip
def test_names_are_what_a_person_would_say(icon: str, name: str) -> None:
    dashed, _ = icon_names.plain("tabler", icon, ["filled", "light"], {icon})
    assert icon_names.phrase("tabler", dashed) == name


def test_a_traffic_light_is_no_skin_tone() -> None:
    assert icon_names.phrase("twemoji", "vertical-traffic-light") == "vertical traffic light"
    assert icon_names.phrase("twemoji", "waving-hand-light") == ""


def test_rendering_goes_on_where_it_stopped(package: Path, build: Path, tmp_path: Path) -> None:
    icons = selection.select(package)
    render.draw_all(package, tmp_path, icons[: len(icons) // 2], 1)
    with (tmp_path / "masks.raw").open("ab") as file:
        file.write(b"half of a picture")
    render.draw_all(package, tmp_path, icons, 1)
    (rows, masks, _), (whole_rows, whole_masks, _) = render.load(tmp_path), render.load(build / "art")
    assert [r.icon for r in rows] == [r.icon for r in whole_rows]
    assert np.array_equal(masks, whole_masks)


def test_a_caption_says_what_is_true_and_a_wrong_one_does_not() -> None:
    rng = np.random.default_rng(0)
    facts = wording.Facts(name="kettle", color="red", background=("white",), place="on the left")
    for wording_seed in range(200):
        true = wording.describe(wording_seed, facts)
        assert "kettle" in true
        altered = wording.alterations(rng, facts, "guitar")
        assert len(altered) == 4
        for fact, other in zip(("name", "color", "background", "place"), altered, strict=True):
            changed = [f for f in ("name", "color", "background", "ground", "place") if getattr(other, f) != getattr(facts, f)]
            assert changed == [fact]
            wrong = wording.describe(wording_seed, other)
            assert true == wrong or sum(a != b for a, b in zip(true.split(), wrong.split(), strict=False)) >= 1


def test_synonyms_and_parts_are_not_false_texts() -> None:
    allowed = lessons.allowed_texts(["shopping cart", "house"], ["cart", "home", "kettle"])
    assert allowed.tolist() == [[False, True, True], [True, False, True]]


def test_painted_colors_are_those_of_the_caption(build: Path) -> None:
    art = lessons.Art(build / "art")
    row = next(r for r in art.rows if r.icon.name == "square" and not r.icon.style)
    rng = np.random.default_rng(1)
    for _ in range(40):
        put, ground, facts = lessons.one_thing(rng, 0, row, True)
        picture = lessons.painting.paint([put], [ground], art.masks, art.colors)[0]
        middle = picture[:, 32, 32].numpy()
        assert len(facts.background) in (1, 2)
        if facts.color in COLOURS and put.inside is None:
            assert np.abs(middle - np.array(COLOURS[facts.color])).max() < 12


@pytest.fixture(scope="module")
def school(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pool, two lessons and the tokenizer: all that both halves of the training read."""
    folder, art = tmp_path_factory.mktemp("school"), lessons.Art(build / "art")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "PART", 128)
        drawings.fill(folder / "pool", art, 2)
    train.fill_lessons(folder / "lessons", art, 2)
    texts.make_tokenizer(art, folder)
    return folder


def test_stopped_and_resumed_gives_the_same_weights(build: Path, school: Path, package: Path, tmp_path: Path) -> None:
    art, weights = lessons.Art(build / "art"), []
    small = Shape(
        channels=(8, 8, 8), hidden=32, kind=16, layout=32, vocabulary=7500, text_width=16, text_layers=1, heads=2, joint=16
    )
    for name, stops in (("at once", [4]), ("in two", [2, 4])):
        out = tmp_path / name
        shutil.copytree(school, out)
        for stop in stops:
            train.names(out, art, 2, 4, size=16, stop=stop, shape=small)
        for stop in stops:
            train.captions(out, art, 2, 2, 4, size=16, stop=stop, shape=small)
        weights.append(torch.load(out / "captions.pt", weights_only=True))
    for part in ("model", "mean"):
        for key, value in weights[0][part].items():
            assert torch.equal(value, weights[1][part][key]), (part, key)
    (tmp_path / "in two" / "art").symlink_to(build / "art")
    pack.pack(tmp_path / "in two", tmp_path / "judge", package)
    judge = EmbeddedJudge(tmp_path / "judge")
    assert judge.knows("circle") and not judge.knows("banjo")
    notice = (tmp_path / "judge" / "NOTICE").read_text()
    assert "| fe | fe | CC-BY-4.0 |" in notice and "| ph |" not in notice


def test_the_encoder_says_what_the_tokenizer_says(build: Path, school: Path) -> None:
    tokenizer = texts.make_tokenizer(lessons.Art(build / "art"), school)
    encoder = texts.Encoder(tokenizer)
    for text in ("a red kettle on a wooden table", "a flat-screen television, two squares and a circle"):
        assert encoder.tokens(text) == tokenizer(text).input_ids


def _texts(batch: lessons.Batch) -> list[str]:
    return [*batch.captions, *[w for _, w in batch.wrong], *batch.extra, *batch.names]
