"""The endpoint over a real socket: OpenAI's wire format, what can be read, refusals, metrics, the page."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import small_studio
from PIL import Image
from small_studio import Serving
from starlette.requests import Request
from tiny import SIDE, drawing
from waiting import CEILING, until

from dovetail.edges import app as web
from dovetail.edges.app import intake, pictures, streams, waiting
from dovetail.errors import EndpointError
from dovetail.wishes import Caller, Ticket


@pytest.fixture(scope="module")
def serving(tiny_base: Path) -> Iterator[Serving]:
    with small_studio.serving(tiny_base) as found:
        yield found


@pytest.fixture(scope="module")
def client(serving: Serving) -> httpx.Client:
    return serving.client


def _picture(entry: dict[str, Any]) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def _file(size: tuple[int, int] = (48, 40)) -> bytes:
    buffer = io.BytesIO()
    drawing("round", "red", size).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_prompt_gets_a_picture_of_the_models_size_that_tells_how_it_was_made(serving: Serving) -> None:
    answer = serving.ask(seed=7, negative_prompt="a dog", guidance_scale=2.5)
    assert answer.status_code == 200 and answer.headers["x-dovetail-version"] == "v1"
    assert answer.headers["x-dovetail-model-digest"] == "d" * 64 and "x-dovetail-degraded" not in answer.headers
    body = answer.json()
    picture = _picture(body["data"][0])
    assert picture.size == (SIDE, SIDE) and picture.format == "PNG" and abs(body["created"] - time.time()) < 60
    told = {"prompt": "a cat", "negative_prompt": "a dog", "seed": "7", "steps": "2", "guidance_scale": "2.5", "version": "v1"}
    assert told.items() <= picture.text.items()
    beside = {"seed": 7, "model": "tiny", "version": "v1", "digest": "d" * 64, "steps": 2, "sampler": "ddim", "degraded": None}
    assert beside.items() <= body["data"][0].items()


def test_the_same_seed_gives_the_same_bytes_and_no_seed_another_picture_each_time(serving: Serving) -> None:
    first, again, other = (serving.ask(**body).json()["data"][0] for body in ({"seed": 7}, {"seed": 7}, {}))
    assert (
        first == again and other["b64_json"] != first["b64_json"] and other["seed"] != serving.ask().json()["data"][0]["seed"]
    )


def test_what_is_not_said_takes_the_endpoints_defaults(client: httpx.Client) -> None:
    told = _picture(client.post("/v1/images/generations", json={"prompt": "a cat", "seed": 1}).json()["data"][0]).text
    assert (told["steps"], told["guidance_scale"]) == ("2", "3")


def test_several_pictures_have_seeds_in_a_row_and_each_is_the_one_of_its_seed(serving: Serving) -> None:
    data = serving.ask(n=3, seed=20).json()["data"]
    assert [d["seed"] for d in data] == [20, 21, 22] and len({d["b64_json"] for d in data}) == 3
    assert serving.ask(seed=21).json()["data"][0]["b64_json"] == data[1]["b64_json"]


def test_a_picture_asked_for_as_url_is_fetched_from_there_while_it_is_kept(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = serving.ask(seed=7, response_format="url").json()["data"][0]
    assert "b64_json" not in entry
    fetched = serving.client.get(entry["url"])
    assert fetched.headers["content-type"] == "image/png"
    assert base64.b64encode(fetched.content).decode() == serving.ask(seed=7).json()["data"][0]["b64_json"]
    monkeypatch.setattr(pictures, "KEPT", 2)
    urls = [d["url"] for d in serving.ask(n=3, steps=1, response_format="url").json()["data"]]
    assert [serving.client.get(u).status_code for u in urls] == [404, 200, 200]


@pytest.mark.parametrize(
    "body",
    [
        {"size": "auto"}, {"size": f"{SIDE}x{SIDE}"}, {"size": None}, {"model": "tiny"}, {"model": "tiny@v1"}, {"model": ""},
        {"model": "stock"}, {"user": "me", "quality": "hd", "background": None}, {"steps": 2.0}, {"sampler": "Euler"},
        {"num_inference_steps": 1, "steps": None},
    ],
)  # fmt: skip
def test_sizes_names_and_unknown_fields_that_clients_send_are_taken(serving: Serving, body: dict[str, Any]) -> None:
    assert serving.ask(**body).status_code == 200


def test_any_size_that_the_model_can_take_is_painted(serving: Serving) -> None:
    body = serving.ask(size="64x16").json()
    assert _picture(body["data"][0]).size == (64, 16) and body["size"] == "64x16"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": "x" * 4001}, "prompt"), ({"n": 0}, "n"),
        ({"n": 11}, "n"), ({"n": "2"}, "n"), ({"steps": 0}, "steps"), ({"steps": 151}, "steps"), ({"seed": -1}, "seed"),
        ({"guidance_scale": 0.5}, "guidance_scale"), ({"seed": 2**63}, "seed"), ({"size": "12x12"}, "size"),
        ({"size": "128x128"}, "size"), ({"size": "0x0"}, "size"), ({"size": "big"}, "size"),
        ({"partial_images": 4}, "partial_images"),
        ({"response_format": "jpeg"}, "response_format"), ({"output_format": "webp"}, "output_format"),
        ({"sampler": "magic"}, "sampler"), ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"prompt": "wishful"}, "guidance_scale"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_parameter_in_openais_shape(
    serving: Serving, body: dict[str, Any], param: str
) -> None:
    answer = serving.ask(**body)
    fault = answer.json()["error"]
    assert answer.status_code == 400 and fault["type"] == "invalid_request_error" and fault["param"] == param
    assert fault.keys() == {"message", "type", "param", "code"} and param in fault["message"] and fault["code"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b'{"prompt": "\\ud800"}', b"\xff\xfe", b"[" * 40, b"[],0" * 30000]
)
def test_a_body_that_is_no_request_is_refused_in_openais_shape(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_and_another_address_are_not_found(serving: Serving) -> None:
    answer = serving.ask(model="dall-e-3")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert "'dall-e-3' is not served here" in answer.json()["error"]["message"]
    nothing = serving.client.get("/v1/nothing")
    assert nothing.status_code == 404 and nothing.json()["error"]["message"] == "Not Found"
    assert serving.client.get("/v1/images/generations").status_code == 405


def test_a_picture_is_painted_anew_in_its_own_shape_and_strength_says_how_much(client: httpx.Client) -> None:
    def edited(strength: float, field: str = "image", **more: str) -> httpx.Response:
        data = {"prompt": "a cat", "seed": "3", "steps": "4", "strength": str(strength), "n": ""} | more
        return client.post("/v1/images/edits", data=data, files={field: ("../x.png", _file((96, 48)), "image/png")})

    little, much, again = edited(0.25), edited(1.0), edited(0.25, "image[]", size="48x24")
    assert _picture(little.json()["data"][0]).size == (48, 24)
    assert little.json()["data"] == again.json()["data"] != much.json()["data"]
    mask = {"image": _file(), "mask": _file()}
    for files, param in (
        (mask, "mask"),
        ({"image": b"text"}, "image"),
        ({"none": b""}, "image"),
        ({"image": b"\x89PNG\r\n\x1a\nx"}, "image"),
    ):
        refused = client.post("/v1/images/edits", data={"prompt": "a cat"}, files=files)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def _events(text: str) -> list[tuple[str, Any]]:
    blocks = [b.split("\n") for b in text.split("\n\n") if b.startswith("event:")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_stream_shows_pictures_on_the_way_then_the_same_picture_as_without(serving: Serving) -> None:
    answer = serving.ask(seed=7, stream=True, partial_images=2, steps=3)
    events = _events(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.text.endswith("data: [DONE]\n\n")
    partial, done = "image_generation.partial_image", "image_generation.completed"
    assert [n for n, _ in events] == [partial, partial, done] and [e["type"] for _, e in events] == [partial, partial, done]
    assert [e.get("partial_image_index") for _, e in events] == [0, 1, None] and _picture(events[0][1]).size == (SIDE, SIDE)
    assert events[2][1]["b64_json"] == serving.ask(seed=7, steps=3).json()["data"][0]["b64_json"]
    several = _events(serving.ask(seed=7, stream=True, n=2).text)
    assert [(n, e["index"], e["seed"]) for n, e in several] == [(done, 0, 7), (done, 1, 8)]


def test_a_stream_that_waits_stays_alive_and_tells_a_fault(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.02)
    serving.studio.open.clear()
    try:
        with serving.client.stream("POST", "/v1/images/generations", json={"prompt": "fail", "stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": keep-alive"
            serving.studio.open.set()
            rest = "\n".join(lines)
    finally:
        serving.studio.open.set()
    ((name, data),) = _events(rest[rest.index("event") :] + "\n\n")
    assert name == "error" and data["error"]["message"] == "painting failed: RuntimeError" and "secret" not in rest
    assert serving.ask(stream=True, prompt="wishful").status_code == 400


def test_health_models_licence_and_page_answer(client: httpx.Client, serving: Serving) -> None:
    state = {"model": "tiny", "version": "v1", "digest": "d" * 64}
    assert client.get("/health").json() == {"status": "ok"} | state and client.get("/ready").json()["status"] == "ready"
    models = client.get("/v1/models").json()["data"]
    assert [m["id"] for m in models] == ["tiny", "stock"] and models[0]["samplers"] == ["ddim", "euler"]
    assert client.get("/v1/models/tiny").json() == models[0] and client.get("/v1/models/none").status_code == 404
    assert client.get("/license").text == "Apache License\n\nRestrictions of use\n\nNo harm.\n"
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "/v1/images/generations" in page.text
    assert "https://" not in page.text and "http://" not in page.text
    assert "/v1/images/generations" in client.get("/openapi.json").json()["paths"]


def test_an_answer_on_a_kept_connection_does_not_wait_for_a_delayed_acknowledgement(client: httpx.Client) -> None:
    taken = []
    for _ in range(21):
        started = time.perf_counter()
        client.get("/health")
        taken.append(time.perf_counter() - started)
    # The first few are acknowledged at once; of the rest not one is quick where all wait.
    assert min(taken[-8:]) < 0.03, "TCP_NODELAY is not set: every answer waits 40 ms"


def _figures(client: httpx.Client) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_count_pictures_and_answers_by_status(serving: Serving) -> None:
    painted, refused = 'dovetail_pictures_total{version="v1"}', 'dovetail_http_answers_total{status="400",wire="openai"}'
    before = _figures(serving.client)
    serving.ask(n=2)
    serving.ask(n=99)
    serving.ask(size="1x1")
    until(lambda: _figures(serving.client)[painted] == before.get(painted, 0) + 2)
    assert _figures(serving.client)[refused] == before.get(refused, 0) + 2


def test_the_sides_of_a_picture_to_paint_anew_keep_its_shape_within_what_can_be_painted(serving: Serving) -> None:
    served = serving.studio.served
    assert intake.near(served, 64, 64) == (SIDE, SIDE) and intake.near(served, 30, 60) == (24, 48)
    for shape in ((10000, 1), (1, 10000), (3, 5000), (7, 8)):
        width, height = intake.near(served, *shape)
        assert width % 8 == height % 8 == 0 and width * height <= served.most_pixels
        assert width == height or (width > height) == (shape[0] > shape[1])


def test_a_taken_port_and_a_foreign_address_are_said_with_a_next_step() -> None:
    said = r"cannot listen on 127.0.0.1:\d+: .*; choose another with --port"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EndpointError, match=said):
        web.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(EndpointError, match=r"cannot listen on 192\.0\.2\.1"):
        web.bind("192.0.2.1", 0)


def test_a_request_that_is_cancelled_while_it_is_taken_in_leaves_no_work_behind(tiny_base: Path) -> None:
    """Ray Serve cancels what a client does not wait for; uvicorn only says so."""
    entered, go_on, taken = threading.Event(), threading.Event(), list[Ticket]()

    class Slow(small_studio.SmallStudio):
        def submit(self, wanted: Any, caller: Caller) -> list[Ticket]:
            entered.set()
            go_on.wait(CEILING)
            taken.extend(Ticket(wish, caller) for wish in wanted)
            return taken

    async def cancelled() -> None:
        door = intake.Door(studio=studio, steps=2, guidance_scale=3.0, named=lambda s, _: s, check=lambda _: None)
        request = Request({"type": "http", "headers": [], "state": {"key": "", "request_id": ""}})
        asking = asyncio.create_task(waiting.submitted(door, request, intake.Asked(prompt="a cat")))
        await asyncio.to_thread(entered.wait, CEILING)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        await asyncio.to_thread(until, lambda: taken and all(ticket.dropped for ticket in taken))

    studio = Slow(tiny_base)
    asyncio.run(cancelled())
    studio.stop()
