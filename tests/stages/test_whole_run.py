"""All ten stages on a tiny base: what they leave is whole, and other tools open it."""

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import Finished
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny import pixels_of, short

from dovetail import library, pipeline
from dovetail.edges import folders
from dovetail.edges.models import Models
from dovetail.edges.registry import Registry
from dovetail.records import AXIS_NAMES, STAGE_NAMES, Example, LatentRow, Rejected, ScoredSample


@pytest.fixture
def at_home(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """The finished run, with the home that it was made in."""
    monkeypatch.setenv("DOVETAIL_HOME", str(finished.home))
    return finished


def told(finished: Finished, stage: str, file: str) -> dict[str, Any]:
    found = json.loads((finished.sealed[stage].folder / file).read_text())
    assert isinstance(found, dict)
    return found


def test_every_stage_is_sealed_and_status_says_so(at_home: Finished) -> None:
    standing = library.status(run=str(at_home.run))
    assert [(s.stage, s.state) for s in standing] == [(name, "sealed") for name in STAGE_NAMES]


def test_every_sealed_file_is_as_its_manifest_says(finished: Finished) -> None:
    for name in STAGE_NAMES:
        artifact = finished.sealed[name]
        assert artifact.manifest.files and folders.digest_folder(artifact.folder) == artifact.manifest.files
    assert not list(finished.run.rglob("*.partial")) and not list(finished.run.rglob("*.tmp"))


def _times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "dovetail.toml")}


def test_a_second_run_does_nothing(at_home: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: pipeline.Work) -> None:
        raise AssertionError(f"{work.desk.folder} is done again")

    monkeypatch.setattr(pipeline, "STAGES", tuple(replace(s, does=refuse) for s in pipeline.STAGES))
    before = _times(at_home.run) | _times(at_home.home)
    again = library.run(str(at_home.pictures), run=str(at_home.run), base=str(at_home.base), **short())
    assert {n: a.content for n, a in again.items()} == {n: a.content for n, a in at_home.sealed.items()}
    assert _times(at_home.run) | _times(at_home.home) == before


def test_nothing_else_is_needed_to_go_on_than_the_run_folder(at_home: Finished) -> None:
    again = library.run(run=str(at_home.run))
    assert again["production"].folder == at_home.sealed["production"].folder


def test_diffusers_opens_the_published_folder_and_paints_the_endpoints_picture(finished: Finished) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(finished.model)
    pipe.set_progress_bar_config(disable=True)
    asked = told(finished, "endpoint", "endpoint.json")["request"]
    generator = torch.Generator().manual_seed(asked["seed"])
    models = Models(finished.model, torch.device("cpu"))
    pieces = models.pieces(asked["prompt"])  # diffusers would cut it
    embeds = {"prompt_embeds": models.embed([asked["prompt"]], pieces), "negative_prompt_embeds": models.embed([""], pieces)}
    image = pipe(**embeds, num_inference_steps=2, guidance_scale=4.0, generator=generator).images[0]
    answered = pixels_of(finished.sealed["endpoint"].folder / "picture.png")
    assert np.abs(answered - np.asarray(image)).max() <= 2


def test_the_published_unet_is_the_trained_one_and_all_else_is_the_bases_byte_for_byte(finished: Finished) -> None:
    trained = load_file(finished.sealed["training"].folder / "weights.safetensors")
    published = load_file(finished.model / "unet" / "diffusion_pytorch_model.safetensors")
    assert published.keys() == trained.keys() and all(torch.equal(published[n], trained[n]) for n in trained)
    base = load_file(finished.base / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(base[n], trained[n]) for n in trained)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        assert folders.digest_folder(finished.model / part) == folders.digest_folder(finished.base / part)
    for file in ("LICENSE", "hints.json"):
        assert (finished.model / file).read_text() == (finished.base / file).read_text()


def test_checksums_cover_every_file_and_agree(finished: Finished) -> None:
    lines = [line.split("  ", 1) for line in (finished.model / "SHA256SUMS").read_text().splitlines()]
    assert {name: hashlib.sha256((finished.model / name).read_bytes()).hexdigest() for _, name in lines} == {
        n: s for s, n in lines
    }
    present = {p.relative_to(finished.model).as_posix() for p in finished.model.rglob("*") if p.is_file()}
    assert present - {n for _, n in lines} == {"SHA256SUMS"}


def test_weights_are_safetensors_only(finished: Finished) -> None:
    kinds = {p.suffix for p in finished.model.rglob("*") if p.is_file()}
    assert ".safetensors" in kinds and not kinds & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def test_the_model_card_is_valid_and_carries_verdict_licences_and_authors(finished: Finished) -> None:
    card = (finished.model / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "diffusers" and head["license"] == "other" and head["base_model"] == str(finished.base)
    assert told(finished, "evaluation", "verdict.json")["sentence"] in card
    assert (
        "| CC0-1.0 | A. Drawer | 14 |" in card and "A. Drawer (CC0-1.0), 14 pictures" in (finished.model / "NOTICE").read_text()
    )
    assert pixels_of(finished.model / "eval" / "before-after.png").shape[1] > 192


def test_provenance_names_every_picture_by_digest_and_the_base(finished: Finished) -> None:
    provenance = json.loads((finished.model / "provenance.json").read_text())
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in finished.pictures.iterdir()}
    assert len(provenance["pictures"]) == 15 and {p["sha256"] for p in provenance["pictures"]} <= digests
    assert provenance["base"]["files"]["unet/config.json"] == folders.digest_file(finished.base / "unet" / "config.json")


def test_the_published_version_is_in_the_registry_and_in_force(finished: Finished) -> None:
    published = told(finished, "repo", "published.json")
    registry = Registry(finished.home / "registry")
    assert published["name"] == "things" and registry.releases("things")[0].version == published["version"]
    folder, _ = registry.find(f"things@{published['version']}")
    assert folders.digest_folder(folder) == folders.digest_folder(finished.model)
    assert told(finished, "production", "release.json")["released"] is True


@pytest.fixture(scope="module")
def opened(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    cache = str(tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    return datasets.load_dataset("imagefolder", data_dir=str(finished.sealed["buildout"].folder / "dataset"), cache_dir=cache)


def test_datasets_opens_the_dataset_with_the_right_caption_for_every_picture(
    finished: Finished, opened: datasets.DatasetDict
) -> None:
    examples = finished.sealed["buildout"].records(Example)
    assert {s: opened[s].num_rows for s in opened} == {
        s: sum(e.split == s for e in examples) for s in ("train", "validation", "test")
    }
    by_name = {e.name: e for e in examples}
    seen = [row for split in opened for row in opened[split]]
    assert {row["original_name"] for row in seen} == by_name.keys() and "train station.jpg" in by_name
    for row in seen:
        example = by_name[row["original_name"]]
        assert (row["text"], row["license"], row["group"], row["sha256"]) == (
            example.caption,
            example.licence,
            example.group,
            example.key,
        )
        wanted = pixels_of(finished.pictures / example.name)
        assert np.abs(np.asarray(row["image"].convert("RGB")).astype(int) - wanted).max() <= 2


def test_every_split_has_the_column_text(opened: datasets.DatasetDict) -> None:
    for split in ("train", "validation", "test"):
        assert opened[split].features["text"].dtype == "string" and all(opened[split]["text"])


def test_no_group_stands_on_two_sides(finished: Finished) -> None:
    sides: dict[str, set[str]] = {}
    for example in finished.sealed["buildout"].records(Example):
        sides.setdefault(example.group, set()).add(example.split)
    assert all(len(s) == 1 for s in sides.values()) and len(sides) >= 6


def test_training_never_sees_what_it_is_tested_on(finished: Finished) -> None:
    rows = finished.sealed["processing"].records(LatentRow)
    items = {s: {r.item for r in rows if r.split == s} for s in ("train", "validation", "test")}
    assert not items["train"] & (items["validation"] | items["test"])
    curve = [json.loads(line) for line in (finished.sealed["training"].folder / "curve.jsonl").read_text().splitlines()]
    probed = {row["set"]: set(row["losses"]) for row in curve if "set" in row}
    assert probed["validation"] == items["validation"] and probed["train"] <= items["train"]


def test_the_rejected_are_all_there_with_their_reasons(finished: Finished) -> None:
    found = {r.name: r.reason for r in finished.sealed["wrangling"].records(Rejected, "rejected.jsonl")}
    assert found == {
        "absent.png": "listed but absent", "broken.png": "cannot be decoded", "nothing.png": "empty file",
        "wordy.png": "caption too long",
    }  # fmt: skip


def test_scores_are_paired_by_prompt_and_seed_and_the_verdict_follows_from_them(finished: Finished) -> None:
    samples = finished.sealed["evaluation"].records(ScoredSample)
    target, other = ([s for s in samples if s.group == group] for group in ("held-out", "general"))
    assert len(target) == 4 and len({(s.prompt, s.seed) for s in target}) == 4 and len({s.prompt for s in target}) == 2
    tests = {e.caption for e in finished.sealed["buildout"].records(Example) if e.split == "test"}
    assert {s.prompt for s in target} <= tests and {s.prompt for s in other} == {"a house", "a tree on blue"}
    verdict = told(finished, "evaluation", "verdict.json")
    assert [a["name"] for a in verdict["axes"]] and {a["name"] for a in verdict["axes"]} == set(AXIS_NAMES) - {"production"}
    assert verdict["decision"] == "cannot tell" and verdict["prompts"] == 2
    folder = finished.sealed["evaluation"].folder
    for s in samples:
        pictures = [pixels_of(folder / f) for f in (s.base_file, s.tuned_file)]
        assert not np.array_equal(*pictures)


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]


def test_the_report_needs_nothing_beside_it(finished: Finished) -> None:
    text = (finished.run / "report.html").read_text()
    page = _References()
    page.feed(text)
    assert len(page.found) > 20 and all(reference.startswith(("data:", "#")) for reference in page.found)
    assert page.scripts == 0 and "@import" not in text and not re.search(r"url\((?!['\"]?data:)", text)


def test_the_report_shows_verdict_rejections_and_captions_escaped(finished: Finished) -> None:
    text = (finished.run / "report.html").read_text()
    for said in (
        "listed but absent",
        "cannot be decoded",
        "empty file",
        "caption too long",
        "wordy.png",
        "a train station | with a pipe 🚉",
    ):
        assert said in text
    assert told(finished, "evaluation", "verdict.json")["headline"] in text and "<script>" not in text


def test_the_runs_copy_of_the_configuration_is_whole(at_home: Finished) -> None:
    config, _ = library.configure(str(at_home.run), str(at_home.run / "dovetail.toml"), {})
    assert config.base == str(at_home.base) and config.training.steps == 4 and config.sourcing.folder == str(at_home.pictures)
