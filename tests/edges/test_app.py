"""The endpoint over a real socket: OpenAI's wire format, refusals, metrics, the page."""

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from tiny import SIDE

from dovetail.edges import app as web
from dovetail.errors import EndpointError
from dovetail.stages import endpoint


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> web.Engine:
    return endpoint.engine_of(tiny_base, "tiny", "v1")


@pytest.fixture(scope="module")
def serving(engine: web.Engine) -> Iterator[web.Server]:
    studio = web.Studio(engine)
    server = web.Server(web.build_app(studio, 2, 3.0), web.bind("127.0.0.1", 0))
    server.start()
    yield server
    server.stop()
    studio.stop()


@pytest.fixture(scope="module")
def client(serving: web.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving.url, timeout=60, trust_env=False) as found:
        yield found


def _ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/images/generations", json={"prompt": "a cat", "steps": 1} | body)


def _picture(entry: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def test_a_prompt_gets_a_picture_of_the_models_size_that_tells_how_it_was_made(client: httpx.Client) -> None:
    answer = _ask(client, seed=7, negative_prompt="a dog", guidance_scale=2.5)
    assert answer.status_code == 200 and answer.headers["X-Dovetail-Version"] == "v1"
    body = answer.json()
    picture = _picture(body["data"][0])
    assert picture.size == (SIDE, SIDE) and picture.format == "PNG" and abs(body["created"] - time.time()) < 60
    told = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "seed": "7",
        "steps": "1",
        "guidance_scale": "2.5",
        "model": "tiny",
        "version": "v1",
    }
    assert told.items() <= picture.text.items()  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_bytes_and_no_seed_another_picture_each_time(client: httpx.Client) -> None:
    first, again, other = (_ask(client, **body).json()["data"][0] for body in ({"seed": 7}, {"seed": 7}, {}))
    assert first == again and other["b64_json"] != first["b64_json"] and other["seed"] != _ask(client).json()["data"][0]["seed"]


def test_what_is_not_said_takes_the_endpoints_defaults(client: httpx.Client) -> None:
    told = _picture(client.post("/v1/images/generations", json={"prompt": "a cat", "seed": 1}).json()["data"][0]).text  # type: ignore[attr-defined]
    assert (told["steps"], told["guidance_scale"]) == ("2", "3")


def test_several_pictures_have_seeds_in_a_row_and_each_is_the_one_of_its_seed(client: httpx.Client) -> None:
    data = _ask(client, n=3, seed=20).json()["data"]
    assert [d["seed"] for d in data] == [20, 21, 22] and len({d["b64_json"] for d in data}) == 3
    assert _ask(client, seed=21).json()["data"][0]["b64_json"] == data[1]["b64_json"]


def test_a_picture_asked_for_as_url_is_fetched_from_there(client: httpx.Client) -> None:
    entry = _ask(client, seed=7, response_format="url").json()["data"][0]
    assert "b64_json" not in entry
    fetched = client.get(entry["url"])
    assert fetched.headers["content-type"] == "image/png"
    assert base64.b64encode(fetched.content).decode() == _ask(client, seed=7).json()["data"][0]["b64_json"]
    assert client.get("/images/none.png").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"size": "auto"},
        {"size": f"{SIDE}x{SIDE}"},
        {"size": None},
        {"model": "tiny"},
        {"model": "tiny@v1"},
        {"model": ""},
        {"user": "me", "quality": "hd"},
    ],
)
def test_sizes_names_and_unknown_fields_that_clients_send_are_taken(client: httpx.Client, body: dict[str, Any]) -> None:
    assert _ask(client, **body).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": "x" * 4001}, "prompt"), ({"n": 0}, "n"),
        ({"n": 9}, "n"), ({"steps": 0}, "steps"), ({"steps": 101}, "steps"), ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"), ({"size": "512x512"}, "size"), ({"stream": True}, "stream"),
        ({"response_format": "jpeg"}, "response_format"), ({"output_format": "webp"}, "output_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_parameter_in_openais_shape(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    answer = _ask(client, **body)
    fault = answer.json()["error"]
    assert answer.status_code == 400 and fault["type"] == "invalid_request_error" and fault["param"] == param
    assert fault.keys() == {"message", "type", "param", "code"} and param in fault["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b'{"prompt": "\\ud800"}', b"\xff\xfe"])
def test_a_body_that_is_no_request_is_refused_in_openais_shape(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_and_another_address_are_not_found(client: httpx.Client) -> None:
    answer = _ask(client, model="dall-e-3")
    assert answer.status_code == 404 and "'dall-e-3' is not served here" in answer.json()["error"]["message"]
    assert client.get("/v1/nothing").status_code == 404 and client.get("/v1/images/generations").status_code == 405


def test_health_models_licence_and_page_answer(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "tiny", "version": "v1"}
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/license").text.startswith("Apache License")
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
    assert sorted(taken)[10] < 0.03, "TCP_NODELAY is not set: every answer waits 40 ms"


def _figures(client: httpx.Client) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_count_pictures_and_refusals(client: httpx.Client) -> None:
    painted, refused = 'dovetail_pictures_total{version="v1"}', 'dovetail_failures_total{why="invalid"}'
    before = _figures(client)
    _ask(client, n=2)
    _ask(client, n=99)
    _ask(client, size="1x1")
    deadline = time.monotonic() + 5
    while _figures(client)[painted] < before.get(painted, 0) + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    after = _figures(client)
    assert after[painted] == before.get(painted, 0) + 2 and after[refused] == before.get(refused, 0) + 2
    assert after["dovetail_paint_seconds_count"] >= 2 and after["dovetail_waiting"] == 0


def test_the_openai_client_paints_downloads_and_understands_a_refusal(serving: web.Server) -> None:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.images.generate(
            model="tiny", prompt="a cat", n=2, response_format="b64_json", extra_body={"seed": 3, "steps": 1}
        )
        assert (
            answer.data and [np.asarray(_picture({"b64_json": d.b64_json})).shape for d in answer.data] == [(SIDE, SIDE, 3)] * 2
        )
        assert [m.id for m in client.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.images.generate(model="dall-e-3", prompt="a cat")
        with pytest.raises(openai.BadRequestError, match="size must be"):
            client.images.generate(model="tiny", prompt="a cat", size="1024x1024")


@pytest.fixture
def slow() -> Iterator[tuple[httpx.Client, web.Studio, threading.Event, list[int]]]:
    """An endpoint whose painter waits for a sign; the seeds it has painted."""
    sign, painted = threading.Event(), list[int]()

    def paint(wish: web.Wish) -> bytes:
        sign.wait(30)
        if wish.prompt == "fail":
            raise RuntimeError("out of paint: /secret/place")
        painted.append(wish.seed)
        return b"png"

    studio = web.Studio(web.Engine(paint=paint, name="slow", version="v1", side=8, licence="none"))
    server = web.Server(web.build_app(studio, 2, 3.0), web.bind("127.0.0.1", 0))
    server.start()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=200)) as client:
        yield client, studio, sign, painted
    sign.set()
    server.stop()
    studio.stop()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_full_queue_refuses_with_429_and_paints_what_it_took(
    slow: tuple[httpx.Client, web.Studio, threading.Event, list[int]],
) -> None:
    client, studio, sign, painted = slow
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(_ask(client, seed=100 * i, n=8).status_code)) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    _until(lambda: studio.waiting.qsize() >= web.WAITING - 1)
    refused = _ask(client, seed=5000, n=4)
    assert refused.status_code == 429 and refused.headers["Retry-After"] and refused.json()["error"]["code"] == "busy"
    assert client.get("/health").status_code == 200
    sign.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    _until(lambda: studio.waiting.empty())
    assert _ask(client, seed=9999).status_code == 200
    assert [s for s in painted if 5000 <= s < 5004] == [], "a refused request was painted all the same"


def test_a_fault_while_painting_is_a_500_without_inner_details_and_the_next_request_is_served(
    slow: tuple[httpx.Client, web.Studio, threading.Event, list[int]],
) -> None:
    client, _, sign, _ = slow
    sign.set()
    answer = _ask(client, prompt="fail")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error" and "/secret" not in answer.text
    assert _ask(client).status_code == 200 and client.get("/health").status_code == 200
    assert _figures(client)['dovetail_failures_total{why="paint"}'] == 1


def test_a_studio_that_has_stopped_is_not_healthy() -> None:
    studio = web.Studio(web.Engine(paint=lambda wish: b"", name="x", version="1", side=8, licence=""))
    assert studio.ready
    studio.stop()
    assert not studio.ready


def test_a_taken_port_and_a_foreign_address_are_said_with_a_next_step() -> None:
    said = r"cannot listen on 127.0.0.1:\d+: .*; choose another with --port"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EndpointError, match=said):
        web.bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(EndpointError, match=r"cannot listen on 192\.0\.2\.1"):
        web.bind("192.0.2.1", 0)


def test_a_page_of_kept_pictures_is_bounded(slow: tuple[httpx.Client, web.Studio, threading.Event, list[int]]) -> None:
    client, _, sign, _ = slow
    sign.set()
    urls = [d["url"] for _ in range(9) for d in _ask(client, n=8, response_format="url").json()["data"]]
    kept = [client.get(u).status_code for u in urls]
    assert kept == [404] * (len(urls) - web.KEPT_PICTURES) + [200] * web.KEPT_PICTURES
