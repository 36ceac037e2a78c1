"""The launch command of the diffusers example, on the tiny base: every flag does what it says, or says why it cannot."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import ROOT
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from waiting import CEILING

from dovetail import flags, launch
from dovetail.edges import folders, tensors
from dovetail.errors import BadConfigError, BadInputError, DovetailError

TAKEN = "unet/diffusion_pytorch_model.safetensors"


def words(base: Path, pictures: Path, out: Path, *more: str, **flags: Any) -> list[str]:
    """The flags of the README at the size of the tiny base."""
    told: dict[str, Any] = {
        "pretrained_model_name_or_path": base, "train_data_dir": pictures, "output_dir": out, "resolution": tiny.SIDE,
        "train_batch_size": 1, "gradient_accumulation_steps": 4, "mixed_precision": "no", "max_train_steps": 4,
        "learning_rate": 1e-3, "checkpointing_steps": 2, "report_to": "none", "caption_column": "text",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (told | flags).items() if value is not None] + list(more)


def go(*args: Any, **keys: Any) -> Path:
    return launch.run(*flags.parse(words(*args, **keys)))


def unet_digest(out: Path) -> str:
    return tensors.digest(tensors.read(out / TAKEN))


def test_the_command_of_the_readme_gives_a_pipeline_that_differs_in_its_unet_alone(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ready = words(
        tiny_base, pictures, out, "--use_ema", "--center_crop", "--random_flip", "--gradient_checkpointing",
        mixed_precision="fp16", max_grad_norm=1, lr_scheduler="constant", lr_warmup_steps=0,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(ROOT / "train_text_to_image.py"), *ready],
        capture_output=True, text=True, timeout=CEILING, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no fp16 training: bf16 is used" in done.stderr
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        assert folders.digest_folder(out / part) == folders.digest_folder(tiny_base / part)
    assert unet_digest(out) != unet_digest(tiny_base)
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert pipeline("a round thing", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)
    kept = UNet2DConditionModel.from_pretrained(out / "checkpoint-4", subfolder="unet_ema")
    assert torch.equal(kept.conv_out.weight, pipeline.unet.conv_out.weight)
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    told = [json.loads(line) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told] == [1, 2, 3, 4] and all(row["loss"] > 0 for row in told)


def test_dovetail_train_takes_the_same_flags(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    done = tiny.cli("train", *words(tiny_base, pictures, tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    go(tiny_base, pictures, tmp_path / "b")
    assert unet_digest(tmp_path / "a") == unet_digest(tmp_path / "b")


def test_without_an_average_the_last_weights_are_given(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = go(tiny_base, pictures, tmp_path / "out")
    assert unet_digest(out) == tensors.digest(tensors.read(out / "checkpoint-4" / TAKEN))
    assert not (out / "checkpoint-4" / "unet_ema").exists()


class PowerCutError(Exception):
    """The power went."""


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, *args: Any, **keys: Any) -> None:
    from dovetail.edges.tracker import Tracker

    def log(self: Tracker, at: int, numbers: dict[str, float]) -> None:
        if at == step:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", log)
        with pytest.raises(PowerCutError):
            go(*args, **keys)


@pytest.mark.parametrize("named", ["latest", "checkpoint-2"])
def test_a_training_cut_off_goes_on_and_ends_with_the_same_bits(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    keys: dict[str, Any] = {"max_train_steps": 6, "checkpointing_steps": 1}
    whole = go(tiny_base, pictures, tmp_path / "whole", "--use_ema", **keys)
    out = tmp_path / "cut"
    stopped_at(5, monkeypatch, tiny_base, pictures, out, "--use_ema", **keys)
    assert (out / "checkpoint-4").exists() and not (out / TAKEN).exists()
    go(tiny_base, pictures, out, "--use_ema", resume_from_checkpoint=named, **keys)
    assert unet_digest(out) == unet_digest(whole)
    assert (out / "left-checkpoint-4").exists() == (named == "checkpoint-2")


def test_older_checkpoints_are_deleted_beyond_the_limit(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = go(tiny_base, pictures, tmp_path / "out", checkpointing_steps=1, checkpoints_total_limit=3)
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_checkpoints_of_another_training_are_neither_overwritten_nor_continued(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    out = go(tiny_base, pictures, tmp_path / "out")
    with pytest.raises(BadConfigError, match="checkpoint-4 of an earlier training; give --resume_from_checkpoint=latest"):
        go(tiny_base, pictures, out)
    with pytest.raises(BadConfigError, match=r"learning_rate: 0\.001 -> 0\.002"):
        go(tiny_base, pictures, out, resume_from_checkpoint="latest", learning_rate=2e-3, max_train_steps=6)
    with pytest.raises(BadConfigError, match="there is no checkpoint checkpoint-9; give latest, or one of checkpoint-2"):
        go(tiny_base, pictures, out, resume_from_checkpoint="checkpoint-9")
    with pytest.raises(BadConfigError, match="4 steps of 4 are done, and 3 are asked for"):
        go(tiny_base, pictures, out, resume_from_checkpoint="latest", max_train_steps=3)
    with pytest.raises(BadConfigError, match="learning_rate"):
        go(tiny_base, pictures, out, resume_from_checkpoint="checkpoint-2", learning_rate=2e-3)
    assert (out / "checkpoint-4").exists(), "a refusal has moved what it refused"
    longer = go(tiny_base, pictures, out, resume_from_checkpoint="latest", max_train_steps=6)
    at_once = go(tiny_base, pictures, tmp_path / "at once", max_train_steps=6)
    assert unet_digest(longer) == unet_digest(at_once)


def test_pictures_are_encoded_once_whatever_the_other_flags(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dovetail.edges.models import Models

    seen: list[int] = []
    moments = Models.moments
    monkeypatch.setattr(Models, "moments", lambda self, pixels: (seen.append(len(pixels)), moments(self, pixels))[1])
    go(tiny_base, pictures, tmp_path / "a", "--random_flip", "--center_crop")
    assert seen == [2] * 14
    go(tiny_base, pictures, tmp_path / "b", "--random_flip", "--center_crop", learning_rate=1e-4, dataloader_num_workers=2)
    assert len(seen) == 14
    tiny.add_picture(pictures, "more.png", "one more", tiny.drawing("round", "red").rotate(90))
    go(tiny_base, pictures, tmp_path / "c", "--random_flip", "--center_crop")
    assert len(seen) == 15
    go(tiny_base, pictures, tmp_path / "d", "--center_crop", image_interpolation_mode="bilinear")
    assert seen[15:] == [1] * 15


def test_another_prediction_is_learnt_and_written_into_the_scheduler(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = go(tiny_base, pictures, tmp_path / "out", prediction_type="epsilon")
    assert StableDiffusionPipeline.from_pretrained(out).scheduler.config.prediction_type == "epsilon"
    assert unet_digest(out) != unet_digest(go(tiny_base, pictures, tmp_path / "plain"))


@pytest.mark.parametrize(
    "more",
    [
        ["--dream_training"], ["--snr_gamma=5"], ["--noise_offset=0.5"], ["--input_perturbation=0.5"], ["--adam_beta1=0.5"],
        ["--adam_beta2=0.5"], ["--adam_epsilon=0.1"], ["--adam_weight_decay=10"], ["--max_grad_norm=1e-9"], ["--scale_lr"],
        ["--lr_scheduler=polynomial", "--lr_warmup_steps=0"], ["--lr_scheduler=constant_with_warmup"], ["--seed=5"],
        ["--max_train_samples=2"], ["--dream_training", "--dream_detail_preservation=3"], ["--use_ema"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_flag_of_the_training_changes_the_weights(
    tiny_base: Path, pictures: Path, tmp_path: Path, more: list[str], plain_digest: str
) -> None:
    assert unet_digest(go(tiny_base, pictures, tmp_path / "out", *more, max_train_steps=2)) != plain_digest


@pytest.fixture(scope="module")
def plain_digest(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("plain")
    return unet_digest(go(tiny_base, tiny.write_pictures(place / "things"), place / "out", max_train_steps=2))


def test_epochs_are_counted_where_no_steps_are_given_and_prompts_painted(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    out = go(
        tiny_base, pictures, tmp_path / "out", "--validation_prompts", "a round thing", "a square", max_train_steps=None,
        num_train_epochs=2, validation_epochs=1, checkpointing_steps=100,
    )  # fmt: skip
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-8"]  # 14 pictures, 4 a step
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-0000004.png", "step-0000008.png"]
    assert tiny.pixels_of(out / "samples" / "step-0000008.png").shape == (32, 2 * 32 + 4, 3)


def test_one_of_several_captions_is_taken_each_epoch(tiny_base: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "things"
    pictures.mkdir()
    tiny.drawing("round", "red").save(pictures / "a.png")
    row = {"file_name": "a.png", "text": ["a", "b", "c"]}
    (pictures / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    parsed, _ = flags.parse(words(tiny_base, pictures, tmp_path))
    from dovetail.config import Training
    from dovetail.edges import tables
    from dovetail.edges.console import Show
    from dovetail.edges.models import Models
    from dovetail.engines import material

    table = tables.load(None, None, str(pictures), None, None, "text")
    told = launch.material(parsed, table, Models(tiny_base, torch.device("cpu")), tmp_path, Show(quiet=True))
    seen: list[str] = []
    listening = replace(told, states=lambda c: (seen.append(c), torch.zeros(1))[1])
    for epoch in range(40):
        material.row(told.train[0], epoch, 5, Training(), listening, 1.0)
    assert {"a", "b", "c"} <= set(seen)


def test_a_damaged_picture_is_left_out_and_listed(
    tiny_base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.add_picture(pictures, "half.png", "cut off", (pictures / "plain-red.png").read_bytes()[:90])
    out = go(tiny_base, pictures, tmp_path / "out")
    told = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["name"] for row in told] == ["half.png"] and "damaged" in told[0]["reason"]
    assert "1 of 15 pictures cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train_data_dir": None}, "no pictures are named"), ({"train_data_dir": "nowhere"}, "there is no folder nowhere"),
        ({"pretrained_model_name_or_path": None}, "no model is named"), ({"resolution": 36}, "36 is no multiple of 8"),
        ({"caption_column": "words"}, "there is no column words; name one of image, text, group"),
        ({"caption_column": "image"}, "the column image holds pictures and no captions"),
        ({"image_column": "text"}, "the column text holds no pictures"), ({"lr_scheduler": "none"}, "no schedule none"),
        ({"lr_warmup_steps": 5}, "a constant schedule has no warm-up"), ({"report_to": "wandb"}, "wandb is not installed"),
        ({"report_to": "paper"}, "there is no tracker paper"), ({"train_batch_size": 0}, "train_batch_size must be above 0"),
        ({"revision": "main"}, "the model is a folder"), ({"num_train_epochs": 3}, "overrides --num_train_epochs"),
        ({"validation_epochs": 3}, "without --validation_prompts"), ({"hub_model_id": "me/x"}, "without --push_to_hub"),
        ({"dataset_config_name": "x"}, "without --dataset_name"), ({"max_train_steps": "many"}, "max_train_steps"),
        ({"prediction_type": "score"}, "no prediction type score"), ({"snr_gamma": -1}, "must be above 0"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_flag_is_one_line_before_any_work(
    tiny_base: Path, pictures: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(DovetailError, match=said):
        go(tiny_base, pictures, tmp_path / "out", **more)
    assert not (tmp_path / "out" / "unet").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--offload_ema", "without --use_ema"), ("--foreach_ema", "without --use_ema"),
        ("--allow_tf32", "no effect on the CPU"),
        ("--use_8bit_adam", "needs a GPU"), ("--enable_xformers_memory_efficient_attention", "xformers needs a GPU"),
        ("--dream_detail_preservation=2", "without --dream_training"), ("--no_such_flag", "no_such_flag"),
    ],
)  # fmt: skip
def test_a_flag_that_would_have_no_effect_here_says_why(
    tiny_base: Path, pictures: Path, tmp_path: Path, flag: str, said: str
) -> None:
    with pytest.raises(BadConfigError, match=said):
        go(tiny_base, pictures, tmp_path / "out", flag)


def test_folder_names_are_no_captions_and_an_empty_folder_no_pictures(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "sorted" / name).mkdir(parents=True)
        tiny.drawing("round", "red").save(tmp_path / "sorted" / name / "a.png")
    with pytest.raises(BadInputError, match="names of folders and no captions; add a metadata"):
        go(tiny_base, tmp_path / "sorted", tmp_path / "out", caption_column=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="cannot load the pictures"):
        go(tiny_base, tmp_path / "empty", tmp_path / "out")


def test_a_caption_that_is_no_text_names_its_row(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"number": n} for n, line in enumerate((pictures / "metadata.jsonl").read_text().splitlines())]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInputError, match="row 0 of the column number holds 0 and no text"):
        go(tiny_base, pictures, tmp_path / "out", caption_column="number")


def test_the_list_of_flags_is_that_of_the_example() -> None:
    expected = (Path(__file__).parent / "flags_of_the_example.txt").read_text().split()
    assert sorted(flags.FLAGS) == sorted(expected)
