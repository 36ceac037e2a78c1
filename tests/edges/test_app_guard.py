"""Who may ask and how much: keys, limits, bodies, ids; what fails, and what is dropped when the client goes."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import small_studio
import webuiapi
from small_studio import Serving
from starlette.datastructures import Headers
from waiting import until

from dovetail.edges import app as web
from dovetail.edges.app import guard, streams
from dovetail.edges.app.faults import Fault
from dovetail.errors import EndpointError

KEYS = ("first-key", "second-key", "third-key")
WIRES: dict[str, dict[str, Any]] = {
    "/v1/images/generations": {"prompt": "a cat"}, "/": {"inputs": "a cat"}, "/sdapi/v1/txt2img": {"prompt": "a cat"},
}  # fmt: skip


@pytest.fixture(scope="module")
def serving(tiny_base: Path) -> Iterator[Serving]:
    def check(prompt: str) -> str | None:
        return "this prompt breaks a rule" if prompt == "forbidden" else None

    with small_studio.serving(tiny_base, check=check) as found:
        yield found


@pytest.fixture(scope="module")
def kept(tiny_base: Path) -> Iterator[Serving]:
    access = web.Access(keys=KEYS, requests_per_minute=30, most_body_bytes=20000)
    with small_studio.serving(tiny_base, access) as found:
        yield found


@pytest.fixture
def held(serving: Serving) -> Iterator[Serving]:
    """A painter that waits for a sign."""
    serving.studio.open.clear()
    yield serving
    serving.studio.open.set()
    until(lambda: not serving.studio.tickets)


def _said(answer: httpx.Response) -> str:
    """The line of a fault, whatever the wire."""
    body = answer.json()
    return str(body.get("detail") or (body["error"]["message"] if isinstance(body["error"], dict) else body["error"]))


@pytest.mark.parametrize("path", WIRES)
def test_without_a_key_no_wire_answers_and_each_says_so_in_its_own_shape(kept: Serving, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer no"},
        {"X-API-Key": ""},
        {"Authorization": "Basic !"},
        {"Authorization": "Bearer"},
    ):
        answer = kept.client.post(path, json=WIRES[path], headers=headers)
        assert answer.status_code == 401 and "needs a key" in _said(answer) and "Basic" in answer.headers["www-authenticate"]
    basic = base64.b64encode(b"anyone:second-key").decode()
    for headers in ({"Authorization": "Bearer first-key"}, {"X-API-Key": "second-key"}, {"Authorization": f"Basic {basic}"}):
        assert kept.client.post(path, json=WIRES[path], headers=headers).status_code == 200


def test_health_metrics_licence_and_page_need_no_key_and_the_rest_does(kept: Serving) -> None:
    assert all(kept.client.get(path).status_code == 200 for path in guard.OPEN)
    shut = ("/v1/models", "/sdapi/v1/options", "/sdapi/v1/progress", "/predict", "/health/")
    assert all(kept.client.get(path).status_code == 401 for path in shut)
    assert kept.client.delete("/").status_code == 401


def test_the_clients_give_their_key_as_they_do_and_shares_are_of_keys(kept: Serving) -> None:
    with openai.OpenAI(base_url=f"{kept.url}/v1", api_key="third-key", max_retries=0) as client:
        client.images.generate(prompt="a cat", extra_body={"steps": 1})
    host, port = kept.url.removeprefix("http://").split(":")
    webuiapi.WebUIApi(host=host, port=int(port), username="me", password="third-key", sampler="DDIM").txt2img(
        prompt="a cat", steps=1, width=32, height=32
    )
    one, two = kept.studio.seen[-2:]
    assert one.key == two.key and one.key and "third" not in one.key


def test_interrupt_drops_what_its_own_key_asked_for_on_that_wire_and_nothing_else(kept: Serving) -> None:
    studio, answers = kept.studio, dict[str, Any]()
    studio.open.clear()

    def ask(key: str) -> None:
        body, headers = {"prompt": key, "steps": 2}, {"X-API-Key": key}
        answers[key] = kept.client.post("/sdapi/v1/txt2img", json=body, headers=headers).json()

    threads = [threading.Thread(target=ask, args=(key,)) for key in KEYS[:2]]
    for thread in threads:
        thread.start()
    until(lambda: len(studio.tickets) == 2)
    taken = sorted(studio.tickets, key=lambda t: t.wish.prompt)  # what is dropped soon leaves the studio

    def interrupted() -> bool:  # again where the wire has not heard yet that the ticket was taken
        assert kept.client.post("/sdapi/v1/interrupt", headers={"X-API-Key": KEYS[0]}).json() == {}
        return any(t.dropped for t in taken)

    until(interrupted)
    assert [t.dropped for t in taken] == [True, False]
    studio.open.set()
    for thread in threads:
        thread.join()
    assert len(answers[KEYS[0]]["images"]) == 0 and len(answers[KEYS[1]]["images"]) == 1


def test_a_key_that_asks_too_often_is_told_when_to_come_again() -> None:
    now = [0.0]
    asked = guard.Guard(None, web.Access(requests_per_minute=2), guard.CollectorRegistry(), lambda: now[0])  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/predict", "method": "POST", "headers": []}
    for _ in range(2):
        asked._admitted(scope, Headers())
    with pytest.raises(Fault) as caught:
        asked._admitted(scope, Headers())
    assert caught.value.status_code == 429 and caught.value.headers
    assert caught.value.headers["Retry-After"] == "30" and caught.value.headers["retry-after-ms"] == "30000"
    now[0] = 30.0
    asked._admitted(scope, Headers())
    asked._admitted(scope | {"path": "/sdapi/v1/interrupt"}, Headers())  # to stop is never too often


def test_a_body_that_is_too_large_is_refused_before_it_is_read_and_while_it_comes(kept: Serving) -> None:
    headers = {"X-API-Key": "first-key", "Content-Type": "application/json"}

    def parts() -> Iterator[bytes]:
        yield from (b'{"prompt": "', *[b"x" * 5000] * 8, b'"}')

    for path in WIRES:
        for content in (b"x" * 20001, parts()):
            with httpx.Client(trust_env=False) as client:
                answer = client.post(f"{kept.url}{path}", content=content, headers=headers)
            assert answer.status_code == 413 and "larger than 20000" in _said(answer)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Host": "localhost:8000"}, 200), ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 200), ({"Origin": "null"}, 403), ({"Host": "[::1]:80"}, 200),
    ],
)  # fmt: skip
def test_without_keys_a_page_of_somebody_else_cannot_ask(serving: Serving, headers: dict[str, str], status: int) -> None:
    assert (
        serving.client.post("/v1/images/generations", json={"prompt": "a", "steps": 1}, headers=headers).status_code == status
    )


def test_beyond_this_machine_a_key_is_needed_and_keys_come_from_the_environment() -> None:
    assert web.access_from({}) == web.Access()
    access = web.access_from({"DOVETAIL_API_KEYS": " a, b,", "DOVETAIL_REQUESTS_PER_MINUTE": "60"})
    assert access.keys == ("a", "b") and access.requests_per_minute == 60
    for host in ("127.0.0.1", "::1", "localhost"):
        web.refuse_open(host, web.Access())
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        web.refuse_open(host, access)
        with pytest.raises(EndpointError, match=r"has no key; set DOVETAIL_API_KEYS, or listen on 127\.0\.0\.1"):
            web.refuse_open(host, web.Access())
    with pytest.raises(EndpointError, match="not a number above 0"):
        web.access_from({"DOVETAIL_REQUESTS_PER_MINUTE": "many"})


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_depth_of_json_is_followed_through_parts_and_texts(cut: int) -> None:
    flat = json.dumps({"prompt": 'a "[[[[" \\ ]]]', "more": [[{}]] * 5}).encode()

    def fed(data: bytes) -> None:
        depth = guard.Depth(4)
        for at in range(0, len(data), cut):
            depth.feed(data[at : at + cut])

    fed(flat)
    with pytest.raises(Fault, match="deeper than 4"):
        fed(flat[:-1] + b', "x": [[[[0]]]]}')


def test_a_request_keeps_its_id_and_gets_one_where_it_has_none(serving: Serving) -> None:
    def answered(headers: dict[str, str]) -> str:
        return serving.client.get("/v1/none", headers=headers).headers["x-request-id"]

    assert answered({"X-Request-Id": "abc"}) == "abc" and answered({"X-Amzn-Trace-Id": "Root=1"}) == "Root=1"
    assert len(answered({})) == 32 != answered({"X-Request-Id": "a b"}) and answered({}) != answered({})


@pytest.mark.parametrize("path", WIRES)
@pytest.mark.parametrize(
    ("prompt", "status", "said"),
    [
        ("fail", 500, "painting failed: RuntimeError"), ("unpaintable", 422, "cannot be painted: the latents are no numbers"),
        ("forbidden", 400, "this prompt breaks a rule"), ("wishful", 400, "no such guidance"),
    ],
)  # fmt: skip
def test_every_wire_tells_a_fault_in_one_line_and_goes_on(
    serving: Serving, path: str, prompt: str, status: int, said: str
) -> None:
    answer = serving.client.post(path, json=dict.fromkeys(WIRES[path], prompt))
    assert answer.status_code == status and said in _said(answer) and "/secret" not in answer.text
    assert answer.headers.get("x-should-retry") == ("false" if status == 422 else None)
    assert serving.client.post(path, json=WIRES[path]).status_code == 200


def test_too_much_is_told_with_when_to_come_again_and_none_of_it_is_painted(
    held: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held.studio, "most", 3)
    first = threading.Thread(target=held.ask, kwargs={"n": 2})
    first.start()
    until(lambda: len(held.studio.tickets) == 2)
    for path, body in WIRES.items():
        many = {"n": 2, "batch_size": 2, "instances": ["late", "later"], "seed": 5000}
        answer = held.client.post(path, json=body | many)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "2" and answer.headers["retry-after-ms"] == "1400"
    assert len(held.studio.tickets) == 2
    assert held.client.get("/health").status_code == 200
    held.studio.open.set()
    first.join()
    assert held.ask().status_code == 200 and not [
        w for w in held.studio.painted if w.seed in (5000, 5001) or "late" in w.prompt
    ]


def test_a_closed_studio_is_not_ready_and_says_when_to_come_again(serving: Serving) -> None:
    serving.studio.closed = True
    try:
        answers = [serving.client.post(path, json=body) for path, body in WIRES.items()]
        assert [a.status_code for a in answers] == [503] * 3 and answers[0].headers["retry-after"] == "5"
        assert serving.client.get("/ready").status_code == 503 and serving.client.get("/health").status_code == 200
    finally:
        serving.studio.closed = False


def test_a_deadline_of_the_body_or_of_a_header_ends_the_waiting(held: Serving) -> None:
    body, header = {"deadline_seconds": 0.1}, {"x-deadline-seconds": "0.1"}
    for path, wanted in WIRES.items():
        said = {"parameters": body} if path == "/" else body
        for answer in (
            held.client.post(path, json=wanted | said),
            held.client.post(path, json=wanted, headers=header),
        ):
            assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
    for said in ("soon", "0", "-1", "nan", "inf", "1e9"):
        assert held.client.post("/", json={"inputs": "a"}, headers={"x-deadline-seconds": said}).status_code == 400


def test_overload_that_lowered_the_steps_is_told(serving: Serving) -> None:
    answer = serving.ask(prompt="overload", steps=4, least_steps=2)
    assert answer.headers["x-dovetail-degraded"] == "steps 4 -> 2" == answer.json()["data"][0]["degraded"]


@pytest.mark.parametrize("path", [*WIRES, "stream"])
def test_a_client_that_goes_has_its_pictures_dropped_before_anything_is_sent_to_it(
    held: Serving, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 1e6)
    body = {"prompt": "gone", "stream": True, "n": 2} if path == "stream" else dict.fromkeys(WIRES[path], "gone")
    content = json.dumps(body).encode()
    host, port = held.url.removeprefix("http://").split(":")
    head = f"POST {'/v1/images/generations' if path == 'stream' else path} HTTP/1.1\r\nHost: {host}\r\n"
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: len(held.studio.tickets) > 0)
        if path == "stream":
            assert caller.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: not held.studio.tickets)
    assert "gone" not in [w.prompt for w in held.studio.painted]
    held.studio.open.set()
    assert held.ask().status_code == 200
