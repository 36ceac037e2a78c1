"""Which judge a configuration names: the embedded one, a CLIP, an answerer of questions, or an endpoint."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.errors import ModelError
from dovetail.evaluation import model_kinds

if TYPE_CHECKING:
    from dovetail.evaluation.judges import ImageEncoder, Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a vision model answers, as [evaluation] tells it. The key itself is in the environment only."""

    url: str = ""
    model: str = ""
    key_env: str = ""  # name of the environment variable that holds the key; empty: no key is sent
    timeout_seconds: float = 60.0


def open_judge(named: str, own: str, endpoint: Endpoint | None = None) -> "Judge":
    """The judge of [evaluation] judge: a folder or hub id, `http://host/v1#model`, or, where it is empty, the base's `own`.

    What it is, its `config.json` tells. Raises ModelError in one line where it is no judge.
    """
    place = named or own
    if place.startswith(("http://", "https://")):
        url, _, model = place.partition("#")
        told = endpoint or Endpoint()
        return _open_endpoint(
            Endpoint(url=url, model=model or told.model, key_env=told.key_env, timeout_seconds=told.timeout_seconds)
        )
    kind = model_kinds.kind_of(place, model_kinds.config_of(place))
    if kind == "embedded":
        embedded: Judge = _open_embedded(place)
        return embedded
    if kind == "clip":
        from dovetail.evaluation.clip_judge import ClipJudge

        return ClipJudge(place)
    from dovetail.evaluation.vision_questions import TransformersQuestionJudge

    return TransformersQuestionJudge(place)


def open_question_judge(named: str, endpoint: Endpoint | None = None) -> "Judge | None":
    """The judge of [evaluation] question_judge, else the one at the endpoint, else none: then no questions are asked."""
    if named:
        return open_judge(named, "", endpoint)
    return _open_endpoint(endpoint) if endpoint is not None and endpoint.url else None


def embedded_encoder() -> "ImageEncoder":
    """The embedded base's judge, for its picture side: for likeness, copies and variety where the judge embeds nothing."""
    from dovetail.evaluation.judges import ImageEncoder

    judge = open_judge("", str(Path(__file__).parents[1] / "base" / "judge"))
    assert isinstance(judge, ImageEncoder)
    return judge


def _open_embedded(folder: str) -> Any:
    from dovetail.evaluation.embedded_judge import EmbeddedJudge

    return EmbeddedJudge(folder)


def _open_endpoint(endpoint: Endpoint) -> "Judge":
    from dovetail.evaluation.vision_endpoint import VisionEndpointJudge

    key = os.environ.get(endpoint.key_env, "") if endpoint.key_env else ""
    if endpoint.key_env and not key:
        raise ModelError(
            f"the environment variable {endpoint.key_env}, which [evaluation] vision_key_env names, is not set",
            do="set it to the key of the vision endpoint, or leave vision_key_env out",
        )
    return VisionEndpointJudge(endpoint.url, endpoint.model, key, endpoint.timeout_seconds)
