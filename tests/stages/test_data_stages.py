"""Sourcing, gathering, wrangling, buildout: what is found, kept, refused, and where it stands."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from dovetail import library
from dovetail.config import Training
from dovetail.edges.folders import Artifact
from dovetail.engines import material
from dovetail.errors import BadInputError
from dovetail.records import Example, Gathered, Lead, Pair, Rejected


@pytest.fixture
def bring(tmp_path: Path, tiny_base: Path) -> Any:
    """Runs the data stages on a folder; returns the artifacts."""

    def go(folder: Path, until: str = "buildout", **tables: Any) -> dict[str, Artifact]:
        return library.run(str(folder), run=str(tmp_path / "run"), until=until, base=str(tiny_base), **tables)

    return go


def reasons(sealed: dict[str, Artifact]) -> dict[str, str]:
    return {r.name: r.reason for r in sealed["wrangling"].records(Rejected, "rejected.jsonl")}


def test_captions_beside_the_pictures_are_enough(tmp_path: Path, bring: Any) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for shape in tiny.SHAPES:
        tiny.drawing(shape, "red").save(folder / f"{shape}.png")
        (folder / f"{shape}.txt").write_text(f"  a {shape}\nthing 🙂 ")
    pairs = bring(folder)["wrangling"].records(Pair)
    assert {p.caption for p in pairs} == {f"a {shape} thing 🙂" for shape in tiny.SHAPES}
    assert {(p.licence, p.author, p.origin) for p in pairs} == {("not stated", "not stated", "plain")}


def test_pictures_of_one_thing_need_one_caption_and_their_kind_is_learnt_along(
    tmp_path: Path, bring: Any, tiny_base: Path
) -> None:
    folder = tmp_path / "dog"
    folder.mkdir()
    for shape in tiny.SHAPES:
        tiny.drawing(shape, "red").save(folder / f"{shape}.png")
    (folder / "plain.txt").write_text("a plain one")
    keys = tiny.short(
        sourcing={"caption": "a photo of sks dog"},
        processing={"rehearsal_prompts": ["a photo of a dog"], "rehearsal_pictures": 4},
        training={"rehearsal_share": 0.5},
    )  # fmt: skip
    sealed = library.run(str(folder), run=str(tmp_path / "run"), base=str(tiny_base), until="training", **keys)
    pairs = {p.name: p.caption for p in sealed["wrangling"].records(Pair)}
    assert pairs == {f"{s}.png": "a plain one" if s == "plain" else "a photo of sks dog" for s in tiny.SHAPES}
    told = material.read_material(sealed["processing"])
    batch = [item.caption for item, _ in material.batch(told, Training(batch_size=4, rehearsal_share=0.5), 0)]
    assert batch.count("a photo of a dog") == 2 and len(told.rehearsal) == 4


def test_rights_that_a_row_states_win_over_the_configuration_and_ride_along_to_the_dataset(pictures: Path, bring: Any) -> None:
    tiny.add_picture(
        pictures,
        "mine.png",
        "a mine",
        tiny.drawing("round", "red", (90, 40)),
        creator="Zoë",
        licence="MIT",
        url="https://x.test",
    )
    sealed = bring(pictures, sourcing={"author": "somebody", "licence": "CC-BY-4.0", "origin": "an attic"})
    examples = {e.name: e for e in sealed["buildout"].records(Example)}
    mine, other = examples["mine.png"], examples["plain-red.png"]
    assert (mine.author, mine.licence, mine.origin) == ("Zoë", "MIT", "https://x.test")
    assert (other.author, other.licence, other.origin) == ("A. Drawer", "CC0-1.0", "an attic")


def test_pictures_in_sub_folders_keep_their_path_as_a_name(pictures: Path, bring: Any) -> None:
    tiny.add_picture(pictures, "sub folder/deep/train.png", "a train", tiny.drawing("round", "green", (90, 40)))
    assert "sub folder/deep/train.png" in {lead.name for lead in bring(pictures, "sourcing")["sourcing"].records(Lead)}


@pytest.mark.parametrize(
    ("name", "size", "tables", "reason"),
    [
        ("small.png", (60, 20), {}, "too small"),
        ("long.png", (200, 40), {}, "too long a shape"),
        ("many.png", (120, 100), {"wrangling": {"max_pixels": 10_000}}, "too large"),
        ("heavy.png", (48, 40), {"gathering": {"max_bytes": 2_000}}, "file too large"),
    ],
)
def test_a_picture_outside_the_limits_is_rejected_with_the_reason(
    pictures: Path, bring: Any, name: str, size: tuple[int, int], tables: dict[str, Any], reason: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    tiny.add_picture(pictures, name, "a thing", Image.fromarray(noise))
    assert reasons(bring(pictures, "wrangling", **tables)) == {name: reason}


def test_no_caption_and_the_same_picture_twice_are_rejected(pictures: Path, bring: Any) -> None:
    tiny.drawing("round", "red", (90, 40)).save(pictures / "silent.png")
    (pictures / "same again.png").write_bytes((pictures / "plain-red.png").read_bytes())
    with (pictures / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "same again.png", "text": "a copy"}\n')
    sealed = bring(pictures, "wrangling")
    assert reasons(sealed) in (
        {"silent.png": "no caption", "same again.png": "duplicate"},
        {"silent.png": "no caption", "plain-red.png": "duplicate"},
    )


def test_a_picture_that_cannot_be_opened_is_rejected_and_the_rest_go_on(pictures: Path, bring: Any) -> None:
    (pictures / "dangling.png").symlink_to(pictures / "nowhere.png")
    with (pictures / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "dangling.png", "text": "not here"}\n')
    assert reasons(bring(pictures, "wrangling")).keys() == {"dangling.png"}


def test_bytes_come_home_under_their_digest(pictures: Path, bring: Any, tmp_path: Path) -> None:
    for item in bring(pictures, "gathering")["gathering"].records(Gathered):
        assert (tmp_path / "run" / "objects" / item.key[:2] / item.key).read_bytes() == (pictures / item.name).read_bytes()


def test_pictures_of_every_kind_become_files_that_any_reader_takes_for_what_they_show(tmp_path: Path, bring: Any) -> None:
    folder = tmp_path / "mixed"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    ramp = Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64))
    tiny.add_picture(folder, "plain.png", "plain", tiny.drawing("round", "red"))
    tiny.add_picture(folder, "deep.png", "deep grey", ramp)
    buffer = io.BytesIO()
    tiny.drawing("striped", "green").save(buffer, "JPEG", exif=exif)
    tiny.add_picture(folder, "turned.jpg", "turned", buffer.getvalue())
    tiny.add_picture(folder, "clear.png", "clear", Image.new("RGBA", (40, 40), (255, 0, 0, 0)))
    tiny.add_picture(folder, "moving.gif", "moving", noise.quantize(16))
    sealed = bring(folder)
    root = sealed["buildout"].folder / "dataset"
    shown = {e.name: tiny.pixels_of(root / e.file) for e in sealed["buildout"].records(Example)}
    assert shown["turned.jpg"].shape == (48, 40, 3) and shown["deep.png"].mean() == pytest.approx(127, abs=3)
    assert (shown["clear.png"] == 255).all() and shown["moving.gif"].shape == (48, 64, 3)
    assert {e.name: e.file.rsplit(".")[-1] for e in sealed["buildout"].records(Example)}["plain.png"] == "png"


def test_near_duplicates_and_groups_stand_on_one_side(pictures: Path, bring: Any) -> None:
    shapes = ("round", "square", "plain")  # stripes and dots have next to no low frequencies to compare
    for number, shape in enumerate(shapes):
        larger = tiny.drawing(shape, "red").resize((96, 80), Image.Resampling.BICUBIC)
        tiny.add_picture(pictures, f"copy-{shape}.png", "a copy", larger, group=f"copies {number}")
    side = {e.name: (e.split, e.group) for e in bring(pictures)["buildout"].records(Example)}
    for shape in shapes:
        assert len({side[f"copy-{shape}.png"], side[f"{shape}-red.png"], side[f"{shape}-green.png"]}) == 1


def test_all_columns_are_text_in_every_row_even_where_metadata_says_numbers(pictures: Path, bring: Any) -> None:
    tiny.add_picture(pictures, "number.png", "12", tiny.drawing("round", "red", (90, 40)), author=7, group=3)  # type: ignore[arg-type]
    root = bring(pictures)["buildout"].folder / "dataset"
    rows = [json.loads(line) for file in root.rglob("metadata.jsonl") for line in file.read_text().splitlines()]
    assert (
        len(rows) == 15
        and all(isinstance(v, str) for row in rows for v in row.values())
        and len({tuple(row) for row in rows}) == 1
    )
    assert all((root / split).is_dir() for split in ("train", "validation", "test"))


def test_the_dataset_does_not_depend_on_the_order_of_the_metadata(
    pictures: Path, bring: Any, tmp_path: Path, tiny_base: Path
) -> None:
    first = bring(pictures)["buildout"]
    lines = (pictures / "metadata.jsonl").read_text().splitlines()
    (pictures / "metadata.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert bring(pictures)["buildout"].content == first.content


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: None, "no picture in"),
        (lambda f: tiny.drawing("round", "red").save(f / "a.png"), "no caption for any of the 1 pictures"),
        (
            lambda f: tiny.add_picture(f, "a.png", "broken", b"nothing"),
            r"none of the 1 pictures can be used \(cannot be decoded\)",
        ),
    ],
)
def test_a_folder_of_no_use_is_said_with_what_to_do(tmp_path: Path, bring: Any, make: Any, said: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(BadInputError, match=said) as caught:
        bring(folder)
    assert "; " in str(caught.value)


def test_one_stage_alone_needs_those_before_it(
    pictures: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dovetail.errors import MissingStageError

    (tmp_path / "dovetail.toml").write_text(f'base = "{tiny_base}"\n[sourcing]\nfolder = "{pictures}"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingStageError, match="sourcing is not done yet; run `dovetail source` first"):
        library.gather(run="r")
    assert library.source(run="r").manifest.stage == "sourcing"
    assert len(library.gather(run="r").records(Gathered)) == 14
    assert library.wrangle(run="r", min_side=40).manifest.asked["config"]["min_side"] == 40
