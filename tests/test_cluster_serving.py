"""The same endpoint by several processes, which Ray Serve starts."""

import base64
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import torch
from tiny import SIDE
from waiting import CEILING, until

from dovetail.config import Endpoint
from dovetail.edges import app as web
from dovetail.edges import cluster, models
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.edges.registry import Registry
from dovetail.engines.studio import Studio
from dovetail.errors import BadConfigError, EndpointError
from dovetail.stages import endpoint
from dovetail.wishes import Caller, Wish

CAT = {"prompt": "a cat", "seed": 1, "steps": 2}
LONG = {"prompt": "a cat", "seed": 1, "steps": 150}

pytestmark = pytest.mark.cluster  # `make test-cluster`: starting Ray Serve takes longer than all they do


class Replicas:
    """`endpoint.serve` with two replicas, in a thread; `stop` is what Ctrl-C does."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.said, self.stop = registry, list[str](), threading.Event()
        with web.bind("127.0.0.1", 0) as bound:
            self.url = web.url_of(bound)
        config = Endpoint(port=int(self.url.rpartition(":")[2]), engine="torch", replicas=2)
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self.thread.start()

    def _run(self, config: Endpoint) -> None:
        try:
            endpoint.serve(partial(self.registry.find, "cats"), "cats", 2.0, config, self)  # type: ignore[arg-type]
        except BaseException as error:
            self.failed.append(error)

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, **body: Any) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=CEILING, trust_env=False) as client:  # each time another connection
            return client.post("/v1/images/generations", json=CAT | body)

    def versions(self) -> set[str]:
        """That the replicas serve: of twelve answers."""
        return {self.get("/health").json()["version"] for _ in range(12)}

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=CEILING, trust_env=False)


@pytest.fixture(scope="module")
def replicas(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas of a registry name with two versions, the first of them in force."""
    place = tmp_path_factory.mktemp("replicas")
    other = Path(shutil.copytree(tiny_base, place / "other"))
    tuned = Models(other, torch.device("cpu"))
    tuned.unet.conv_out.bias.data += 0.5
    models.save_unet(tuned.unet, other / "unet", "float32")
    registry = Registry(place / "registry")
    registry.add("cats", "v1", tiny_base)
    registry.add("cats", "v2", other)
    registry.promote("cats", "v1", "")
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        made = Replicas(registry)
        patch.setattr(cluster.Crew, "wait", lambda crew: made.stop.wait())
        until(lambda: made.failed or any("answers at" in line for line in made.said))
        assert not made.failed, made.failed
        yield made
        made.stop.set()
        made.thread.join(CEILING)
    ray.shutdown()


def painted(made: Replicas) -> set[float]:
    """How many pictures each replica has painted, as the metrics of both tell."""
    lines = [line for _ in range(12) for line in made.get("/metrics").text.splitlines()]
    return {float(line.split()[-1]) for line in lines if line.startswith("dovetail_pictures_total")}


def test_pictures_of_every_replica_are_those_of_a_studio_to_the_byte(replicas: Replicas, tiny_base: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: replicas.ask(), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    pictures = {base64.b64decode(answer.json()["data"][0]["b64_json"]) for answer in answers}
    studio = Studio(endpoint.opened(tiny_base, "cats", "v1", "torch"))
    wish = Wish(**CAT, guidance_scale=2.0, width=SIDE, height=SIDE)  # type: ignore[arg-type]
    try:
        alone = studio.submit([wish], Caller())[0].future.result().png
    finally:
        studio.close()
    assert pictures == {alone}
    assert max(painted(replicas)) < 24, "one of them painted all"
    again = httpx.post(f"{replicas.url}/reproduce", content=alone, timeout=CEILING, trust_env=False).json()
    assert again["same"] is True and again["why"] == ""


def test_what_one_process_keeps_for_later_is_refused(replicas: Replicas) -> None:
    refused = replicas.ask(response_format="url")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"
    stop = httpx.post(f"{replicas.url}/sdapi/v1/interrupt", timeout=CEILING, trust_env=False)
    assert stop.status_code == 400 and "several replicas" in stop.json()["errors"]
    assert len(replicas.get("/health").headers.get_list("x-request-id")) == 1


def test_a_client_that_goes_has_its_pictures_dropped(replicas: Replicas) -> None:
    host, port = replicas.url.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"n": 10}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: any(f"dovetail_running {n}.0" in replicas.get("/metrics").text for n in range(1, 11)))
    until(lambda: 'dovetail_failures_total{why="dropped"} 10.0' in replicas.get("/metrics").text)


def test_a_released_version_is_taken_up_by_each_replica_and_no_request_fails(replicas: Replicas) -> None:
    answers: list[tuple[int, str]] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            answer = replicas.ask()
            answers.append((answer.status_code, answer.json().get("version", answer.text)))

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(answers) > 3)
        replicas.registry.promote("cats", "v2", "")
        until(lambda: replicas.versions() == {"v2"})
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert answers[0][1] == "v1" and answers[-1][1] == "v2"


def test_without_ray_serve_it_says_what_to_install(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadConfigError, match=r"pip install 'dovetail\[cluster\]', or leave --replicas out"):
        endpoint.serve(lambda: (tiny_base, "v1"), "cats", 2.0, Endpoint(port=0, replicas=2), Show(quiet=True))


def test_a_cluster_that_serves_already_or_is_too_small_is_refused(replicas: Replicas, tiny_base: Path) -> None:
    for count, said in (
        (2, "Ray Serve runs on this cluster already"),
        (3, "3 replicas want a CPU each, and the cluster has 2"),
    ):
        with pytest.raises((EndpointError, BadConfigError), match=said):
            endpoint.serve(lambda: (tiny_base, "v1"), "cats", 2.0, Endpoint(port=0, replicas=count), Show(quiet=True))


def test_at_the_end_what_is_under_way_is_finished(replicas: Replicas) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(replicas.ask, **LONG) for _ in range(4)]
        until(lambda: "dovetail_running 0.0" not in replicas.get("/metrics").text)
        replicas.stop.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
    replicas.thread.join(CEILING)
    assert not replicas.thread.is_alive() and replicas.failed == []
    with pytest.raises(httpx.ConnectError):
        replicas.get("/health")
