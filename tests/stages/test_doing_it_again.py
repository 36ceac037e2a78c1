"""What is asked anew decides what is done anew, and nothing else."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Finished
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import SHORT, short

from dovetail import library
from dovetail.edges import models, pixels
from dovetail.edges.folders import Artifact
from dovetail.edges.models import Models
from dovetail.engines import painter
from dovetail.engines.studio import Studio
from dovetail.errors import StoreError
from dovetail.records import STAGE_NAMES, Example, LatentRow, Pair
from dovetail.stages import endpoint
from dovetail.wishes import Caller, Wish

Again = Callable[..., tuple[dict[str, Artifact], set[str]]]


@pytest.fixture
def again(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
    """Runs on a copy of the finished run; returns the artifacts and which stages were done again."""
    monkeypatch.setenv("DOVETAIL_HOME", str(finished.home))
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))

    def go(pictures: Path | None = None, until: str = "production", **tables: Any) -> tuple[dict[str, Artifact], set[str]]:
        sealed = library.run(
            str(pictures or finished.pictures), run=str(run), until=until, base=str(finished.base), **short(**tables)
        )
        old = {n: {p.name for p in (finished.run / n).iterdir()} for n in STAGE_NAMES}
        return sealed, {n for n in sealed if n != "base" and sealed[n].folder.name not in old[n]}

    return go


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the pictures, with their times."""
    return Path(shutil.copytree(finished.pictures, tmp_path / "things"))


def after(stage: str) -> set[str]:
    return set(STAGE_NAMES[STAGE_NAMES.index(stage) :])


def test_the_same_request_does_nothing_again(again: Again) -> None:
    assert again()[1] == set()


@pytest.mark.parametrize(
    ("tables", "done"),
    [
        ({"evaluation": {"seed": 1001}}, {"evaluation", "repo", "endpoint", "production"}),
        ({"endpoint": {"seed": 8}}, {"endpoint", "production"}),
        ({"production": {"reason": "because"}}, {"production"}),
        ({"repo": {"dtype": "float16"}}, {"repo", "endpoint", "production"}),
    ],
)
def test_a_changed_table_redoes_its_stage_and_what_follows_from_it(
    again: Again, tables: dict[str, Any], done: set[str]
) -> None:
    assert again(**tables)[1] == done


@pytest.mark.parametrize(
    ("tables", "done"),
    [
        ({"wrangling": {"max_pixels": 90_000_000}}, {"wrangling"}),
        ({"gathering": {"max_bytes": 90_000_000}}, {"gathering"}),
        ({"buildout": {"near_duplicate_bits": 5}}, {"buildout"}),
    ],
)
def test_a_rule_changed_to_the_same_outcome_stops_there(again: Again, tables: dict[str, Any], done: set[str]) -> None:
    assert again(**tables)[1] == done


def test_a_picture_that_was_only_touched_changes_nothing_after_gathering(again: Again, copied: Path) -> None:
    (copied / "plain-red.png").touch()
    assert again(copied)[1] == {"sourcing", "gathering"}


def test_one_more_picture_is_the_only_one_that_is_decoded_and_encoded(
    again: Again, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = again(until="processing")
    tiny.add_picture(
        copied, "new.png", "a new thing on blue", tiny.drawing("striped", "blue", (80, 40)).rotate(90, expand=True), group="new"
    )
    decode, encode = pixels.decode, Models.moments
    worked: dict[str, list[Any]] = {"decoded": [], "encoded": []}

    def decoding(data: bytes, background: tuple[int, int, int]) -> pixels.Decoded:
        found = decode(data, background)
        worked["decoded"].append(hashlib.sha256(data).hexdigest())
        return found

    def encoding(self: Models, batch: torch.Tensor) -> torch.Tensor:
        worked["encoded"].append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(pixels, "decode", decoding)
    monkeypatch.setattr(Models, "moments", encoding)
    after_, done = again(copied, until="processing")
    assert done == {"sourcing", "gathering", "wrangling", "buildout", "processing"}
    key = hashlib.sha256((copied / "new.png").read_bytes()).hexdigest()
    learned = next(r.split for r in after_["processing"].records(LatentRow) if r.key == key) == "train"
    moved = after_["processing"].manifest.asked["config"]["moved_views"] if learned else 0
    assert set(worked["decoded"]) == {key} and worked["encoded"] == [2] * (1 + moved)
    old, new = (load_file(a["processing"].folder / "latents.safetensors") for a in (before, after_))
    assert len(new) == len(old) + 1 + moved and all(torch.equal(new[name], old[name]) for name in old)
    painted = [(a["processing"].folder / "rehearsal.safetensors").read_bytes() for a in (before, after_)]
    assert painted[0] == painted[1]


def test_a_changed_caption_is_learnt_and_the_latents_of_its_picture_stay(again: Again, copied: Path) -> None:
    before, _ = again(until="processing")
    rows = [json.loads(line) for line in (copied / "metadata.jsonl").read_text().splitlines()]
    rows[0]["text"] = "something else on red"
    (copied / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sealed, done = again(copied, until="processing")
    assert "processing" in done
    old, new = ((a["processing"].folder / "latents.safetensors").read_bytes() for a in (before, sealed))
    assert old == new and "something else on red" in {r.caption for r in sealed["processing"].records(LatentRow)}


def test_a_picture_taken_away_is_gone_everywhere(again: Again, copied: Path) -> None:
    (copied / "square-red.png").unlink()
    sealed, _ = again(copied, until="processing")
    for stage, kind in (("wrangling", Pair), ("buildout", Example), ("processing", LatentRow)):
        assert "square-red.png" not in {r.name for r in sealed[stage].records(kind)}  # type: ignore[type-var,attr-defined]
    latents = load_file(sealed["processing"].folder / "latents.safetensors")
    assert len({name.partition(".")[0] for name in latents}) == 14


def test_status_names_the_field_that_differs(finished: Finished, again: Again, tmp_path: Path) -> None:
    again(training={"steps": 5}, until="sourcing")
    standing = {s.stage: s for s in library.status(run=str(tmp_path / "run"))}
    assert standing["training"].state == "stale" and "config.steps: 4 -> 5" in standing["training"].why
    assert standing["processing"].state == "sealed" and standing["evaluation"].why == ("training is not sealed",)


def test_looking_at_the_status_of_a_run_that_was_never_made_makes_nothing(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "dovetail.toml").write_text(f'base = "{tiny_base}"\n[sourcing]\nfolder = "{tmp_path}"\n')
    standing = library.status(run=str(tmp_path / "never"), config=str(tmp_path / "dovetail.toml"))
    assert all(s.state == "missing" for s in standing)
    assert not (tmp_path / "never").exists()


def test_one_stage_asked_for_on_a_finished_run_leaves_the_report_whole(
    finished: Finished, again: Again, tmp_path: Path
) -> None:
    again(until="wrangling")
    sentence = json.loads((finished.sealed["evaluation"].folder / "verdict.json").read_text())["sentence"]
    assert sentence in (tmp_path / "run" / "report.html").read_text().replace("&#x27;", "'")


def test_the_same_settings_in_another_folder_end_with_the_same_weights(finished: Finished, tmp_path: Path) -> None:
    other = library.run(
        str(finished.pictures), run=str(tmp_path / "other"), until="training", base=str(finished.base), **short()
    )
    assert (
        other["training"].manifest.files["weights.safetensors"]
        == finished.sealed["training"].manifest.files["weights.safetensors"]
    )
    assert other["processing"].content == finished.sealed["processing"].content


def test_a_training_stopped_half_way_goes_on_and_ends_with_the_same_weights(
    again: Again, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dovetail.engines import learner

    slower = {"training": SHORT["training"] | {"sample_every": 1, "checkpoint_every": 1, "steps": 5}}
    paint, count = painter.paint, [0]

    def stop(*args: Any, **keys: Any) -> Any:
        count[0] += 1
        if count[0] == 4:  # the grid before training, then after steps 1 and 2
            raise KeyboardInterrupt
        return paint(*args, **keys)

    monkeypatch.setattr(painter, "paint", stop)
    with pytest.raises(KeyboardInterrupt):
        again(until="training", **slower)
    left = next((tmp_path / "run" / "training").glob("*.partial"))
    assert (left / "checkpoints").is_dir()
    steps: list[int] = []
    step = learner._gradients
    monkeypatch.setattr(learner, "_gradients", lambda lessons, n, stop: (steps.append(n), step(lessons, n, stop))[1])
    resumed, _ = again(until="training", **slower)
    assert steps == [2, 3, 4] and not left.exists()
    whole = library.run(run=str(tmp_path / "run"), until="processing")
    shutil.rmtree(resumed["training"].folder)
    assert whole["processing"].folder.exists()
    uninterrupted, _ = again(until="training", **slower)
    assert (
        uninterrupted["training"].manifest.files["weights.safetensors"]
        == resumed["training"].manifest.files["weights.safetensors"]
    )


@pytest.mark.parametrize(("method", "hint"), [("full", "learning_rate_full"), ("lora", "learning_rate_lora")])
def test_a_learning_rate_that_is_not_given_is_the_one_that_came_with_the_base(again: Again, method: str, hint: str) -> None:
    sealed, _ = again(until="training", training={"learning_rate": None, "method": method, "steps": 1})
    assert json.loads((sealed["training"].folder / "training.json").read_text())["learning_rate"] == tiny.HINTS[hint]


def test_a_training_says_what_was_planned_why_it_ended_and_which_weights_are_published(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dovetail.engines import learner, objective

    levels = iter([1.0, 1.0, 0.5, 0.9, 0.9])  # of validation and training pictures: before, after step 1 and after step 2
    course = lambda unet, goal, items, told, level=levels: dict.fromkeys(  # noqa: E731
        (item.name for item in items), [next(level)] * objective.BANDS
    )
    keys = {"steps": 30, "held_out_every": 1, "early_stop": 1}
    with monkeypatch.context() as patch:
        patch.setattr(learner, "held_out_losses", course)
        sealed, _ = again(until="training", training=keys)
    folder = sealed["training"].folder
    told = json.loads((folder / "training.json").read_text())
    assert (told["planned_steps"], told["steps"], told["ended"]) == (30, 2, "early")
    assert told["published_step"] == told["best_step"] == 1 and (folder / "last.safetensors").is_file()
    assert told["change"]["mean"] == pytest.approx(-0.5)
    assert told["outcome"].startswith("The training ended after step 2 of 30, as 1 held-out losses")
    last, _ = again(until="training", training=keys | {"early_stop": 0, "steps": 4, "published": "last"})
    told = json.loads((last["training"].folder / "training.json").read_text())
    assert told["published_step"] == told["steps"] == told["planned_steps"] == 4 and told["ended"] == "as planned"


def test_rehearsal_pictures_left_empty_are_a_number_in_the_request_and_used_again_when_it_changes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(steps: int) -> Artifact:
        tables = short(training={"steps": steps}, processing={"rehearsal_pictures": None, "moved_views": None})
        sealed = library.run(
            str(finished.pictures), run=str(tmp_path / "run"), until="processing", base=str(finished.base), **tables
        )
        return sealed["processing"]

    first = made(300)  # of 4 pictures each
    asked = first.manifest.asked["config"]
    assert (asked["rehearsal_pictures"], asked["moved_views"]) == (16, 12)
    painted = load_file(first.folder / "rehearsal.safetensors")["latents"]
    orders: list[int] = []
    paint = painter.paint_latents
    monkeypatch.setattr(painter, "paint_latents", lambda m, o, **keys: (orders.append(len(o)), paint(m, o, **keys))[1])
    assert made(301).folder == first.folder, "one step more is worth no further picture"
    second = made(600)
    more = load_file(second.folder / "rehearsal.safetensors")["latents"]
    assert len(more) == 32 and orders == [16] and torch.equal(more[:16], painted)
    assert torch.equal(load_file(made(200).folder / "rehearsal.safetensors")["latents"], painted) and orders == [16]


def test_two_runs_in_one_folder_at_once_are_refused(finished: Finished, again: Again, tmp_path: Path) -> None:
    from dovetail.edges.folders import Run

    before = (tmp_path / "run" / "dovetail.toml").read_bytes()
    with Run(tmp_path / "run").locked(), pytest.raises(StoreError, match="another dovetail works"):
        again(training={"steps": 77})
    assert (tmp_path / "run" / "dovetail.toml").read_bytes() == before, (
        "the refused run has replaced the configuration of the one at work"
    )


@pytest.fixture(scope="module", params=["the U-Net alone", "the text encoder too"])
def adapted(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Artifact]:
    """A LoRA run whose alpha is not its rank."""
    run = Path(shutil.copytree(finished.run, tmp_path_factory.mktemp("lora") / "run"))
    keys = short(
        training={
            "method": "lora",
            "learning_rate": 0.02,
            "lora_rank": 2,
            "lora_alpha": 8,
            "ema_decay": 0.1,
            "text_encoder": request.param != "the U-Net alone",
        },
        repo={"registry": str(run.parent / "registry"), "single_file": True, "name": "round"},
    )
    return library.run(str(finished.pictures), run=str(run), until="repo", base=str(finished.base), **keys)


def _paint(folder: Path, adapters: Path | None = None, pipe: Any = None) -> Any:
    import numpy as np

    pipe = pipe or StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if adapters:
        pipe.load_lora_weights(adapters.parent, weight_name=adapters.name)
    made = pipe("a round thing on red", num_inference_steps=3, guidance_scale=4.0, generator=torch.Generator().manual_seed(1))
    return np.asarray(made.images[0]).astype(int)


def test_a_lora_run_trains_adapters_only_and_publishes_them_beside_a_whole_unet(
    finished: Finished, adapted: dict[str, Artifact]
) -> None:
    model = adapted["repo"].folder / "model"
    assert all("lora" in name for name in load_file(adapted["training"].folder / "weights.safetensors"))
    assert (model / "pytorch_lora_weights.safetensors").exists()
    base, tuned = (load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (finished.base, model))
    assert base.keys() == tuned.keys() and any(not torch.equal(base[n], tuned[n]) for n in base)
    base, tuned = (load_file(f / "text_encoder" / "model.safetensors") for f in (finished.base, model))
    taught = adapted["training"].manifest.asked["config"]["text_encoder"]
    assert base.keys() == tuned.keys() and any(not torch.equal(base[n], tuned[n]) for n in base) == taught
    assert "base_model_relation: adapter" in (model / "README.md").read_text()
    for file in model.rglob("*.safetensors"):  # a folder of this machine is nobody's business
        with safe_open(file, "pt") as opened_file:
            assert str(finished.base) not in str(opened_file.metadata()), file.name


def test_the_published_adapters_on_the_base_paint_what_the_published_folder_paints(
    finished: Finished, adapted: dict[str, Artifact]
) -> None:
    model = adapted["repo"].folder / "model"
    fused, plain = _paint(model), _paint(finished.base)
    assert abs(fused - plain).max() > 8, "the training has changed nothing, this test would say nothing"
    for name in ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors"):
        assert abs(_paint(finished.base, model / name) - fused).max() <= 1, name


def test_a_published_lora_can_be_taken_back_to_its_base_where_it_is_served(
    finished: Finished, adapted: dict[str, Artifact]
) -> None:
    opened = [
        endpoint.opened(f, "round", "1", "torch") for f in (adapted["repo"].folder / "model", finished.base, finished.model)
    ]
    assert [revision.served.lora for revision in opened] == [True, False, False]
    wish = Wish(prompt="a round thing on red", seed=1, steps=3, guidance_scale=4.0, width=tiny.SIDE, height=tiny.SIDE)
    pictures = []
    for revision, scale in ((opened[0], 0.0), (opened[1], 1.0), (opened[0], 1.0)):
        studio = Studio(revision)
        (ticket,) = studio.submit([replace(wish, lora_scale=scale)], Caller())
        pictures.append(pixels.decode(ticket.future.result(20).png, (0, 0, 0)).pixels.astype(int))
        studio.close()
    assert abs(pictures[0] - pictures[1]).max() <= 1 and abs(pictures[2] - pictures[1]).max() > 8


def test_the_published_single_file_paints_what_the_published_folder_paints(adapted: dict[str, Artifact]) -> None:
    model = adapted["repo"].folder / "model"
    pipe = StableDiffusionPipeline.from_single_file(str(model / "round.safetensors"), config=str(model), local_files_only=True)
    assert abs(_paint(model, pipe=pipe) - _paint(model)).max() <= 1


def test_a_single_file_is_a_base_without_a_network_where_its_configurations_lie_beside_it(
    adapted: dict[str, Artifact], tmp_path: Path
) -> None:
    model = adapted["repo"].folder / "model"
    shutil.copy(model / "round.safetensors", tmp_path / "mine.safetensors")
    shutil.copytree(model, tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors", "*.png", "*.md"))
    found = models.resolve(str(tmp_path / "mine.safetensors"), tmp_path / "embedded", tmp_path / "cache")
    assert abs(_paint(found) - _paint(model)).max() <= 1
    assert models.resolve(str(tmp_path / "mine.safetensors"), tmp_path / "embedded", tmp_path / "cache") == found
