"""The embedded judge: what it answers, and what it says of a broken folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dovetail.errors import ModelError
from dovetail.evaluation.embedded_judge import BASE_JUDGE, EmbeddedJudge
from recipes.embedded_base import scenes, televisions


@pytest.fixture(scope="module")
def judge() -> EmbeddedJudge:
    return EmbeddedJudge()


def painted(number: int, side: int = 64) -> np.ndarray:
    """A television that no training picture showed."""
    _, picture = televisions.invented(5000 + number)
    rng = np.random.default_rng(number)
    scene = scenes.draw_scene(rng, [("television", "own")], shares=(1.0,), placed=0.0)
    return scenes.paint_scene(rng, scene, {("television", "own"): picture}, side=side)


def test_a_television_is_known_by_name(judge: EmbeddedJudge) -> None:
    pictures = [painted(k) for k in range(12)]
    own = judge.score(pictures, ["an old television"] * 12)
    for other in ("a cat", "a guitar", "a tree", "a pair of headphones"):
        assert (own > judge.score(pictures, [other] * 12)).mean() >= 0.75, other


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
    assert all(judge.knows(word) for word in ("headphones", "cat", "Television", "kettle", "guitars"))
    assert not any(judge.knows(word) for word in ("banjo", "zebra", "qwertzuiop"))  # kinds kept back, and nonsense


def test_a_wrong_picture_is_refused(judge: EmbeddedJudge) -> None:
    with pytest.raises(ValueError, match="uint8"):
        judge.embed_images([np.zeros((8, 8), np.uint8)])
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        judge.score([painted(0)], ["a", "b"])


@pytest.mark.parametrize("fault", ["missing", "clip", "no weights", "half a file", "no tokenizer", "other shape"])
def test_a_broken_folder_is_one_line(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    if fault != "missing":
        shutil.copytree(BASE_JUDGE, folder)
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
