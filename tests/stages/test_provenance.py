"""From a served picture back to the pictures that its model learnt from; and the same picture painted again."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answering import answering
from conftest import Finished
from PIL import Image, PngImagePlugin

from dovetail import trace
from dovetail.edges import app as web
from dovetail.edges import pixels
from dovetail.edges.registry import Registry
from dovetail.engines.studio import Studio
from dovetail.errors import BadInputError
from dovetail.stages import endpoint


@pytest.fixture(scope="module")
def published(finished: Finished) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((finished.model.parent / "published.json").read_text())
    return told


@pytest.fixture(scope="module")
def client(finished: Finished, published: dict[str, Any]) -> Iterator[httpx.Client]:
    studio = Studio(endpoint.opened(finished.model, published["name"], published["version"], "torch"))
    with answering(studio, 3) as made:
        yield made


@pytest.fixture(scope="module")
def picture(client: httpx.Client) -> bytes:
    asked = {"prompt": "a cat (on red:1.3)", "seed": 11, "negative_prompt": "blue", "sampler": "unipc", "guidance_scale": 2.7}
    answer = client.post("/v1/images/generations", json=asked)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def said(png: bytes, **changed: str) -> bytes:
    """The same pixels with other text chunks."""
    told, held = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in (pixels.texts(png) | changed).items():
        told.add_itxt(name, text)
    Image.open(io.BytesIO(png)).save(held, "PNG", pnginfo=told)
    return held.getvalue()


def test_a_picture_is_painted_again_to_the_byte(client: httpx.Client, picture: bytes) -> None:
    answer = client.post("/reproduce", content=picture).json()
    assert answer["same"] and answer["why"] == "" and base64.b64decode(answer["b64_json"]) == picture
    assert (answer["seed"], answer["sampler"], answer["steps"]) == (11, "unipc", 3)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"digest": "0" * 64}, "another model"), ({"engine": "abacus"}, "another engine: it was painted by abacus"),
        ({"parameters": "mine"}, "its text was changed (parameters)"), ({"seed": "12"}, "its text was changed (parameters)"),
    ],
)  # fmt: skip
def test_it_says_why_the_bytes_differ(client: httpx.Client, picture: bytes, changed: dict[str, str], why: str) -> None:
    answer = client.post("/reproduce", content=said(picture, **changed)).json()
    assert not answer["same"] and answer["why"].startswith(why)


def test_other_pixels_below_the_same_words_are_found_out(client: httpx.Client, picture: bytes) -> None:
    held, told = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, text in pixels.texts(picture).items():
        told.add_itxt(name, text)
    Image.open(io.BytesIO(picture)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(held, "PNG", pnginfo=told)
    answer = client.post("/reproduce", content=held.getvalue()).json()
    assert not answer["same"] and answer["why"].startswith("its pixels")


@pytest.mark.parametrize("body", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_of_ours_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/reproduce", content=body)
    assert answer.status_code == 400 and answer.json()["error"]


def test_a_seed_that_is_no_number_is_refused(client: httpx.Client, picture: bytes) -> None:
    answer = client.post("/reproduce", content=said(picture, seed="twelve"))
    assert answer.status_code == 400 and "not numbers" in answer.json()["error"]


@pytest.mark.parametrize(
    "changed", [{"prompt": "a " * 4000}, {"steps": "1000000000"}, {"guidance_scale": "inf"}, {"seed": "-1"}, {"width": "99999"}]
)
def test_a_picture_that_asks_for_too_much_is_refused(client: httpx.Client, picture: bytes, changed: dict[str, str]) -> None:
    answer = client.post("/reproduce", content=said(picture, **changed))
    assert answer.status_code == 400 and answer.json()["error"]


def test_a_picture_leads_to_the_rows_that_its_model_learnt_from(
    finished: Finished, published: dict[str, Any], picture: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture)
    told = trace.lines(file, published["registry"])
    provenance = json.loads((finished.model / "provenance.json").read_text())
    learnt = [row for row in provenance["pictures"] if row["split"] == "train"]
    assert "'a cat (on red:1.3)', seed 11" in told[0] and published["version"] in told[1]
    assert not any(line.startswith("warning") for line in told)
    assert sum(row["sha256"][:12] in "\n".join(told) for row in learnt) == len(learnt) > 2
    assert all(any(row["caption"] in line and row["license"] in line for line in told) for row in learnt)


def test_a_trace_that_cannot_be_followed_says_so(picture: bytes, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture)
    with pytest.raises(BadInputError, match="is not in"):
        trace.lines(file, str(Registry(tmp_path / "empty").root))
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(BadInputError, match="does not say its prompt"):
        trace.lines(file)
    with pytest.raises(BadInputError, match="cannot read"):
        trace.lines(tmp_path / "none.png")


def test_the_log_has_a_line_for_each_answer_and_picture_and_no_prompt(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dovetail"):
        asked = {"prompt": "nobody's business", "seed": 1}
        client.post("/v1/images/generations", json=asked, headers={"x-request-id": "r-1"})
        client.get("/health")
    lines = [web.JsonLines().format(record) for record in caplog.records]
    told = [json.loads(line) for line in lines]
    painted = next(row for row in told if row["event"] == "painted")
    answered = next(row for row in told if row["event"] == "answered" and row["path"] == "/v1/images/generations")
    assert painted["request_id"] == answered["request_id"] == "r-1" and answered["status"] == 200 and painted["seed"] == 1
    assert painted["denoise_seconds"] > 0 and "business" not in "".join(lines)
