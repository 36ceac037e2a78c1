"""What a folder or hub id holds, read from its `config.json` before anything large is loaded."""

import json
from pathlib import Path
from typing import Any, Literal

from dovetail.errors import ModelError, first_line

Kind = Literal["embedded", "clip", "question", "answers"]  # answers: a classifier or decoder of short answers (ViLT, BLIP)

CLIP_TYPES = ("clip", "siglip", "siglip2")
ANSWER_TYPES = ("vilt", "blip")
NAME_WHAT = "name a CLIP or SigLIP, a model that answers questions about pictures, or http://host/v1#model"


def config_of(place: str, *, do: str = NAME_WHAT) -> dict[str, Any]:
    """The `config.json` of a local folder or a hub id; ModelError in one line where there is none."""
    if not place.strip():
        raise ModelError("no judge is named", do=do)
    folder = Path(place).expanduser()
    if not folder.exists() and not _may_be_hub_id(place):
        raise ModelError(f"there is no folder {place}", do=do)
    file = folder / "config.json" if folder.exists() else _from_hub(place, do)
    if not file.is_file():
        raise ModelError(f"{place} is no judge: {_without_config(folder)}", do=do)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{place}/config.json cannot be read: {first_line(error)}", do="download the model again") from error
    if not isinstance(told, dict):
        raise ModelError(f"{place}/config.json is no table of keys", do="download the model again")
    return told


def kind_of(place: str, config: dict[str, Any]) -> Kind:
    """How a model can judge; ModelError that says what it is where it cannot."""
    model_type, architectures = str(config.get("model_type", "")), [str(a) for a in config.get("architectures") or ()]
    if str(config.get("format", "")).startswith("dovetail-judge"):
        return "embedded"
    if model_type in CLIP_TYPES and not any(a.endswith(_HALVES) for a in architectures):
        return "clip"
    if model_type in ANSWER_TYPES and any("QuestionAnswering" in a for a in architectures):
        return "answers"
    if model_type not in ANSWER_TYPES and model_type in _question_types():
        return "question"
    raise ModelError(f"{place} is no judge: it is {described(config)}", do=NAME_WHAT)


def described(config: dict[str, Any]) -> str:
    """What a `config.json` says that its model is: "a UNet2DConditionModel of diffusers", "a CLIPTextModel"."""
    if name := config.get("_class_name"):
        return f"a {name} of diffusers"
    architectures = config.get("architectures") or ()
    if architectures:
        return f"a {architectures[0]}"
    return f"of the type {config['model_type']}" if config.get("model_type") else "of a kind that its config.json does not name"


_HALVES = ("TextModel", "TextModelWithProjection", "VisionModel", "VisionModelWithProjection", "ForImageClassification")


def _may_be_hub_id(place: str) -> bool:
    return place.count("/") <= 1 and not place.startswith((".", "/", "~")) and bool(place.strip("/"))


def _without_config(folder: Path) -> str:
    if folder.is_file():
        return "it is a file, not a folder"
    if not any(folder.iterdir()):
        return "the folder is empty"
    if (folder / "model_index.json").exists():
        return "it is a whole diffusers pipeline"
    return "the folder has no config.json"


def _from_hub(place: str, do: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, "config.json"))
    except Exception as error:  # offline, unknown, gated: a dozen classes
        raise ModelError(f"{place} is no folder here and cannot be read from the hub: {first_line(error)}", do=do) from error


def _question_types() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
