"""More or less of a model's LoRA through every wire: the same bytes, the same refusals; and back from a picture."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answering import answering

from dovetail.core import prompts
from dovetail.edges import pixels
from dovetail.engines.revisions import Revision
from dovetail.engines.studio import Studio
from dovetail.stages import endpoint

ASKED = {"prompt": "a cat", "seed": 5}


@pytest.fixture(scope="module")
def client(by_engine: Callable[[str], Revision], tiny_base: Path) -> Iterator[httpx.Client]:
    """Of a model with a LoRA, and beside it the base, which has none."""
    studio = Studio(by_engine("torch"), {"base": endpoint.opened(tiny_base, "base", "base", "torch")})
    with answering(studio, 2, tags=prompts.tags) as made:
        yield made


def openai(client: httpx.Client, **more: Any) -> bytes:
    answer = client.post("/v1/images/generations", json=ASKED | more)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def webui(client: httpx.Client, prompt: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": prompt, "seed": 5} | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()) | {"png": base64.b64decode(answer.json()["images"][0])}


def test_each_wire_says_it_in_its_own_way_and_gets_the_same_bytes(client: httpx.Client) -> None:
    half, whole = openai(client, lora_scale=0.5), openai(client)
    assert half != whole and openai(client, lora_scale=1) == whole and openai(client, lora_scale=0) not in (half, whole)
    for told in ({"lora_scale": 0.5}, {"cross_attention_kwargs": {"scale": 0.5}}):
        assert client.post("/", json={"inputs": "a cat", "parameters": {"seed": 5} | told}).content == half
    for prompt in ("a cat <lora:tuned:0.5>", "<lora:tuned:0.5> a cat", "a<lora:tuned:.5> cat"):
        assert webui(client, prompt)["png"] == half
    assert webui(client, "a cat <lora:tuned>")["png"] == webui(client, "a cat")["png"] == whole


def test_a_picture_of_a_picture_has_it_too(client: httpx.Client) -> None:
    begun, told = openai(client), {"strength": 0.6, "seed": 5, "prompt": "a cat"}
    answers = [
        client.post("/v1/images/edits", data=told | more, files={"image": begun}).json()["data"][0]["b64_json"]
        for more in ({"lora_scale": 0.5}, {})
    ]
    sent = {"init_images": [base64.b64encode(begun).decode()], "denoising_strength": 0.6, "seed": 5}
    again = client.post("/sdapi/v1/img2img", json=sent | {"prompt": "a cat <lora:tuned:0.5>"}).json()["images"][0]
    assert again == answers[0] != answers[1]


def test_what_the_web_ui_is_told_leads_to_the_same_picture(client: httpx.Client) -> None:
    made = webui(client, "a cat <lora:tuned:0.5>", negative_prompt="<lora:tuned:0.5> is text here")
    info = json.loads(made["info"])
    shown = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(made["png"]).decode()}).json()
    assert info["prompt"] == info["all_prompts"][0] == shown["info"].split("\n")[0] == "a cat <lora:tuned:0.5>"
    assert info["infotexts"][0].startswith("a cat <lora:tuned:0.5>\nNegative prompt: <lora:tuned:0.5> is text here\n")
    assert shown["items"]["prompt"] == "a cat" and shown["items"]["lora_scale"] == "0.5"
    assert webui(client, info["prompt"], negative_prompt=info["negative_prompt"])["png"] == made["png"]
    assert json.loads(webui(client, "a cat")["info"])["prompt"] == "a cat"


def test_a_picture_is_painted_again_at_its_scale(client: httpx.Client) -> None:
    half = openai(client, lora_scale=0.45)
    answer = client.post("/reproduce", content=half).json()
    assert answer["same"] and base64.b64decode(answer["b64_json"]) == half and pixels.texts(half)["lora_scale"] == "0.45"
    base = openai(client, model="base")
    assert client.post("/reproduce", content=base).json()["same"] and "lora_scale" not in pixels.texts(base)


@pytest.mark.parametrize(
    ("path", "body", "param", "why"),
    [
        ("/v1/images/generations", {"lora_scale": 2.5}, "lora_scale", "less than or equal to 2"),
        ("/v1/images/generations", {"lora_scale": "half"}, "lora_scale", "valid number"),
        ("/v1/images/generations", {"lora_scale": 0.5, "model": "base"}, "lora_scale", "base was not tuned with a LoRA"),
        ("/", {"inputs": "a cat", "parameters": {"lora_scale": -1}}, "", "lora_scale"),
        ("/", {"inputs": "a cat", "parameters": {"cross_attention_kwargs": {"scale": 9}}}, "", "scale"),
        ("/", {"inputs": "a cat", "parameters": {"cross_attention_kwargs": {"gate": 1}}}, "", "gate"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:other:1>"}, "", "'other' is not offered here; there is <lora:tuned:SCALE>"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:tuned:0.5:0.7>"}, "", "one number from 0 to 2"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:tuned:2.1>"}, "", "one number from 0 to 2"),
        ("/sdapi/v1/txt2img", {"prompt": "<lora:tuned:1> a <lora:tuned:1>"}, "", "can be one <lora:tuned:SCALE>"),
        (
            "/sdapi/v1/txt2img", {"prompt": "<lora:tuned:1>", "override_settings": {"sd_model_checkpoint": "base"}}, "",
            "for tuned alone",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, why: str
) -> None:
    answer = client.post(path, json=(ASKED if path.startswith("/v1") else {}) | body)
    told = answer.json()["error"] if path.startswith("/v1") else answer.json()
    said = told["message"] if path.startswith("/v1") else told.get("detail") or told["error"]
    assert answer.status_code in (400, 422) and why in said and "\n" not in said
    assert not param or told["param"] == param


def test_where_there_is_none_the_web_ui_says_so(tiny_base: Path) -> None:
    from small_studio import serving

    with serving(tiny_base, tags=prompts.tags) as stock:
        answer = stock.client.post("/sdapi/v1/txt2img", json={"prompt": "a cat <lora:tiny:1>"})
        assert answer.status_code == 400 and answer.json()["detail"].endswith("'tiny' is not offered here; there is none")
        assert stock.client.get("/sdapi/v1/loras").json() == [] and not stock.client.get("/v1/models").json()["data"][0]["lora"]


def test_it_is_said_what_there_is(client: httpx.Client) -> None:
    tuned, base = client.get("/v1/models").json()["data"]
    assert tuned["lora"] is True and "lora" not in base
    assert [lora["name"] for lora in client.get("/sdapi/v1/loras").json()] == ["tuned"]
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "0.6" in json.dumps(schemas["Generation"]["properties"]["lora_scale"])
    assert "lora_scale" in schemas["Edit"]["properties"]
