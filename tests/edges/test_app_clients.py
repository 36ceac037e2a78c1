"""The real clients of three wire formats: each gets the same bytes for the same seed and parameters."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import small_studio
import webuiapi
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from small_studio import Serving
from tiny import SIDE, drawing
from waiting import until

NUMBERS: dict[str, Any] = {"seed": 11, "guidance_scale": 2.5, "negative_prompt": "a dog"}


@pytest.fixture(scope="module")
def serving(tiny_base: Path) -> Iterator[Serving]:
    with small_studio.serving(tiny_base) as found:
        yield found


@pytest.fixture(scope="module")
def ours(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def hub(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # its requests go to this machine alone
    return InferenceClient(model=serving.url)


@pytest.fixture(scope="module")
def webui(serving: Serving) -> webuiapi.WebUIApi:
    host, port = serving.url.removeprefix("http://").split(":")
    return webuiapi.WebUIApi(host=host, port=int(port), sampler="DDIM", steps=2)


def _pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


def _decoded(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_same_seed_and_parameters_give_the_same_png_bytes_through_every_wire(serving: Serving, ours: openai.OpenAI) -> None:
    client, told = serving.client, NUMBERS | {"num_inference_steps": 2}
    made = ours.images.generate(prompt="a cat", size="32x32", extra_body=told | {"sampler": "DDIM"})
    assert made.data and made.data[0].b64_json
    wanted = base64.b64decode(made.data[0].b64_json)
    link = ours.images.generate(prompt="a cat", response_format="url", extra_body=told).data
    assert link and httpx.get(link[0].url or "", trust_env=False).content == wanted
    stream = ours.images.generate(prompt="a cat", stream=True, partial_images=1, extra_body=told)
    events = list(stream)
    assert [e.type for e in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert base64.b64decode(events[-1].b64_json) == wanted
    hub = {"inputs": "a cat", "parameters": told | {"scheduler": "DDIMScheduler"}}
    for path in ("/", "/predict", "/models/tiny"):
        assert client.post(path, json=hub).content == wanted
    assert base64.b64decode(client.post("/", json=hub, headers={"Accept": "application/json"}).json()) == wanted
    several = client.post("/", json={"instances": ["a cat", {"prompt": "a cat"}], "parameters": told}).json()["predictions"]
    assert [base64.b64decode(p) for p in several] == [wanted] * 2
    body = {"prompt": "a cat", "negative_prompt": "a dog", "seed": 11, "cfg_scale": 2.5, "steps": 2, "sampler_name": "DDIM"}
    images = client.post("/sdapi/v1/txt2img", json=body | {"width": 32, "height": 32, "scheduler": "automatic"}).json()[
        "images"
    ]
    assert base64.b64decode(images[0]) == wanted


def test_the_same_pixels_come_out_of_every_client_as_it_is(
    ours: openai.OpenAI, hub: InferenceClient, webui: webuiapi.WebUIApi
) -> None:
    made = ours.images.generate(prompt="a cat", extra_body=NUMBERS | {"steps": 2}).data
    wanted = _pixels(_decoded(made[0].b64_json if made else ""))
    assert _pixels(hub.text_to_image("a cat", num_inference_steps=2, scheduler="DDIMScheduler", **NUMBERS)) == wanted
    words = {"prompt": "a cat", "negative_prompt": "a dog", "seed": 11, "cfg_scale": 2.5, "width": SIDE, "height": SIDE}
    assert _pixels(webui.txt2img(**words).image) == wanted


def test_a_picture_painted_anew_is_the_same_through_every_client(
    serving: Serving, ours: openai.OpenAI, hub: InferenceClient, webui: webuiapi.WebUIApi
) -> None:
    begun = drawing("round", "red", (SIDE, SIDE))
    told = {"seed": 11, "strength": 0.5, "steps": 4}
    made = ours.images.edit(image=_png(begun), prompt="a cat", extra_body=told | {"guidance_scale": 2.5}).data
    wanted = _pixels(_decoded(made[0].b64_json if made else ""))
    lists = ours.images.edit(image=[("a.png", _png(begun))], prompt="a cat", extra_body=told | {"guidance_scale": 2.5}).data
    assert lists and _pixels(_decoded(lists[0].b64_json)) == wanted
    parameters: dict[str, Any] = {
        "prompt": "a cat",
        "guidance_scale": 2.5,
        "num_inference_steps": 4,
        "seed": 11,
        "strength": 0.5,
    }
    assert _pixels(hub.image_to_image(_png(begun), **parameters)) == wanted
    sent = {"images": [begun], "prompt": "a cat", "seed": 11, "cfg_scale": 2.5, "steps": 4, "denoising_strength": 0.5}
    assert _pixels(webui.img2img(**sent, width=SIDE, height=SIDE).image) == wanted
    raw = hub.image_to_image(_png(begun))  # no parameters: the bytes alone, without a content type
    assert raw.size == (SIDE, SIDE) and serving.studio.painted[-1].prompt == ""


def test_the_openai_client_lists_models_and_understands_refusals(ours: openai.OpenAI) -> None:
    assert [m.id for m in ours.models.list()] == ["tiny", "stock"] and ours.models.retrieve("tiny").owned_by == "dovetail"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        ours.images.generate(model="dall-e-3", prompt="a cat")
    with pytest.raises(openai.BadRequestError, match="size must be") as caught:
        ours.images.generate(model="tiny", prompt="a cat", size="1024x1024")
    assert caught.value.param == "size" and caught.value.code == "invalid_size" and caught.value.request_id
    with pytest.raises(openai.APIError, match="painting failed"):
        list(ours.images.generate(prompt="fail", stream=True))


def test_the_hub_client_reads_a_refusal_and_a_parameter_that_is_not_known_is_one(
    hub: InferenceClient, serving: Serving
) -> None:
    with pytest.raises(HfHubHTTPError, match="not possible"):
        hub.text_to_image("a cat", width=1024, height=1024)
    with pytest.raises(HfHubHTTPError, match=r"parameters.lora: Extra inputs"):
        hub.text_to_image("a cat", extra_body={"lora": "x"})
    with pytest.raises(HfHubHTTPError, match="'other' is not served here"):
        InferenceClient(model=f"{serving.url}/models/other").text_to_image("a cat")
    url = {"inputs": "http://127.0.0.1/x.png", "parameters": {"prompt": "a cat"}}
    answer = serving.client.post("/", json=url)
    assert answer.status_code == 400 and "not fetched" in answer.json()["error"]
    assert serving.client.post("/", json={"inputs": "a cat"}, headers={"Accept": "text/html"}).status_code == 406
    listed = {"Accept": "image/webp;q=0.9, image/png, */*;q=0.1"}
    assert serving.client.post("/", json={"inputs": "a cat"}, headers=listed).headers["content-type"] == "image/png"
    for content, kind in (
        (b"", ""),
        (b"text", "text/plain"),
        (b"{}", ""),
        (b"{}", "application/json"),
        (b"[1", "application/json"),
    ):
        refused = serving.client.post("/predict", content=content, headers={"Content-Type": kind} if kind else {})
        assert refused.status_code == 400 and isinstance(refused.json()["error"], str)


def test_the_web_uis_client_gets_several_pictures_and_what_they_were_made_with(
    webui: webuiapi.WebUIApi, serving: Serving
) -> None:
    made = webui.txt2img(prompt="a cat", seed=20, batch_size=2, n_iter=2, width=64, height=16)
    assert [i.size for i in made.images] == [(64, 16)] * 4 and made.info["all_seeds"] == [20, 21, 22, 23]
    assert made.info["infotexts"][1].startswith(
        "a cat\nSteps: 2, Sampler: ddim, CFG scale: 7, Seed: 21, Size: 64x16, Model hash"
    )
    assert made.parameters["seed"] == 20 and made.parameters["n_iter"] == 2
    found = serving.client.post("/sdapi/v1/png-info", json={"image": webuiapi.raw_b64_img(made.images[1])}).json()
    assert found["info"] == "a cat\nSteps: 2, Sampler: ddim, CFG scale: 7, Seed: 21, Model: tiny, Version: v1"
    assert found["items"]["seed"] == "21"


def test_the_web_uis_client_finds_its_lists_and_sets_its_options(webui: webuiapi.WebUIApi, serving: Serving) -> None:
    assert [m["model_name"] for m in webui.get_sd_models()] == ["tiny", "stock"] and webui.get_sd_models()[0][
        "hash"
    ] == "d" * 10
    assert [s["name"] for s in webui.get_samplers()] == ["ddim", "euler"] and webui.get_loras() == []
    empty = (
        webui.get_sd_vae(),
        webui.get_hypernetworks(),
        webui.get_face_restorers(),
        webui.get_prompt_styles(),
        webui.get_embeddings(),
    )
    assert empty == ([], [], [], [], {"loaded": {}, "skipped": {}})
    assert [u["name"] for u in webui.get_upscalers()] == ["None"] and webui.get_latent_upscale_modes() == []
    assert webui.get_scripts() == {"txt2img": [], "img2img": []} and webui.get_cmd_flags() == {} and webui.get_memory()
    assert webui.refresh_checkpoints() is None and webui.get_options()["sd_model_checkpoint"] == f"tiny [{'d' * 10}]"
    assert {s["name"] for s in webui.get_schedulers()} == {"automatic"}
    webui.util_set_model("stock")
    try:
        webui.txt2img(prompt="a cat", width=SIDE, height=SIDE)
        assert serving.studio.painted[-1].model == "stock" and webui.util_get_current_model() == "stock"
    finally:
        webui.set_options({"sd_model_checkpoint": f"tiny [{'d' * 10}]"})
    for wanted in (
        {"enable_hr": True},
        {"tiling": True},
        {"styles": ["x"]},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
    ):
        with pytest.raises(RuntimeError, match="not offered here"):
            webui.txt2img(prompt="a cat", width=SIDE, height=SIDE, **wanted)
    with pytest.raises(RuntimeError, match="mask is not offered"):
        webui.img2img(images=[drawing("round", "red")], mask_image=drawing("plain", "red"), prompt="a cat")


def test_progress_is_told_and_interrupt_gives_what_is_done_and_frees_the_painter(
    webui: webuiapi.WebUIApi, serving: Serving
) -> None:
    studio, made = serving.studio, list[webuiapi.WebUIApiResult]()
    assert webui.get_progress()["state"]["job_count"] == 0
    webui.set_options({"live_previews_enable": True})
    beside = serving.ask(seed=1)
    studio.stops_at = len(studio.painted) + 1, 6
    ask = threading.Thread(
        target=lambda: made.append(webui.txt2img(prompt="a cat", n_iter=3, steps=50, width=SIDE, height=SIDE))
    )
    ask.start()
    try:
        until(lambda: not studio.open.is_set())
        told = webui.get_progress()
        shown = serving.client.get("/sdapi/v1/progress", params={"skip_current_image": False}).json()["current_image"]
        assert 0.3 < told["progress"] < 1 and told["state"]["job_count"] == 3 and told["eta_relative"] > 0
        assert _decoded(shown).size == (SIDE, SIDE) and told["state"]["sampling_steps"] == 50
        assert webui.interrupt() == {}
        until(lambda: not studio.under_way())
    finally:
        studio.open.set()
        ask.join()
        webui.set_options({"live_previews_enable": False})
    finished = json.loads(made[0].json["info"]) if isinstance(made[0].json, dict) else made[0].info
    assert finished["all_seeds"] and len(made[0].images) >= len(finished["all_seeds"]) and beside.status_code == 200
    assert webui.get_progress()["progress"] == 0 and webui.skip() == {}
