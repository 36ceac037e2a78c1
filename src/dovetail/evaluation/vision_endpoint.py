"""A judge behind an OpenAI-compatible endpoint, which is asked whether a picture shows what a text says."""

import base64
import io
import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dovetail.errors import ModelError, first_line
from dovetail.evaluation.vision_questions import ANSWERS, over_pairs, question_for

MAX_SIDE = 1024  # pixels of a picture that is sent
MAX_BYTES = 4 << 20  # of an answer that is read


class VisionEndpointJudge:
    """A model behind an OpenAI-compatible endpoint: `POST {url}/chat/completions` with pictures as data URIs.

    `timeout_seconds` is for one request, `deadline_seconds` for one call of `score`. What is worth another try (429, 5xx, a
    timeout) is tried `retries` times more, after `backoff_seconds`, twice that, and so on, or what Retry-After says. The key
    goes into the Authorization header and nowhere else. `unanswered` counts the answers that were neither yes nor no.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str = "",
        timeout_seconds: float = 60.0,
        *,
        deadline_seconds: float = 3600.0,
        requests_at_once: int = 4,
        retries: int = 4,
        backoff_seconds: float = 1.0,
    ) -> None:
        parts = _checked_url(url)
        if not model:
            raise ModelError("no model is named for the vision endpoint", do="name it: [evaluation] vision_model")
        if not all("!" <= c <= "~" for c in api_key):
            raise ModelError(
                "the key for the vision endpoint holds a space or a character that no header takes",
                do="correct the environment variable that [evaluation] vision_key_env names",
            )
        self.place = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self.name = f"{model} at {self.place}"
        self.unanswered = 0
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model, self._key = model, api_key
        self._timeout, self._deadline = timeout_seconds, deadline_seconds
        self._at_once, self._retries, self._backoff = requests_at_once, retries, backoff_seconds
        self._options: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 20}
        self._trusts_proxies = parts.hostname not in ("localhost", "127.0.0.1", "::1")
        self._lock = threading.Lock()

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """100 times the probability of "yes" for image i and text i: float64 (n,); 100 or 0 where the server tells no chances.

        NaN where an answer was neither. ModelError where the endpoint is down, slow, refuses, or answers something else.
        """
        sent = {id(image): _data_uri(image) for image in images}
        ends = time.monotonic() + self._deadline
        stop = threading.Event()

        def ask_all(pairs: list[tuple[int, str]]) -> list[float]:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            with (
                httpx.Client(headers=headers, timeout=self._timeout, trust_env=self._trusts_proxies) as client,
                ThreadPoolExecutor(self._at_once, thread_name_prefix="vision") as pool,
            ):
                futures = [pool.submit(self._ask, client, sent[image], text, ends, stop) for image, text in pairs]
                try:
                    return [future.result() for future in futures]
                finally:
                    stop.set()

        return over_pairs(images, texts, ask_all)

    def _ask(self, client: httpx.Client, picture: str, text: str, ends: float, stop: threading.Event) -> float:
        """One question, with further tries; the score of the answer. A failure stops the others."""
        try:
            return self._tried(client, picture, text, ends, stop)
        except BaseException:
            stop.set()
            raise

    def _tried(self, client: httpx.Client, picture: str, text: str, ends: float, stop: threading.Event) -> float:
        tries, said = 0, ""
        while not stop.is_set():
            left = ends - time.monotonic()
            if left <= 0:
                self._give_up(f"did not answer all questions within {self._deadline:g} s" + (f" ({said})" if said else ""))
            options = dict(self._options)
            wait: float | None = None
            try:
                status, headers, body = self._post(client, picture, text, options, min(self._timeout, left))
            except httpx.TimeoutException:
                said = f"no answer within {self._timeout:g} s"
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                said = f"the connection broke: {first_line(error)}"
            except httpx.HTTPError as error:
                self._give_up(f"cannot be reached: {first_line(error)}", do="start it, or correct [evaluation] vision_url")
            else:
                if status == 200:
                    return self._score(body)
                if status in (400, 422) and self._dropped(options, body):
                    continue
                if status not in (408, 409, 425, 429) and status < 500:
                    self._refused(status, body)
                said, wait = f"status {status}", _retry_after(headers.get("retry-after", ""))
            tries += 1
            if tries > self._retries:
                self._give_up(f"failed {tries} times: {said}")
            wait = self._backoff * 2 ** (tries - 1) if wait is None else wait
            if time.monotonic() + wait > ends:
                self._give_up(f"did not answer all questions within {self._deadline:g} s ({said}, next try in {wait:g} s)")
            stop.wait(wait)
        return math.nan  # another question has failed, and nobody reads this

    def _post(
        self, client: httpx.Client, picture: str, text: str, options: Mapping[str, Any], seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. The time is for all of it: httpx alone would wait as long for every piece."""
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question_for(text)}]
        ask = {"model": self._model, "messages": [{"role": "user", "content": content}], **options}
        ends, body = time.monotonic() + seconds, b""
        with client.stream("POST", self._url, json=ask, timeout=seconds) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout("the answer comes too slowly")
                if len(body) > MAX_BYTES:
                    self._give_up("answers without end", do="see whether [evaluation] vision_url is the right one")
            return response.status_code, response.headers, body

    def _dropped(self, options: Mapping[str, Any], body: bytes) -> bool:
        """Whether the server dislikes an option that it can be asked without: then later requests go without it."""
        said = body[:2000].decode(errors="replace").lower()
        disliked = [name for name in options if name in said]
        if "logprobs" in said:
            disliked = ["logprobs", "top_logprobs"]
        disliked = [name for name in disliked if name in options]
        with self._lock:
            for name in disliked:
                value = self._options.pop(name, None)
                if name == "max_tokens" and value is not None:
                    self._options["max_completion_tokens"] = value
        return bool(disliked)

    def _score(self, body: bytes) -> float:
        try:
            choice = json.loads(body)["choices"][0]
            content, chances = choice["message"]["content"], (choice.get("logprobs") or {}).get("content") or []
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            self._give_up(
                "answers something that is no chat completion",
                do="see whether [evaluation] vision_url ends as in http://host/v1",
            )
        score = _score_of_chances(chances)
        score = _score_of_text(content) if score is None else score
        if score is None:
            with self._lock:
                self.unanswered += 1
            return math.nan
        return score

    def _refused(self, status: int, body: bytes) -> NoReturn:
        if status in (401, 403):
            self._give_up(
                f"refuses the key (status {status})", do="set the environment variable that [evaluation] vision_key_env names"
            )
        if status == 404:
            self._give_up(
                f"knows no model {self._model} or has no such path (404)", do="correct [evaluation] vision_model or vision_url"
            )
        said = " ".join(body[:300].decode(errors="replace").split())
        said = said.replace(self._key, "***") if self._key else said
        self._give_up(f"refuses the question (status {status}): {said}", do="see that the model takes pictures")

    def _give_up(self, what: str, *, do: str = "try again later, or raise [evaluation] vision_timeout_seconds") -> NoReturn:
        raise ModelError(f"the vision endpoint {self.place} {what}", do=do)


def _checked_url(url: str) -> Any:
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        named = False
    if not named:
        raise ModelError(
            "the vision endpoint has no http address", do="give one like http://127.0.0.1:8001/v1 as [evaluation] vision_url"
        )
    return parts


def _data_uri(image: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _score_of_chances(tokens: Any) -> float | None:
    """By the chances at the first token that can be one of the answers."""
    try:
        for token in tokens:
            found = dict.fromkeys(ANSWERS, 0.0)
            for rival in token.get("top_logprobs") or [token]:
                word = str(rival["token"]).strip(' \n\t"*._▁Ġ').lower()
                if word in found:
                    found[word] += math.exp(min(float(rival["logprob"]), 0.0))
            if sum(found.values()) > 0:
                return 100 * found["yes"] / sum(found.values())
            if str(token["token"]).strip():
                return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None


def _score_of_text(content: Any) -> float | None:
    """100 or 0 by the word that the answer begins with, or by the only one of both words that it has."""
    if isinstance(content, list):  # parts
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        return None
    said = re.findall(r"[^\W\d_]+", re.sub(r"<think>.*?(?:</think>|$)", " ", content, flags=re.DOTALL).lower())
    found = {str(word) for word in said[:1] if word in ANSWERS} or {str(word) for word in said if word in ANSWERS}
    return None if len(found) != 1 else 100.0 if found == {"yes"} else 0.0


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date; None where it is neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
