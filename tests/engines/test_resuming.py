"""A training that is cut off, goes wrong, or comes to its best before its end: nothing is lost."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from schooling import CPU, config, teach
from torch import Tensor
from waiting import CEILING

from dovetail.edges import machine, tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import checkpoints, learner, objective
from dovetail.engines.checkpoints import Checkpoint
from dovetail.engines.lessons import Lessons
from dovetail.engines.material import Item, Material
from dovetail.errors import StoppedError, StoreError, TrainingError


@pytest.mark.parametrize(("method", "text_encoder"), [("full", False), ("lora", False), ("dora", True)])
@pytest.mark.parametrize("at", [2, 4])
def test_a_training_cut_off_anywhere_and_taken_up_again_ends_with_the_same_bits(
    tiny_base: Path, tmp_path: Path, material: Material, method: str, text_encoder: bool, at: int
) -> None:
    settings = config(method=method, text_encoder=text_encoder, gradient_accumulation_steps=2, batch_size=2)
    whole, curve = teach(tiny_base, tmp_path / "whole", material, settings)

    def fall_over(step: int) -> None:
        if step == at:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        teach(tiny_base, tmp_path / "cut", material, settings, on_sample=fall_over)
    torch.rand(7)  # whatever else the process has drawn meanwhile
    again, curve_again = teach(tiny_base, tmp_path / "cut", material, settings)
    assert tensors.digest(again) == tensors.digest(whole) and curve_again == curve


def test_after_a_kill_no_step_before_the_checkpoint_is_done_again(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    seen: list[int] = []

    def fall_over(step: int) -> None:
        seen.append(step)
        if len(seen) == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        teach(tiny_base, tmp_path, material, config(), on_sample=fall_over)
    teach(tiny_base, tmp_path, material, config(), on_sample=seen.append)
    assert seen == [2, 4, 4, 6]


@pytest.mark.parametrize("damage", [b"", b"not a tensor", None])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    tiny_base: Path, tmp_path: Path, material: Material, damage: bytes | None
) -> None:
    whole, _ = teach(tiny_base, tmp_path, material, config())
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    newest = tmp_path / "checkpoint-6" / "unet_ema" / "diffusion_pytorch_model.safetensors"
    newest.unlink() if damage is None else newest.write_bytes(damage)
    assert (found := checkpoints.latest(tmp_path)) and found.step == 4
    seen: list[int] = []
    again, _ = teach(tiny_base, tmp_path, material, config(), on_sample=seen.append)
    assert seen == [6] and tensors.digest(again) == tensors.digest(whole)
    assert (healed := checkpoints.latest(tmp_path)) and healed.step == 6, (
        "the damaged checkpoint was left in the way of the new one"
    )


def test_without_any_whole_checkpoint_training_starts_anew(tiny_base: Path, tmp_path: Path, material: Material) -> None:
    whole, _ = teach(tiny_base, tmp_path, material, config())
    for file in tmp_path.rglob("state.json"):
        file.write_text("{")
    assert checkpoints.latest(tmp_path) is None
    assert tensors.digest(teach(tiny_base, tmp_path, material, config())[0]) == tensors.digest(whole)


def test_a_loss_that_is_no_number_ends_with_the_step_and_what_to_do(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    with pytest.raises(TrainingError, match=r"not a number at step \d.*learning_rate"):
        teach(tiny_base, tmp_path, material, config(steps=30, warmup_steps=0, max_grad_norm=1e9), rate=1e18)


def test_a_loss_scaler_may_skip_some_steps_and_no_more() -> None:
    class Scaled:
        scaler = object()

    state = Lessons(**dict.fromkeys(Lessons.__dataclass_fields__, None) | {"accelerator": Scaled, "skipped": 0})  # type: ignore[arg-type]
    assert all(learner._sound(state, 0.5, float("inf")) for _ in range(learner.SKIPS))
    assert not learner._sound(state, 0.5, float("inf")) and not learner._sound(state, float("nan"), 1.0)
    assert learner._sound(state, 0.5, 1.0) and state.skipped == 0


def _fail_at(monkeypatch: pytest.MonkeyPatch, places: list[int]) -> list[int]:
    """The loss is no number the first time that each of these steps is done; returns the steps that were done."""
    done: list[int] = []
    gradients, left = learner._gradients, list(places)

    def broken(state: Lessons, step: int, stop: int) -> Tensor:
        done.append(step)
        numbers = gradients(state, step, stop)
        if step in left:
            left.remove(step)
            numbers[0] = torch.nan
        return numbers

    monkeypatch.setattr(learner, "_gradients", broken)
    return done


def test_after_a_loss_that_is_no_number_training_goes_back_and_on_at_half_the_rate_where_that_is_asked(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _fail_at(monkeypatch, [3])
    _, curve = teach(tiny_base, tmp_path, material, config(on_nan="roll back", lr_scheduler="constant", steps=10))
    assert done == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9]
    told = "the loss is not a number at step 4: back to step 2, learning rate by 0.5"
    assert [row for row in curve if "event" in row] == [{"step": 2, "event": told}]
    assert [row["learning_rate"] for row in curve if "loss" in row] == [1e-3]
    found = checkpoints.latest(tmp_path)
    assert found and found.state["factor"] == 0.5, "a resumed training would go on at the rate of before"


def test_a_training_is_rolled_back_some_times_and_never_before_the_first_checkpoint(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_at(monkeypatch, [3] * (learner.BACKS + 1))
    with pytest.raises(TrainingError, match=r"not a number at step 4; lower \[training\] learning_rate"):
        teach(tiny_base, tmp_path / "a", material, config(on_nan="roll back"))
    monkeypatch.undo()
    _fail_at(monkeypatch, [1])
    with pytest.raises(TrainingError, match="not a number at step 2"):
        teach(tiny_base, tmp_path / "b", material, config(on_nan="roll back"))


def _held_out_as(monkeypatch: pytest.MonkeyPatch, levels: list[float]) -> None:
    """Held-out losses that follow a given course, those of training pictures too."""
    left, level = list(levels), [0.0]

    def losses(unet: Any, goal: Any, items: list[Item], states: Any) -> dict[str, list[float]]:
        if items[0].name.startswith("validation"):
            level[0] = left.pop(0)
        return {item.name: [level[0] + 0.001 * n] * objective.BANDS for n, item in enumerate(items)}

    monkeypatch.setattr(learner, "held_out_losses", losses)


def test_the_best_weights_are_kept_beside_the_last_and_an_early_stop_ends_there(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, Tensor] = {}
    models = Models(tiny_base, CPU)

    def note(step: int) -> None:
        seen[step] = models.unet.conv_out.weight.clone()

    settings = config(steps=20, held_out_every=2, checkpoint_every=4, early_stop=2, lr_scheduler="constant")
    _held_out_as(monkeypatch, [1.0, 0.9, 0.7, 0.9, 0.95, 0.6])
    taught = learner.teach(models, material, settings, 2e-3, tmp_path, Show(quiet=True), note)
    assert taught.steps == 8, "two measurements after the best, at step 4"
    assert taught.best and taught.best[0] == 4 and torch.equal(taught.best[1]["conv_out.weight"], seen[4])
    assert torch.equal(taught.weights["conv_out.weight"], seen[8]) and not torch.equal(seen[4], seen[8])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-4", "checkpoint-4", "checkpoint-8"]
    again = learner.teach(Models(tiny_base, CPU), material, settings, 2e-3, tmp_path, Show(quiet=True), note)
    assert again.steps == 8 and again.best and again.best[0] == 4, "what has ended is not done again"


def test_best_weights_outlive_a_kill_before_the_checkpoint_that_knows_of_better_ones(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(held_out_every=1, checkpoint_every=2, sample_every=1)
    _held_out_as(monkeypatch, [1.0, 0.8, 0.9, 0.5])

    def fall_over(step: int) -> None:
        if step == 3:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        teach(tiny_base, tmp_path, material, settings, on_sample=fall_over)
    assert {p.name for p in checkpoints.every(tmp_path, "best")} == {"best-1", "best-3"}
    _held_out_as(monkeypatch, [0.9, 0.9, 0.9, 0.9])
    taught = learner.teach(Models(tiny_base, CPU), material, settings, 2e-3, tmp_path, Show(quiet=True), lambda step: None)
    assert taught.best and taught.best[0] == 1


def test_best_weights_that_no_checkpoint_knows_of_are_replaced_by_better_ones(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(held_out_every=1, checkpoint_every=3, sample_every=1)
    _held_out_as(monkeypatch, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5])

    def fall_over(step: int) -> None:
        if step == 5:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        teach(tiny_base, tmp_path, material, settings, on_sample=fall_over)
    assert {p.name for p in checkpoints.every(tmp_path, "best")} == {"best-3", "best-5"}, "a large model fills the disk"


def test_when_the_time_is_up_a_checkpoint_is_written_and_the_same_call_goes_on_to_the_same_bits(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    whole, _ = teach(tiny_base, tmp_path / "whole", material, config())
    for done in range(1, 6):
        with pytest.raises(StoppedError, match=f"1e-09 minutes are up after step {done} of 6; the same command goes on"):
            teach(tiny_base, tmp_path / "cut", material, config(time_limit_minutes=1e-9))
    again, _ = teach(tiny_base, tmp_path / "cut", material, config(time_limit_minutes=1e-9))
    assert tensors.digest(again) == tensors.digest(whole)


def _slow_disk(monkeypatch: pytest.MonkeyPatch, released: threading.Event) -> list[int]:
    """Nothing is written before that; returns the checkpoints that are waiting, or were."""
    begun: list[int] = []
    write = checkpoints.write

    def slowly(final: Path, checkpoint: Checkpoint) -> None:
        begun.append(checkpoint.step)
        assert released.wait(CEILING), "the training waits for the disk"
        write(final, checkpoint)

    monkeypatch.setattr(checkpoints, "write", slowly)
    return begun


def test_steps_go_on_beside_the_writing_of_a_checkpoint_and_do_not_change_it(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(held_out_every=100)
    teach(tiny_base, tmp_path / "a", material, settings)
    released, there = threading.Event(), []
    begun = _slow_disk(monkeypatch, released)

    def note(step: int, numbers: dict[str, float]) -> None:
        if step == 4:
            assert begun == [2] and not checkpoints.every(tmp_path / "b")
            released.set()
        there.append(step)

    learner.teach(Models(tiny_base, CPU), material, settings, 2e-3, tmp_path / "b", Show(quiet=True), lambda step: None, note)
    assert there == [1, 2, 3, 4, 5, 6] and begun == [2, 4, 6, 6]
    for step in (4, 6):
        one, other = (checkpoints.read(tmp_path / name / f"checkpoint-{step}") for name in "ab")
        assert one.state == other.state and list(one.files) == list(other.files)
        for name in one.files:
            assert tensors.digest(one.files[name]) == tensors.digest(other.files[name]), "later steps are in it"


def test_a_stopped_training_waits_until_its_checkpoint_is_on_the_disk(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    _slow_disk(monkeypatch, released)
    threading.Timer(0.5, released.set).start()
    with pytest.raises(StoppedError):
        teach(tiny_base, tmp_path, material, config(time_limit_minutes=1e-9))
    assert [p.name for p in checkpoints.every(tmp_path)] == ["checkpoint-1"]


@pytest.mark.parametrize("steps", [6, 4])
def test_a_checkpoint_that_could_not_be_written_ends_the_training_in_one_line(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    save = checkpoints.save

    def full(root: Path, checkpoint: Checkpoint, kept: int | None, best: int | None) -> None:
        if checkpoint.step == 4:
            raise StoreError(f"the disk is full while writing {root}", do="free some room and run the same command again")
        save(root, checkpoint, kept, best)

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(StoreError, match="the disk is full"):
        teach(tiny_base, tmp_path, material, config(steps=steps))
    assert [p.name for p in checkpoints.every(tmp_path)] == ["checkpoint-2"]


def test_where_memory_is_too_short_for_a_copy_the_training_waits_for_the_disk(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = teach(tiny_base, tmp_path / "a", material, config())
    monkeypatch.setattr(machine, "free_bytes", lambda: 0)
    threads: set[str] = set()
    write = checkpoints.write

    def note(final: Path, checkpoint: Checkpoint) -> None:
        threads.add(threading.current_thread().name)
        write(final, checkpoint)

    monkeypatch.setattr(checkpoints, "write", note)
    again, _ = teach(tiny_base, tmp_path / "b", material, config())
    assert threads == {threading.current_thread().name} and tensors.digest(again) == tensors.digest(whole)


def test_what_a_kill_left_half_written_or_half_deleted_is_swept_away(
    tiny_base: Path, tmp_path: Path, material: Material
) -> None:
    teach(tiny_base, tmp_path, material, config(steps=2))
    halves = [tmp_path / name for name in (".checkpoint-4.12345.tmp", ".best-0.12345.old", ".mine.tmp")]
    for half in halves:
        shutil.copytree(tmp_path / "checkpoint-2", half)
    teach(tiny_base, tmp_path, material, config())
    assert [half.exists() for half in halves] == [False, False, True], "what is another's stays"
    assert (found := checkpoints.latest(tmp_path)) and found.step == 6


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_that_is_not_whole(
    tiny_base: Path, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    delete = shutil.rmtree

    def look(folder: Path, **how: Any) -> None:
        seen.append([p.name for kind in ("checkpoint", "best") for p in checkpoints.every(tmp_path, kind)])
        assert Path(folder).name.startswith("."), "half deleted, it would have its name still"
        delete(folder, **how)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", look)
    teach(tiny_base, tmp_path, material, config(checkpoints_kept=1))
    assert seen and [p.name for p in checkpoints.every(tmp_path)] == ["checkpoint-6"]
