"""Promote if better, roll back, and an endpoint that follows without dropping a request."""

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tiny import SIDE

from dovetail.config import Endpoint, Production
from dovetail.edges import app as web
from dovetail.edges.console import Show
from dovetail.edges.folders import Artifact, Desk, Run, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.edges.registry import Registry
from dovetail.engines.studio import Studio
from dovetail.errors import BadInputError, EndpointError
from dovetail.stages import endpoint, production


def _sealed(run: Run, stage: str, digest: str, **files: Any) -> Artifact:
    folder = run.partial(stage, digest)
    for name, data in files.items():
        write_json(folder / f"{name}.json", data)
    write_bytes(folder / "model" / "README.md", digest.encode())
    return run.seal(stage, {}, digest, 0.0, "0")


def _release(run: Run, registry: Registry, answer: str, config: Production, version: str = "v1") -> dict[str, Any]:
    repo = _sealed(run, "repo", "a" * 64, published={"name": "cats", "version": version, "registry": str(registry.root)})
    told = {"decision": answer, "headline": f"The verdict is {answer}.", "sentence": f"It is {answer}."}
    verdict = _sealed(run, "evaluation", "b" * 64, verdict=told)
    desk = Desk(run, run.partial("production", "c" * 64), Show(quiet=True), [])
    production.release(repo, verdict, verdict, config, desk)
    told = json.loads((desk.folder / "release.json").read_text())
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize(
    ("answer", "promote", "released"),
    [
        ("promote", "if better", True), ("hold", "if better", False), ("cannot tell", "if better", False),
        ("hold", "always", True), ("promote", "never", False),
    ],
)  # fmt: skip
def test_a_model_is_released_only_where_verdict_and_configuration_allow_it(
    run_folder: Run, tmp_path: Path, answer: str, promote: Any, released: bool
) -> None:
    registry = Registry(tmp_path / "registry")
    told = _release(run_folder, registry, answer, Production(promote=promote))
    assert told["released"] is released and registry.current("cats") == ("v1" if released else None)
    assert registry.versions("cats") == ["v1"]  # published it is in any case
    assert answer in told["why"]


def test_what_is_in_force_already_is_not_promoted_twice_and_a_reason_is_kept(run_folder: Run, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for _ in range(2):
        _release(run_folder, registry, "promote", Production(reason="by hand"))
    assert [(r.version, r.reason) for r in registry.releases("cats")] == [("v1", "by hand")]


def test_a_release_against_the_verdict_is_recorded_as_such(run_folder: Run, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    _release(run_folder, registry, "hold", Production(promote="always", reason="the editor wants it"))
    assert registry.releases("cats")[0].reason == "overrules the verdict (The verdict is hold.) the editor wants it"


@pytest.fixture(scope="module")
def two_versions(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with two versions of one name; the second paints otherwise."""
    place = tmp_path_factory.mktemp("two")
    registry = Registry(place / "registry")
    registry.add("cats", "v1", tiny_base)
    other = Path(shutil.copytree(tiny_base, place / "other"))
    import torch

    from dovetail.edges import models

    tuned = Models(other, torch.device("cpu"))
    tuned.unet.conv_out.bias.data += 0.5
    models.save_unet(tuned.unet, other / "unet", "float32")
    registry.add("cats", "v2", other)
    broken = Path(shutil.copytree(tiny_base, place / "broken"))
    (broken / "vae" / "config.json").write_text("{")
    registry.add("cats", "broken", broken)
    return registry


class Serving:
    """`endpoint.serve` in a thread, on a free port."""

    def __init__(self, find: Any) -> None:
        self.said: list[str] = []
        self.bound = web.bind("127.0.0.1", 0)
        port = self.bound.getsockname()[1]
        self.bound.close()
        self.server: web.Server | None = None
        config = Endpoint(port=port, steps=1)
        self.url = f"http://127.0.0.1:{port}"
        self.thread = threading.Thread(target=endpoint.serve, args=(find, "cats", 2.0, config, self), daemon=True)

    def say(self, text: str) -> None:
        self.said.append(text)

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while not any(text in line for line in self.said):
            assert time.monotonic() < deadline, f"{text!r} was not said, only {self.said}"
            time.sleep(0.01)


@pytest.fixture
def serving(two_versions: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    (two_versions.root / "cats" / "releases.jsonl").unlink(missing_ok=True)
    two_versions.promote("cats", "v1", "")
    monkeypatch.setattr(endpoint, "POLL_SECONDS", 0.05)
    made: list[web.Server] = []
    build = web.Server.__init__

    def keeping(self: web.Server, *args: Any) -> None:
        build(self, *args)
        made.append(self)

    monkeypatch.setattr(web.Server, "__init__", keeping)
    served = Serving(lambda: two_versions.find("cats"))
    served.thread.start()
    served.until("answers at")
    yield served
    made[0].server.should_exit = True
    served.thread.join(30)
    assert not served.thread.is_alive()


def _ask(client: httpx.Client) -> tuple[int, str, str]:
    answer = client.post("/v1/images/generations", json={"prompt": "a cat", "seed": 1})
    body = answer.json()
    return answer.status_code, body.get("version", str(body)), body["data"][0]["b64_json"] if "data" in body else ""


def test_the_endpoint_follows_promotions_and_rollbacks_while_requests_run_and_none_fails(
    serving: Serving, two_versions: Registry
) -> None:
    answers: list[tuple[int, str, str]] = []
    done = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=serving.url, timeout=30, trust_env=False) as client:
            while not done.is_set():
                answers.append(_ask(client))

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for move, expected in (
            (lambda: two_versions.promote("cats", "v2", ""), "v2"),
            (lambda: two_versions.rollback("cats", ""), "v1"),
        ):
            move()
            serving.until(f"now serving cats {expected}")
            mark, deadline = len(answers), time.monotonic() + 20
            while not any(version == expected for _, version, _ in answers[mark:]) and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200}
    painted = {version: {p for _, v, p in answers if v == version} for version in ("v1", "v2")}
    assert all(len(p) == 1 for p in painted.values()) and painted["v1"] != painted["v2"]
    order = [v for _, v, _ in answers]
    assert order[0] == "v1" and order[-1] == "v1" and "v2" in order
    assert Image.open(io.BytesIO(base64.b64decode(answers[0][2]))).size == (SIDE, SIDE)


def test_a_version_that_cannot_be_loaded_is_refused_once_and_the_old_one_serves_on(
    serving: Serving, two_versions: Registry
) -> None:
    two_versions.promote("cats", "broken", "")
    serving.until("still serving cats v1")
    with httpx.Client(base_url=serving.url, timeout=30, trust_env=False) as client:
        assert _ask(client)[:2] == (200, "v1")
        time.sleep(0.3)
        assert len([line for line in serving.said if "still serving" in line]) == 1
        two_versions.promote("cats", "v2", "")
        serving.until("now serving cats v2")
        assert _ask(client)[:2] == (200, "v2")


def test_a_registry_that_cannot_be_read_for_a_moment_does_not_end_the_following(tiny_base: Path) -> None:
    answers: list[Any] = [BadInputError("no model 'cats' just now"), ValueError("half a file"), (tiny_base, "v2")]

    def find() -> tuple[Path, str]:
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    studio = Studio(endpoint.opened(tiny_base, "cats", "v1", "torch"))
    stopped, told = threading.Event(), Serving(find)
    follower = threading.Thread(target=endpoint._follow, args=(find, "cats", studio, stopped, told, Endpoint()), daemon=True)
    follower.start()
    try:
        while follower.is_alive() and studio.served.version != "v2":
            time.sleep(0.02)
        assert studio.served.version == "v2", "the follower has ended"
    finally:
        stopped.set()
        follower.join()
        studio.close()


def test_serving_on_a_taken_port_fails_before_a_model_is_loaded() -> None:
    def find() -> tuple[Path, str]:
        raise AssertionError("the model was looked for")

    with web.bind("127.0.0.1", 0) as taken, pytest.raises(EndpointError, match="cannot listen"):
        endpoint.serve(find, "cats", 2.0, Endpoint(port=taken.getsockname()[1]), Show(quiet=True))
