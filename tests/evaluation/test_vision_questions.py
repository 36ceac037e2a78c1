"""Judges that answer questions: models of the real classes, and an endpoint on the loopback that behaves well and badly."""

import base64
import io
import json
import logging
import math
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, AutoProcessor

from dovetail.errors import ModelError
from dovetail.evaluation.vision_questions import TransformersQuestionJudge, VisionEndpointJudge, question_for

TEXTS = ["a red cat", "a dog on the blue background", "a television"]
KEY = "sk-not-to-be-seen"


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    dice = np.random.default_rng(7)
    return [dice.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 52), (32, 32), (64, 31))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("answerers")
    made = {kind: getattr(tiny_models, f"write_{kind}")(place / kind) for kind in ("vilt", "blip", "llava", "smolvlm")}
    return made | {"llava without template": tiny_models.write_llava(place / "plain", template=None)}


KINDS = ["vilt", "blip", "llava", "smolvlm", "llava without template"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_a_chance_in_hundredths_that_hangs_on_picture_and_text(
    kind: str, folders: dict[str, Path], images: list[np.ndarray]
) -> None:
    judge = TransformersQuestionJudge(str(folders[kind]))
    found = judge.score([images[0], images[1], images[0], images[0]], [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]])
    assert found.dtype == np.float64 and ((found > 0) & (found < 100)).all()
    assert found[0] == found[3]
    assert found[0] != pytest.approx(found[1], abs=1e-6), "the picture does not count"
    assert found[0] != pytest.approx(found[2], abs=1e-6), "the text does not count"
    assert judge.score([], []).shape == (0,)
    long = judge.score(images[:1], ["the cat " * 60 if kind != "smolvlm" else "the cat"])  # longer than ViLT's tower
    assert np.isfinite(long).all()


def test_a_chat_model_is_asked_by_its_template_and_read_at_its_next_token(
    folders: dict[str, Path], images: list[np.ndarray]
) -> None:
    processor, model = (kind.from_pretrained(folders["llava"]) for kind in (AutoProcessor, AutoModelForImageTextToText))
    text = f"user : <image> {question_for(TEXTS[0])} assistant :"
    with torch.no_grad():
        read = processor(images=[Image.fromarray(images[0])], text=[text], return_tensors="pt")
        chances = model.eval()(**read).logits[0, -1].softmax(-1)
    yes, no = (
        sum(float(chances[processor.tokenizer.convert_tokens_to_ids(w)]) for w in words)
        for words in (("yes", "Yes"), ("no", "No"))
    )
    judge = TransformersQuestionJudge(str(folders["llava"]))
    assert judge.score(images[:1], TEXTS[:1])[0] == pytest.approx(100 * yes / (yes + no), abs=1e-3)


def test_vilt_is_read_at_its_labels(folders: dict[str, Path], images: list[np.ndarray]) -> None:
    processor, model = (kind.from_pretrained(folders["vilt"]) for kind in (AutoProcessor, AutoModelForVisualQuestionAnswering))
    with torch.no_grad():
        read = processor(
            images=Image.fromarray(images[0]), text=question_for(TEXTS[0]), truncation=True, max_length=16, return_tensors="pt"
        )
        logits = model.eval()(**read).logits[0]
    expected = 100 * float(logits[[3, 1]].softmax(0)[0])  # the labels are 2, no, blue, yes
    assert TransformersQuestionJudge(str(folders["vilt"])).score(images[:1], TEXTS[:1])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("word", "expected"), [("yes", 100.0), ("no", 0.0)])
def test_blip_is_as_sure_as_its_decoder(word: str, expected: float, folders: dict[str, Path], images: list[np.ndarray]) -> None:
    judge = TransformersQuestionJudge(str(folders["blip"]))
    number = judge.processor.tokenizer.convert_tokens_to_ids(word)
    with torch.no_grad():
        judge.model.text_decoder.cls.predictions.bias[number] += 50
    assert judge.score(images, TEXTS) == pytest.approx([expected] * 3, abs=0.01)


def test_quotation_marks_in_a_text_do_not_end_the_question() -> None:
    assert question_for('a sign "STOP"') == "Does this picture show \"a sign 'STOP'\"? Answer yes or no."


def test_weights_that_are_no_numbers_give_scores_that_are_none(
    folders: dict[str, Path], tmp_path: Path, images: list[np.ndarray]
) -> None:
    folder = tiny_models.write_vilt(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["vilt.pooler.dense.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert np.isnan(TransformersQuestionJudge(str(folder)).score(images[:2], TEXTS[:2])).all()


def test_a_picture_that_a_model_cannot_read_is_told_in_one_line(folders: dict[str, Path]) -> None:
    judge = TransformersQuestionJudge(str(folders["vilt"]))
    with pytest.raises(ModelError, match="cannot judge a picture of 3x300") as caught:
        judge.score([np.zeros((300, 3, 3), np.uint8)], ["a cat"])
    assert "\n" not in str(caught.value)


def _half(folder: Path) -> Path:
    kept = {n: w for n, w in load_file(folder / "model.safetensors").items() if not n.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny_models.write_clip, "answers no questions: it is a CLIPModel"),
        (
            lambda f: tiny_models.write_blip(f, "BlipForConditionalGeneration"),
            "is no judge: it is a BlipForConditionalGeneration",
        ),
        (lambda f: tiny_models.write_vilt(f, ("cat", "dog")), "its labels are others"),
        (lambda f: _half(tiny_models.write_vilt(f)), "lacks"),
        (lambda f: f, "there is no folder"),
    ],
)
def test_a_model_that_answers_no_questions_is_told_in_one_line(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        TransformersQuestionJudge(str(make(tmp_path / "model")))
    assert said in str(caught.value) and "\n" not in str(caught.value)


# The endpoint.

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Server:
    """An endpoint whose answers a test decides; it keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self.release = threading.Event()
        self._at_once, self._lock = 0, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append(body)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    number = len(server.asked)
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                status, said, *more = answer(body, number)
                with server._lock:
                    server._at_once -= 1
                if status == 0:  # hang up
                    self.close_connection = True
                    return
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                try:
                    self.send_response(status)
                    for name, value in (more[0] if more else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # it waits no longer
                    pass

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Answer]], Server]]:
    started: list[Server] = []

    def start(answer: Callable[[dict[str, Any], int], Answer]) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


Serve = Callable[[Callable[[dict[str, Any], int], Answer]], Server]


def plain(text: Any) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def chances(**logprobs: float) -> Answer:
    top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    choice = {"message": {"content": "?"}, "logprobs": {"content": [{"token": top[0]["token"], "top_logprobs": top}]}}
    return 200, {"choices": [choice]}


def asked_text(body: dict[str, Any]) -> str:
    return str(next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"))


def judge_of(server: Server, **options: Any) -> VisionEndpointJudge:
    return VisionEndpointJudge(server.url, "watcher", KEY, **{"timeout_seconds": 30, "backoff_seconds": 0.001} | options)


def test_the_question_the_picture_and_the_key_are_sent(serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: plain("Yes." if "cat" in asked_text(body) else "no"))
    judge = judge_of(server)
    assert judge.score(images, TEXTS).tolist() == [100, 0, 0]
    assert judge.name == f"watcher at {server.url.removesuffix('/v1')}"
    assert server.paths == ["/v1/chat/completions"] * 3
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    sent = next(body for body in server.asked if "cat" in asked_text(body))
    assert sent["model"] == "watcher" and asked_text(sent) == question_for(TEXTS[0])
    uri = next(part["image_url"]["url"] for part in sent["messages"][0]["content"] if part["type"] == "image_url")
    assert uri.startswith("data:image/png;base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(shown, images[0])


def test_without_a_key_none_is_sent(serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: plain("yes"))
    VisionEndpointJudge(server.url + "/", "watcher").score(images[:1], TEXTS[:1])
    assert "Authorization" not in server.headers[0]
    assert server.paths == ["/v1/chat/completions"]


def test_a_pair_that_comes_twice_is_asked_once(serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: plain("yes"))
    assert judge_of(server).score([images[0]] * 3, ["a cat", "a cat", "a dog"]).tolist() == [100, 100, 100]
    assert len(server.asked) == 2
    assert judge_of(server).score([], []).shape == (0,)


def test_chances_are_taken_where_the_server_tells_them(serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: chances(**{"Yes": math.log(0.5), " yes": math.log(0.1), "No": math.log(0.2), "Maybe": -3.0}))
    assert judge_of(server).score(images[:1], TEXTS[:1])[0] == pytest.approx(75)
    assert server.asked[0]["logprobs"] is True and server.asked[0]["top_logprobs"] >= 2


def test_chances_without_both_words_leave_it_to_the_text(serve: Serve, images: list[np.ndarray]) -> None:
    answer = chances(Certainly=-0.1)
    answer[1]["choices"][0]["message"]["content"] = "Certainly: yes"
    server = serve(lambda body, n: answer)
    assert judge_of(server).score(images[:1], TEXTS[:1])[0] == 100


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("yes", 100), ("No, it shows a dog.", 0), ("**Yes**", 100), ("Answer: no", 0), ("YES!", 100), ("Yes and no", 100),
        ("<think>no? no.</think> yes", 100), ([{"type": "text", "text": "yes"}], 100), ("It is yes or no", math.nan),
        ("a cat", math.nan), ("", math.nan), (None, math.nan), ("nothing to yesterday", math.nan), ("はい", math.nan), (7, math.nan),
    ],
)  # fmt: skip
def test_answers_in_words(said: Any, expected: float, serve: Serve, images: list[np.ndarray]) -> None:
    judge = judge_of(serve(lambda body, n: plain(said)))
    assert judge.score(images[:1], TEXTS[:1]).tolist() == pytest.approx([expected], nan_ok=True)
    assert judge.unanswered == math.isnan(expected)


def test_nonsense_costs_its_own_picture_only(serve: Serve, images: list[np.ndarray]) -> None:
    judge = judge_of(serve(lambda body, n: plain("blub" if "dog" in asked_text(body) else "yes")))
    assert judge.score(images, TEXTS).tolist() == pytest.approx([100, math.nan, 100], nan_ok=True)
    assert judge.unanswered == 1


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"error": "slow down"}, {"Retry-After": "0"}), (429, {}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        (429, b"", {}), (500, b"<html>"), (503, {}), (502, b"", {"Retry-After": "soon"}), (0, b""),
    ],
)  # fmt: skip
def test_trouble_that_passes_is_waited_out(trouble: Answer, serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: trouble if n <= 2 else plain("yes"))
    assert judge_of(server, requests_at_once=1).score(images[:1], TEXTS[:1]).tolist() == [100]
    assert len(server.asked) == 3


def test_retry_after_is_honored(serve: Serve, images: list[np.ndarray]) -> None:
    """A wait that would end behind the deadline is not begun."""
    server = serve(lambda body, n: (429, {}, {"Retry-After": "3000"}))
    with pytest.raises(ModelError, match=r"within 60 s \(status 429, next try in 3000 s\)"):
        judge_of(server, deadline_seconds=60).score(images[:1], TEXTS[:1])
    assert len(server.asked) == 1


def test_tries_are_counted(serve: Serve, images: list[np.ndarray]) -> None:
    server = serve(lambda body, n: (503, {}))
    with pytest.raises(ModelError, match="failed 3 times: status 503"):
        judge_of(server, retries=2, requests_at_once=1).score(images[:1], TEXTS[:1])
    assert len(server.asked) == 3


def test_a_slow_endpoint_is_given_up(serve: Serve, images: list[np.ndarray]) -> None:
    def hang(body: dict[str, Any], number: int) -> Answer:
        server.release.wait(60)
        return plain("yes")

    server = serve(hang)
    with pytest.raises(ModelError, match=r"failed 2 times: no answer within 0\.1 s; .*vision_timeout_seconds"):
        judge_of(server, timeout_seconds=0.1, retries=1).score(images[:1], TEXTS[:1])
    with pytest.raises(ModelError, match=r"did not answer all questions within 0\.2 s"):
        judge_of(server, timeout_seconds=0.1, deadline_seconds=0.2, retries=99).score(images, TEXTS)


def test_a_few_are_asked_at_once(serve: Serve, images: list[np.ndarray]) -> None:
    together = threading.Barrier(3)

    def answer(body: dict[str, Any], number: int) -> Answer:
        together.wait(30)  # goes on only where three are asked at once
        return plain("yes")

    server = serve(answer)
    texts = [f"thing {i}" for i in range(9)]
    assert judge_of(server, requests_at_once=3).score(images * 3, texts).tolist() == [100] * 9
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("refusal", "without", "instead"),
    [
        ("logprobs are not supported", ("logprobs", "top_logprobs"), None),
        ("Unsupported parameter: max_tokens, use max_completion_tokens", ("max_tokens",), "max_completion_tokens"),
        ("temperature does not support 0", ("temperature",), None),
    ],
)
def test_options_that_a_server_does_not_know_are_left_out(
    refusal: str, without: tuple[str, ...], instead: str | None, serve: Serve, images: list[np.ndarray]
) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return (400, {"error": {"message": refusal}}) if any(name in body for name in without) else plain("yes")

    server = serve(answer)
    assert judge_of(server, requests_at_once=1).score(images, TEXTS).tolist() == [100] * 3
    assert len(server.asked) == 4  # once refused, never asked so again
    assert not any(name in body for body in server.asked[1:] for name in without)
    assert instead is None or instead in server.asked[-1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": f"wrong key {KEY}"}), "refuses the key (status 401); set the environment variable"),
        ((403, b""), "refuses the key (status 403)"),
        ((404, {"error": "no such model"}), "knows no model watcher"),
        ((400, {"error": f"no pictures\nplease {KEY}"}), "refuses the question (status 400)"),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "refuses the question (status 302)"),
        ((200, b"<html>hello</html>"), "answers something that is no chat completion"),
        ((200, {"choices": []}), "answers something that is no chat completion"),
        ((200, []), "answers something that is no chat completion"),
        ((200, {"choices": [{"message": None}]}), "answers something that is no chat completion"),
        ((200, b"x" * (5 << 20)), "answers without end"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line_and_without_the_key(
    answer: Answer, said: str, serve: Serve, images: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda body, n: answer)
    judge = judge_of(server)
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError) as caught:
        judge.score(images, TEXTS)
    assert said in str(caught.value) and judge.place in str(caught.value)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    assert KEY not in str(caught.value) and KEY not in repr(judge)
    assert not any(KEY in record.getMessage() for record in caplog.records if record.name.startswith(("dovetail", "httpx")))


def test_an_endpoint_that_is_down(images: list[np.ndarray]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ModelError, match=r"cannot be reached: .*; start it, or correct"):
            VisionEndpointJudge(f"http://127.0.0.1:{port}/v1", "watcher").score(images, TEXTS)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "file:///etc", "http://[::"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ModelError, match="no http address"):
        VisionEndpointJudge(url, "watcher")


@pytest.mark.parametrize("key", ["two words", "new\nline", "schlüssel"])
def test_a_key_that_no_header_takes_is_not_repeated(key: str) -> None:
    with pytest.raises(ModelError) as caught:
        VisionEndpointJudge("http://127.0.0.1:9/v1", "watcher", key)
    assert key.split()[0] not in str(caught.value)


def test_a_model_must_be_named() -> None:
    with pytest.raises(ModelError, match="vision_model"):
        VisionEndpointJudge("http://127.0.0.1:9/v1", "")


def test_large_pictures_are_made_smaller(serve: Serve) -> None:
    server = serve(lambda body, n: plain("yes"))
    judge_of(server).score([np.zeros((300, 3000, 3), np.uint8)], ["a cat"])
    uri = server.asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (1024, 102)
