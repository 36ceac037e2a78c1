"""Judges that answer questions: small models of the real classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, AutoProcessor

from dovetail.errors import ModelError
from dovetail.evaluation.vision_questions import TransformersQuestionJudge, question_for

TEXTS = ["a red cat", "a dog on the blue background", "a television"]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    dice = np.random.default_rng(7)
    return [dice.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 52), (32, 32), (64, 31))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("answerers")
    made = {kind: getattr(tiny_models, f"write_{kind}")(place / kind) for kind in ("vilt", "blip", "llava", "smolvlm")}
    return made | {"llava without template": tiny_models.write_llava(place / "plain", template=None)}


KINDS = ["vilt", "blip", "llava", "smolvlm", "llava without template"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_a_chance_in_hundredths_that_hangs_on_picture_and_text(
    kind: str, folders: dict[str, Path], images: list[np.ndarray]
) -> None:
    judge = TransformersQuestionJudge(str(folders[kind]))
    found = judge.score([images[0], images[1], images[0], images[0]], [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]])
    assert found.dtype == np.float64 and ((found > 0) & (found < 100)).all()
    assert found[0] == found[3]
    assert found[0] != pytest.approx(found[1], abs=1e-6), "the picture does not count"
    assert found[0] != pytest.approx(found[2], abs=1e-6), "the text does not count"
    assert judge.score([], []).shape == (0,)
    long = judge.score(images[:1], ["the cat " * 60 if kind != "smolvlm" else "the cat"])  # longer than ViLT's tower
    assert np.isfinite(long).all()


def test_a_chat_model_is_asked_by_its_template_and_read_at_its_next_token(
    folders: dict[str, Path], images: list[np.ndarray]
) -> None:
    processor, model = (kind.from_pretrained(folders["llava"]) for kind in (AutoProcessor, AutoModelForImageTextToText))
    text = f"user : <image> {question_for(TEXTS[0])} assistant :"
    with torch.no_grad():
        read = processor(images=[Image.fromarray(images[0])], text=[text], return_tensors="pt")
        chances = model.eval()(**read).logits[0, -1].softmax(-1)
    yes, no = (
        sum(float(chances[processor.tokenizer.convert_tokens_to_ids(w)]) for w in words)
        for words in (("yes", "Yes"), ("no", "No"))
    )
    judge = TransformersQuestionJudge(str(folders["llava"]))
    assert judge.score(images[:1], TEXTS[:1])[0] == pytest.approx(100 * yes / (yes + no), abs=1e-3)


def test_vilt_is_read_at_its_labels(folders: dict[str, Path], images: list[np.ndarray]) -> None:
    processor, model = (kind.from_pretrained(folders["vilt"]) for kind in (AutoProcessor, AutoModelForVisualQuestionAnswering))
    with torch.no_grad():
        read = processor(
            images=Image.fromarray(images[0]), text=question_for(TEXTS[0]), truncation=True, max_length=16, return_tensors="pt"
        )
        logits = model.eval()(**read).logits[0]
    expected = 100 * float(logits[[3, 1]].softmax(0)[0])  # the labels are 2, no, blue, yes
    assert TransformersQuestionJudge(str(folders["vilt"])).score(images[:1], TEXTS[:1])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("word", "expected"), [("yes", 100.0), ("no", 0.0)])
def test_blip_is_as_sure_as_its_decoder(word: str, expected: float, folders: dict[str, Path], images: list[np.ndarray]) -> None:
    judge = TransformersQuestionJudge(str(folders["blip"]))
    number = judge.processor.tokenizer.convert_tokens_to_ids(word)
    with torch.no_grad():
        judge.model.text_decoder.cls.predictions.bias[number] += 50
    assert judge.score(images, TEXTS) == pytest.approx([expected] * 3, abs=0.01)


def test_quotation_marks_in_a_text_do_not_end_the_question() -> None:
    assert question_for('a sign "STOP"') == "Does this picture show \"a sign 'STOP'\"? Answer yes or no."


def test_weights_that_are_no_numbers_give_scores_that_are_none(
    folders: dict[str, Path], tmp_path: Path, images: list[np.ndarray]
) -> None:
    folder = tiny_models.write_vilt(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["vilt.pooler.dense.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert np.isnan(TransformersQuestionJudge(str(folder)).score(images[:2], TEXTS[:2])).all()


def test_a_picture_that_a_model_cannot_read_is_told_in_one_line(folders: dict[str, Path]) -> None:
    judge = TransformersQuestionJudge(str(folders["vilt"]))
    with pytest.raises(ModelError, match="cannot judge a picture of 3x300") as caught:
        judge.score([np.zeros((300, 3, 3), np.uint8)], ["a cat"])
    assert "\n" not in str(caught.value)


def _half(folder: Path) -> Path:
    kept = {n: w for n, w in load_file(folder / "model.safetensors").items() if not n.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny_models.write_clip, "answers no questions: it is a CLIPModel"),
        (
            lambda f: tiny_models.write_blip(f, "BlipForConditionalGeneration"),
            "is no judge: it is a BlipForConditionalGeneration",
        ),
        (lambda f: tiny_models.write_vilt(f, ("cat", "dog")), "its labels are others"),
        (lambda f: _half(tiny_models.write_vilt(f)), "lacks"),
        (lambda f: f, "there is no folder"),
    ],
)
def test_a_model_that_answers_no_questions_is_told_in_one_line(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        TransformersQuestionJudge(str(make(tmp_path / "model")))
    assert said in str(caught.value) and "\n" not in str(caught.value)
