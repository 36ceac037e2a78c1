"""The embedded judge: what it answers, and what it says of a broken folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from dovetail.errors import ModelError
from dovetail.evaluation import opening
from dovetail.evaluation.embedded_judge import FORMAT, EmbeddedJudge
from dovetail.evaluation.towers import Shape, Towers
from recipes.embedded_base import scenes, televisions


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `recipes/embedded_judge/pack.py` writes it, with small towers that learned nothing."""
    folder = tmp_path_factory.mktemp("packed") / "judge"
    words = tiny.tokenizer()
    words.save_pretrained(folder)
    shape = Shape(
        channels=(8, 8, 8),
        hidden=32,
        kind=16,
        layout=32,
        vocabulary=len(words),
        tokens=40,
        text_width=16,
        text_layers=1,
        heads=2,
        joint=16,
    )
    torch.manual_seed(3)
    towers = Towers(shape).eval()
    save_file(
        {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in towers.state_dict().items()},
        folder / "model.safetensors",
    )
    told = {"format": FORMAT, "name": "a judge", "side": 64, "shape": shape.as_json()}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "words.json").write_text(json.dumps({"words": ["headphones", "cat", "television", "guitar"]}))
    return folder


@pytest.fixture(scope="module")
def judge(packed: Path) -> EmbeddedJudge:
    return EmbeddedJudge(packed)


def painted(number: int, side: int = 64) -> np.ndarray:
    """A television that no training picture showed."""
    _, picture = televisions.invented(5000 + number)
    rng = np.random.default_rng(number)
    scene = scenes.draw_scene(rng, [("television", "own")], shares=(1.0,), placed=0.0)
    return scenes.paint_scene(rng, scene, {("television", "own"): picture}, side=side)


def test_scores_are_cosines_times_a_hundred_in_the_callers_order(judge: EmbeddedJudge) -> None:
    pictures, texts = [painted(k) for k in range(3)], ["a cat", "a television", "a cat"]
    scores = judge.score(pictures, texts)
    assert scores.dtype == np.float64 and scores.shape == (3,)
    expected = 100 * (judge.joint_images(pictures) * judge.embed_texts(texts)).sum(1)
    assert np.allclose(scores, expected.numpy(), atol=1e-3)
    assert np.array_equal(scores, judge.score(pictures, texts))


def test_vectors_are_unit_vectors_and_company_changes_nothing(judge: EmbeddedJudge) -> None:
    pictures = [painted(k, side) for k, side in enumerate((64, 128, 40, 512))]
    vectors = judge.embed_images(pictures)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(vectors[2:3], judge.embed_images(pictures[2:3]), atol=1e-4)
    texts = ["a cat", "a pair of headphones in blue on a light gray background"]
    assert torch.allclose(judge.embed_texts(texts)[:1], judge.embed_texts(texts[:1]), atol=1e-4)


def test_nothing_in_nothing_out(judge: EmbeddedJudge) -> None:
    assert len(judge.embed_images([])) == len(judge.embed_texts([])) == len(judge.score([], [])) == 0


def test_long_and_foreign_texts_are_read(judge: EmbeddedJudge) -> None:
    vectors = judge.embed_texts(["a cat " * 200, "", "ünïcode 猫 🙂"])
    assert torch.isfinite(vectors).all()


def test_it_says_which_words_it_knows(judge: EmbeddedJudge) -> None:
    assert all(judge.knows(word) for word in ("headphones", "cat", "Television", "guitars"))
    assert not any(judge.knows(word) for word in ("banjo", "zebra", "qwertzuiop"))


def test_a_wrong_picture_is_refused(judge: EmbeddedJudge) -> None:
    with pytest.raises(ValueError, match="uint8"):
        judge.embed_images([np.zeros((8, 8), np.uint8)])
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        judge.score([painted(0)], ["a", "b"])


@pytest.mark.parametrize("fault", ["missing", "clip", "no weights", "half a file", "no tokenizer", "other shape"])
def test_a_broken_folder_is_one_line(fault: str, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    if fault != "missing":
        shutil.copytree(packed, folder)
    if fault == "clip":
        (folder / "config.json").write_text('{"model_type": "clip"}')
    elif fault == "no weights":
        (folder / "model.safetensors").unlink()
    elif fault == "half a file":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif fault == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif fault == "other shape":
        told = json.loads((folder / "config.json").read_text())
        told["shape"]["joint"] += 1
        (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError) as caught:
        EmbeddedJudge(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_packed_folder_is_opened_as_a_judge_whatever_its_place(packed: Path) -> None:
    assert isinstance(opening.open_judge("", str(packed)), EmbeddedJudge)
