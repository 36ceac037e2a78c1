"""Hostile and unlucky inputs, through the library: rejected with a reason or refused in one line, never a crash."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import short

from dovetail import library
from dovetail.edges.folders import Artifact
from dovetail.errors import DovetailError
from dovetail.records import STAGE_NAMES, Example, Lead, Pair, Rejected


@pytest.fixture
def bring(tmp_path: Path, tiny_base: Path) -> Any:
    def go(folder: Path, until: str = "buildout", **tables: Any) -> dict[str, Artifact]:
        return library.run(str(folder), run=str(tmp_path / "run"), until=until, **({"base": str(tiny_base)} | tables))

    return go


def _rows(folder: Path, *rows: dict[str, Any]) -> None:
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)  # escaped as JSON has it


CAPTIONS = {
    "emoji.png": "a 🦊 and a 👨\u200d👩\u200d👧",
    "quotes.png": 'a child\'s "red" ball; $(rm -rf /) `x` \\n | <b>',
    "markup.png": "<script>alert('x')</script> <img src=x onerror=alert(1)>",
    "separators.png": "two\u2028lines and\u2029more\x85here",
    "right to left.png": "كلب \u202eabc",
    "dashes.png": "--- a: b # c",
}


def test_captions_of_every_kind_go_through_all_stages_to_report_card_and_dataset(pictures: Path, bring: Any) -> None:
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        tiny.drawing(tiny.SHAPES[number % 5], "blue", (90, 40 + number)).rotate(180).save(pictures / name)
        _rows(pictures, {"file_name": name, "text": caption, "author": caption})
    sealed = bring(pictures, "production", **short())
    kept = {p.name: p.caption for p in sealed["wrangling"].records(Pair)}
    assert kept.keys() >= CAPTIONS.keys()
    assert kept["emoji.png"] == CAPTIONS["emoji.png"] and kept["separators.png"] == "two lines and more here"
    rows = [
        json.loads(x)
        for f in sealed["buildout"].folder.rglob("metadata.jsonl")
        for x in f.read_text(encoding="utf-8").split("\n")
        if x
    ]
    assert {r["original_name"]: r["text"] for r in rows} == kept
    report = (sealed["production"].folder.parent.parent / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in report and "<img src=x" not in report


def test_a_broken_surrogate_in_json_is_cleaned_and_not_a_crash(pictures: Path, bring: Any) -> None:
    tiny.drawing("round", "red", (90, 40)).save(pictures / "x.png")
    _rows(pictures, {"file_name": "x.png", "text": "half \ud83d pair", "author": "\udc00"})
    assert {p.name: p.caption for p in bring(pictures)["wrangling"].records(Pair)}["x.png"] == "half pair"


def test_file_names_that_are_no_utf8_are_taken_or_rejected_but_no_crash(pictures: Path, bring: Any) -> None:
    raw = os.fsencode(pictures) + b"/caf\xe9.png"
    with open(raw, "wb") as file:  # noqa: PTH123  (pathlib has no bytes)
        file.write((pictures / "plain-red.png").read_bytes())
    sealed = bring(pictures, "wrangling")
    names = [p.name for p in sealed["wrangling"].records(Pair)] + [
        r.name for r in sealed["wrangling"].records(Rejected, "rejected.jsonl")
    ]
    assert len(names) == 15


@pytest.mark.parametrize(
    "name",
    [
        "train station.jpg",
        "a&b=c.png",
        "100%.png",
        "#1.png",
        "[x].png",
        "it's.png",
        'quo"te.png',
        "new\nline.png",
        "-rf.png",
        "~.png",
        "ü.png",
        "Ü decomposed ü.png",
    ],
)
def test_names_with_odd_characters_keep_their_captions(pictures: Path, bring: Any, name: str) -> None:
    tiny.drawing("round", "red", (90, 41)).save(pictures / name)
    _rows(pictures, {"file_name": name, "text": "a thing of its own"})
    leads = {x.name: x.caption for x in bring(pictures, "sourcing")["sourcing"].records(Lead)}
    assert leads[name] == "a thing of its own" and len(leads) == 15


def test_metadata_in_csv_with_everything_csv_allows(tmp_path: Path, bring: Any) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    said = {"a.png": 'say "hi", twice', "b.png": "x" * 150_000, "c.png": "plain", "d.png": ""}
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.writer(file)
        out.writerow(["file_name", "text", "author"])
        for number, (name, caption) in enumerate(said.items()):
            tiny.drawing(tiny.SHAPES[number], "red").save(folder / name)
            out.writerow([name, caption, "me", "one column too many"])
    sealed = bring(folder, "wrangling")
    assert {p.name: p.caption for p in sealed["wrangling"].records(Pair)} == {"a.png": said["a.png"], "c.png": "plain"}
    rejected = {r.name: r.reason for r in sealed["wrangling"].records(Rejected, "rejected.jsonl")}
    assert rejected == {"b.png": "caption too long", "d.png": "no caption"}


def _one_group(folder: Path) -> Path:
    folder.mkdir()
    tiny.drawing("round", "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a round thing")
    return folder


def test_a_single_picture_goes_through_every_stage_and_the_verdict_is_that_nothing_can_be_told(
    tmp_path: Path, bring: Any
) -> None:
    sealed = bring(_one_group(tmp_path / "one"), "production", **short(production={"promote": "if better"}))
    verdict = json.loads((sealed["evaluation"].folder / "verdict.json").read_text())
    assert set(STAGE_NAMES) <= sealed.keys() and verdict["decision"] == "cannot tell"
    assert json.loads((sealed["production"].folder / "release.json").read_text())["released"] is False
    assert [e.split for e in sealed["buildout"].records(Example)] == ["train"]


def test_a_single_picture_and_a_base_without_prompts_of_its_own_go_through_too(
    tmp_path: Path, bring: Any, tiny_base: Path
) -> None:
    base = tiny.write_base(tmp_path / "bare", with_judge=False, with_prompts=False)
    tables = short(evaluation={"judge": str(tiny_base / "judge")})
    sealed = bring(_one_group(tmp_path / "one"), "production", **tables, base=str(base))
    assert json.loads((sealed["evaluation"].folder / "verdict.json").read_text())["decision"] == "cannot tell"


def _verdict(sealed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    verdict = json.loads((sealed["evaluation"].folder / "verdict.json").read_text())
    return verdict, {axis["name"]: axis for axis in verdict["axes"]}


def test_without_a_judge_its_axes_are_left_out_and_nothing_is_promoted(tmp_path: Path, bring: Any) -> None:
    base = tiny.write_base(tmp_path / "bare", with_judge=False)
    verdict, axes = _verdict(bring(_one_group(tmp_path / "one"), "evaluation", **short(), base=str(base)))
    assert verdict["decision"] == "cannot tell"
    assert axes["prompt"]["outcome"] == axes["forgetting"]["outcome"] == "cannot judge"
    assert "[evaluation] judge" in axes["prompt"]["advice"] and "\n" not in axes["prompt"]["sentence"]


def test_no_general_prompts_and_no_rehearsal_are_a_choice_that_leaves_forgetting_unmeasured(pictures: Path, bring: Any) -> None:
    tables = short(evaluation={"other_prompts": 0}, processing={"rehearsal_pictures": 0})
    verdict, axes = _verdict(bring(pictures, "evaluation", **tables))
    assert axes["forgetting"]["outcome"] == "cannot judge" and verdict["decision"] != "promote"


@pytest.mark.parametrize(
    "tables",
    [
        {"processing": {"centre_crop": False, "random_flip": False}},
        {"processing": {"resolution": 64}},
        {"processing": {"rehearsal_prompts": ["a very special cat"], "rehearsal_pictures": 3}},
        {"training": {"lr_scheduler": "linear", "batch_size": 1, "gradient_accumulation_steps": 2}},
        {"buildout": {"test_share": 0.0, "validation_share": 0.0}},
        {"training": {"steps": 1, "warmup_steps": 50}},
    ],
    ids=str,
)
def test_unusual_settings_train(pictures: Path, bring: Any, tables: dict[str, Any]) -> None:
    sealed = bring(pictures, "training", **short(**tables))
    side = tables.get("processing", {}).get("resolution", tiny.SIDE)
    with Image.open(sealed["training"].folder / "samples" / "step-0000000.png") as grid:
        assert grid.height == side


@pytest.mark.parametrize(("mode", "size"), [("L", (40, 40)), ("CMYK", (40, 40)), ("P", (64, 48)), ("RGBA", (48, 64))])
def test_pictures_of_any_mode_are_trained_on(pictures: Path, bring: Any, mode: str, size: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)).convert(mode)
    name = "odd.jpg" if mode == "CMYK" else "odd.png"
    tiny.add_picture(pictures, name, "an odd one", noise)
    assert name in {e.name for e in bring(pictures, "processing", **short())["buildout"].records(Example)}


def test_a_changed_byte_in_a_sealed_artifact_is_noticed_before_it_is_published(pictures: Path, bring: Any) -> None:
    sealed = bring(pictures, "evaluation", **short())
    weights = sealed["training"].folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 0xFF
    weights.write_bytes(data)
    with pytest.raises(DovetailError, match="damaged"):
        bring(pictures, "repo", **short())
