"""What diffusers' training scripts get wrong (read in their source, 0.40): each fault has a test that Dovetail passes.

`HELD_TO` names the test for each; those that stand nowhere else are below.
"""

import ast
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import schooling
import tiny
import torch
from test_launch import go, words

from dovetail import flags, launch
from dovetail.config import Training
from dovetail.edges import hub, tensors
from dovetail.edges.models import Models
from dovetail.engines import learner, material, objective

HELD_TO = {
    "every process draws the same noise and timesteps": ["test_two_processes_learn_what_one_does"],
    "resuming begins the epoch anew, and a checkpoint that is not there is passed over": [
        "test_a_training_cut_off_goes_on_and_ends_with_the_same_bits",
        "test_checkpoints_of_another_training_are_neither_overwritten_nor_continued",
    ],
    "an old checkpoint is deleted before the new one is written": [
        "test_a_checkpoint_that_cannot_be_written_costs_none_that_is_there",
        "test_older_checkpoints_are_deleted_beyond_the_limit",
    ],
    "what the model predicts is not saved": ["test_another_prediction_is_learnt_and_written_into_the_scheduler"],
    "the product holds VAE and text encoder rounded to half": [
        "test_the_command_of_the_readme_gives_a_pipeline_that_differs_in_its_unet_alone"
    ],
    "every step encodes anew": ["test_pictures_are_encoded_once_whatever_the_other_flags"],
    "data are mangled in silence": [
        "test_pictures_of_any_mode_are_trained_on", "test_a_caption_that_is_no_text_names_its_row",
        "test_more_samples_than_there_are_is_no_fault", "test_a_damaged_picture_is_left_out_and_listed",
    ],
    "captions are never dropped": ["test_captions_are_dropped_anew_each_epoch"],
    "nothing is held out": ["test_held_out_losses_are_the_same_each_time_and_need_no_validation_pictures_to_train"],
    "a constant rate ignores its warm-up": ["test_a_wrong_flag_is_one_line_before_any_work"],
    "a ragged batch and a short accumulation weigh samples wrongly": [
        "test_accumulating_gives_the_steps_of_one_large_batch", "test_pictures_of_several_shapes_share_a_step",
    ],
    "the average has no decay of its own": ["test_average_forgets_the_start_soon_and_then_keeps_its_decay"],
    "one more validation prompt changes all pictures": ["test_a_further_validation_prompt_changes_no_other_picture"],
    "min-SNR at a zero terminal divides nothing by nothing": ["test_min_snr_at_a_zero_terminal_is_a_number_for_every_target"],
    "trackers are told the token": ["test_no_file_of_a_run_holds_the_token"],
    "gradients of adapters are not clipped": ["test_gradients_are_clipped_whatever_the_method"],
    "adapters stay in bf16, where small steps are lost": ["test_adapters_are_float32_under_bf16_and_small_steps_are_kept"],
    "alpha is the rank, and layers are few": ["test_fresh_adapters_change_nothing_and_follow_from_their_seed"],
    "cached latents and told crops differ": ["test_coordinates_are_those_of_the_cut"],
    "the rate's schedule is counted in micro-batches": ["test_the_rate_follows_optimizer_steps_however_they_are_accumulated"],
    "another output folder encodes everything anew": ["test_pictures_are_encoded_once_whatever_the_other_flags"],
    "columns must be called image and text": ["test_columns_may_have_any_name"],
    "sizes are told in bf16": ["test_sizes_are_told_to_the_pixel"],
}  # fmt: skip


@functools.cache
def every_test() -> set[str]:
    """By name."""
    return {
        node.name
        for file in Path(__file__).parent.rglob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("fault", list(HELD_TO))
def test_each_fault_has_its_test(fault: str) -> None:
    assert HELD_TO[fault] and set(HELD_TO[fault]) <= every_test()


def test_a_checkpoint_that_cannot_be_written_costs_none_that_is_there(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tensors.write

    def full(path: Path, data: Any) -> str:
        if "checkpoint-4" in str(path) and path.name.startswith("optimizer"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(tensors, "write", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left"):
        go(tiny_base, pictures, out, checkpoints_total_limit=1)
    assert [p.name for p in out.glob("*checkpoint*")] == ["checkpoint-2"]
    monkeypatch.setattr(tensors, "write", write)
    whole = go(tiny_base, pictures, tmp_path / "whole")
    gone_on = go(tiny_base, pictures, out, resume_from_checkpoint="latest", checkpoints_total_limit=1)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (gone_on / name).read_bytes() == (whole / name).read_bytes()


def test_more_samples_than_there_are_is_no_fault(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    assert (go(tiny_base, pictures, tmp_path / "out", max_train_samples=1000, max_train_steps=1) / "unet").is_dir()


def test_captions_are_dropped_anew_each_epoch() -> None:
    settings, whole = Training(caption_dropout=0.3), schooling.material()
    heard = [[material.row(item, epoch, 5, settings, whole, 1.0).caption for item in whole.train] for epoch in range(200)]
    assert {"", whole.train[0].caption} == {row[0] for row in heard}
    share = sum(c == "" for row in heard for c in row) / sum(map(len, heard))
    assert abs(share - 0.3) < 0.06
    again = [material.row(item, 7, 5, settings, whole, 1.0).caption for item in whole.train]
    assert again == heard[7], "what is dropped follows from seed, picture and epoch"


def test_a_further_validation_prompt_changes_no_other_picture(tiny_base: Path, tmp_path: Path) -> None:
    models = Models(tiny_base, torch.device("cpu"))
    for name, prompts in (("one", ["a round thing"]), ("two", ["a round thing", "a square"])):
        asked, _ = flags.parse([*words(tiny_base, tmp_path, tmp_path), "--validation_prompts", *prompts])
        launch._sample(asked, models, tmp_path / name, 4)
    one, two = (tiny.pixels_of(tmp_path / name / "samples" / "step-0000004.png") for name in ("one", "two"))
    assert one.shape[1] < two.shape[1] and (two[:, : one.shape[1]] == one).all()


def test_no_file_of_a_run_holds_the_token(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "prepare", lambda name, token: name)
    monkeypatch.setattr(hub, "upload", lambda folder, name, token, logs: f"https://hub/{name}")
    out = go(tiny_base, pictures, tmp_path / "out", "--push_to_hub", hub_token="hf_a-secret", max_train_steps=1)
    assert not [p for p in out.rglob("*") if p.is_file() and b"hf_a-secret" in p.read_bytes()]


@pytest.mark.parametrize("method", ["full", "lora", "dora", "lokr", "textual_inversion"])
def test_gradients_are_clipped_whatever_the_method(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    norms: list[float] = []
    update = learner._update

    def watched(lessons: Any, step: int) -> None:
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in lessons.parameters if p.grad is not None))
        norms.append(norm * lessons.descent.factor)  # what the step scales them by
        update(lessons, step)

    monkeypatch.setattr(learner, "_update", watched)
    whole = schooling.material()
    if method == "textual_inversion":
        for item in whole.train:
            object.__setattr__(item, "caption", "a <thing>")
    told = schooling.config(
        method=method, max_grad_norm=1e-4, steps=3, rehearsal_share=0.0, caption_dropout=0.0, initializer="cat"
    )
    _, curve = schooling.teach(tiny_base, tmp_path, whole, told)
    assert len(norms) == 3 and all(0 < n <= 1.01e-4 for n in norms)
    assert all(row["gradient_norm"] > 1e-4 for row in curve if "gradient_norm" in row), "told is the norm before"


def test_adapters_are_float32_under_bf16_and_small_steps_are_kept(tiny_base: Path, tmp_path: Path) -> None:
    told = schooling.config(
        method="lora", mixed_precision="bf16", steps=2, warmup_steps=0, lr_scheduler="constant", ema_decay=0.0
    )
    small, _ = schooling.teach(tiny_base, tmp_path / "a", schooling.material(), told, rate=1e-6)
    none, _ = schooling.teach(tiny_base, tmp_path / "b", schooling.material(), told, rate=1e-12)
    assert all(w.dtype == torch.float32 for w in small.values())
    moved = [float((small[n] != none[n]).float().mean()) for n in small if "lora_B" in n]  # the others begin without a gradient
    assert len(moved) > 30 and min(moved) > 0.95, "in bf16, 84 of 100 weights would stay where they are"


def test_the_rate_follows_optimizer_steps_however_they_are_accumulated(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    rates = []
    for number, parts in enumerate((1, 4)):
        out = go(
            tiny_base, pictures, tmp_path / str(number), gradient_accumulation_steps=parts, lr_scheduler="linear",
            lr_warmup_steps=2, max_train_steps=6, checkpointing_steps=100,
        )  # fmt: skip
        rates.append([json.loads(row)["learning_rate"] for row in (out / "logs" / "metrics.jsonl").read_text().splitlines()])
    assert rates[0] == rates[1] and len(rates[0]) == 6
    assert rates[0][0] < rates[0][1] and rates[0][-1] < rates[0][2] / 2


def test_columns_may_have_any_name(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pictures, tmp_path / "other"))
    rows = [json.loads(line) for line in (other / "metadata.jsonl").read_text().splitlines()]
    (other / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": row["file_name"], "says": row["text"]}) + "\n" for row in rows)
    )
    one = go(tiny_base, pictures, tmp_path / "a", max_train_steps=2)
    two = go(tiny_base, other, tmp_path / "b", max_train_steps=2, caption_column="says")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("side", [1023.0, 1499.0, 3021.0])
def test_sizes_are_told_to_the_pixel(side: float) -> None:
    row = torch.cat([torch.zeros(8), torch.tensor([side, side, 0.0, 1.0, 1024.0, 1024.0])])
    told = objective.conditions([row, row], torch.device("cpu"))["added_cond_kwargs"]["time_ids"]
    assert told.dtype == torch.float32 and told[1].tolist() == [side, side, 0.0, 1.0, 1024.0, 1024.0]
    assert float(torch.tensor(side).bfloat16()) != side, "what bf16 would have made of it"
