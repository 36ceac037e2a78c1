"""Which judge a configuration names."""

import json
from pathlib import Path

import pytest
import tiny_models

from dovetail.errors import ModelError
from dovetail.evaluation.clip_judge import ClipJudge
from dovetail.evaluation.opening import Endpoint, open_judge, open_question_judge
from dovetail.evaluation.vision_endpoint import VisionEndpointJudge
from dovetail.evaluation.vision_questions import TransformersQuestionJudge

URL = "http://127.0.0.1:9/v1"


def test_a_folder_is_what_its_config_says(tmp_path: Path) -> None:
    clip, siglip, vilt, llava = (
        str(getattr(tiny_models, f"write_{kind}")(tmp_path / kind)) for kind in ("clip", "siglip", "vilt", "llava")
    )
    assert isinstance(open_judge(clip, ""), ClipJudge)
    assert isinstance(open_judge("", siglip), ClipJudge)
    assert isinstance(open_judge(vilt, clip), TransformersQuestionJudge)
    assert isinstance(open_question_judge(llava), TransformersQuestionJudge)


def test_an_address_is_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHER_KEY", "sk-secret")
    judge = open_judge(f"{URL}#watcher", "unused")
    assert isinstance(judge, VisionEndpointJudge) and judge.name == "watcher at http://127.0.0.1:9"
    told = Endpoint(url=URL, model="looker", key_env="WATCHER_KEY", timeout_seconds=5)
    asked = open_question_judge("", told)
    assert isinstance(asked, VisionEndpointJudge) and asked.name == "looker at http://127.0.0.1:9"
    assert "sk-secret" not in repr(told) + repr(asked)
    assert isinstance(open_question_judge(URL, told), VisionEndpointJudge)  # the model of the table


def test_no_question_judge_is_none() -> None:
    assert open_question_judge("") is None
    assert open_question_judge("", Endpoint()) is None


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("/nowhere/at/all", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("nobody/has-this", "cannot be read from the hub"),
        ("", "no judge is named"),
        (URL, "no model is named"),
        ("http://#watcher", "no http address"),
    ],
)
def test_what_is_no_judge_is_told_in_one_line(named: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_judge(named, "")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "it is a LlamaForCausalLM"),
        ({"model_type": "bert"}, "it is of the type bert"),
        ({"_class_name": "AutoencoderKL"}, "it is a AutoencoderKL of diffusers"),
        ({"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip"}, "it is a CLIPVisionModelWithProjection"),
        ({"architectures": None, "model_type": None}, "of a kind that its config.json does not name"),
        ({}, "of a kind that its config.json does not name"),
    ],
)
def test_another_kind_of_model(config: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        open_judge(str(tmp_path), "")
    assert said in str(caught.value) and "name a CLIP or SigLIP" in str(caught.value)


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHER_KEY", raising=False)
    with pytest.raises(ModelError, match="the environment variable WATCHER_KEY"):
        open_question_judge("", Endpoint(url=URL, model="m", key_env="WATCHER_KEY"))
