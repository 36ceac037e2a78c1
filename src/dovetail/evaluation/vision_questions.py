"""Judges that answer questions about pictures: how sure is the answerer that a picture shows what a text says?

The score is 100 times the probability of "yes" against "no" to one question (VQAScore, Lin et al. 2024, arXiv:2404.01291).
"""

import base64
import io
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dovetail.errors import ModelError, first_line
from dovetail.evaluation import model_kinds

QUESTION = 'Does this picture show "{text}"? Answer yes or no.'
ANSWERS = ("yes", "no")
MAX_SIDE = 1024  # pixels of a picture that is sent
MAX_BYTES = 4 << 20  # of an answer that is read


def question_for(text: str) -> str:
    """The question that is asked about a text, whose own quotation marks are made single ones."""
    return QUESTION.format(text=text.replace('"', "'"))


def _over_pairs(
    images: Sequence[NDArray[np.uint8]], texts: Sequence[str], ask: Callable[[list[tuple[int, str]]], list[float]]
) -> NDArray[np.float64]:
    """Scores by position, each pair of a picture (the same object) and a text asked once."""
    pairs = [(id(image), text) for image, text in zip(images, texts, strict=True)]
    unique = list(dict.fromkeys(pairs))
    score = dict(zip(unique, ask(unique), strict=True))
    return np.array([score[pair] for pair in pairs], np.float64)


class TransformersQuestionJudge:
    """A vision-language model (image-text-to-text), ViLT or BLIP by transformers, of a folder or hub id.

    Raises ModelError in one line where the folder holds something else, lacks weights, or cannot say yes and no.
    """

    def __init__(self, folder: str, *, device: str = "cpu") -> None:
        from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, AutoProcessor

        config = model_kinds.config_of(folder)
        kind = model_kinds.kind_of(folder, config)
        if kind not in ("question", "answers"):
            raise ModelError(f"{folder} answers no questions: it is {model_kinds.described(config)}", do=model_kinds.NAME_WHAT)
        family = AutoModelForImageTextToText if kind == "question" else AutoModelForVisualQuestionAnswering
        self.name, self.device = folder, device
        try:
            self.model, told = family.from_pretrained(folder, dtype="auto", use_safetensors=True, output_loading_info=True)
            self.processor = AutoProcessor.from_pretrained(folder)
        except Exception as error:  # safetensors, the hub and transformers raise classes of their own
            raise ModelError(f"cannot load {folder}: {first_line(error)}", do=model_kinds.NAME_WHAT) from error
        if missing := sorted(name for name in told["missing_keys"] if name.endswith(("weight", "bias"))):
            raise ModelError(f"{folder} lacks {len(missing)} weights, {missing[0]} among them", do="download the model again")
        self.model.eval().requires_grad_(False).to(device)
        self._probability: Callable[[Image.Image, str], float] = {
            "vilt": self._by_labels, "blip": self._by_likelihood
        }.get(str(config["model_type"]), self._by_next_token)  # fmt: skip
        if self._probability == self._by_labels:
            self.labels = _labels(folder, self.model.config.label2id)
        else:
            self.tokens = _answer_tokens(folder, self.processor.tokenizer)

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """100 times the probability of "yes" for image i and text i: float64 (n,). NaN where the model gives no number."""
        pictures = {id(image): Image.fromarray(image) for image in images}

        def ask(pairs: list[tuple[int, str]]) -> list[float]:
            return [100 * self._chance(pictures[image], question_for(text)) for image, text in pairs]

        return _over_pairs(images, texts, ask)

    def _chance(self, image: Image.Image, question: str) -> float:
        try:
            return self._probability(image, question)
        except (ValueError, RuntimeError, IndexError) as error:  # ViLT on a very narrow picture; no memory
            raise ModelError(
                f"{self.name} cannot judge a picture of {image.width}x{image.height}: {first_line(error)}",
                do="name another model as [evaluation] question_judge",
            ) from error

    def _by_next_token(self, image: Image.Image, question: str) -> float:
        made = self.model.generate(
            **self._asked(image, question), max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        chances = made.logits[0][0].float().softmax(-1)
        yes, no = (float(chances[ids].sum()) for ids in self.tokens)
        return yes / (yes + no) if yes + no > 0 else math.nan

    def _asked(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        """What the model reads: by its chat template where it has one."""
        if getattr(self.processor, "chat_template", None):
            said = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            read = self.processor.apply_chat_template(
                [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
        else:
            place = getattr(self.processor, "image_token", None)
            begin = f"{place}\n" if isinstance(place, str) else ""
            read = self.processor(images=[image], text=[f"{begin}Question: {question} Answer:"], return_tensors="pt")
        moved: Mapping[str, Any] = read.to(self.device)
        return moved

    def _by_labels(self, image: Image.Image, question: str) -> float:
        """ViLT: a classifier over answers."""
        logits = self.model(**self._cut(image, question)).logits[0].float()
        return float(logits[list(self.labels)].softmax(-1)[0])

    def _by_likelihood(self, image: Image.Image, question: str) -> float:
        """BLIP: a decoder of answers, asked how likely it finds each."""
        import torch

        model, read = self.model, self._cut(image, question)
        with torch.no_grad():
            seen = model.vision_model(pixel_values=read["pixel_values"]).last_hidden_state
            everywhere = torch.ones(seen.shape[:-1], dtype=torch.long, device=self.device)
            asked = model.text_encoder(
                input_ids=read["input_ids"], attention_mask=read["attention_mask"], encoder_hidden_states=seen,
                encoder_attention_mask=everywhere,
            )[0]  # fmt: skip
            found = []
            for answer in ANSWERS:
                ids = self.processor.tokenizer(answer, add_special_tokens=False).input_ids
                ids = torch.tensor(
                    [[model.decoder_start_token_id, *ids, self.processor.tokenizer.sep_token_id]], device=self.device
                )
                logits = model.text_decoder(
                    input_ids=ids[:, :-1], encoder_hidden_states=asked, encoder_attention_mask=read["attention_mask"]
                ).logits
                chances = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])
                found.append(chances.sum())
            return float(torch.stack(found).softmax(-1)[0])

    def _cut(self, image: Image.Image, question: str) -> Mapping[str, Any]:
        """A picture and a question, which is cut where the text tower ends."""
        text = getattr(self.model.config, "text_config", self.model.config)
        limit = min(int(text.max_position_embeddings), int(self.processor.tokenizer.model_max_length))
        read: Mapping[str, Any] = self.processor(
            images=image, text=question, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)
        return read


def _labels(folder: str, label2id: Mapping[str, int]) -> tuple[int, int]:
    named = {str(label).strip().lower(): int(number) for label, number in label2id.items()}
    if not set(ANSWERS) <= named.keys():
        raise ModelError(f"{folder} cannot answer yes and no: its labels are others", do=model_kinds.NAME_WHAT)
    return named["yes"], named["no"]


def _answer_tokens(folder: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the tokens that begin the answers "yes" and "no", however they are written."""
    whole, begun = [], []
    for answer in ANSWERS:
        forms = [form for word in (answer, answer.capitalize(), answer.upper()) for form in (word, f" {word}")]
        read = [ids for form in forms if (ids := tokenizer.encode(form, add_special_tokens=False))]
        known = [ids for ids in read if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids]
        whole.append({ids[0] for ids in known if len(ids) == 1})
        begun.append({ids[0] for ids in known})
    for yes, no in (whole, begun):
        if yes - no and no - yes:
            return sorted(yes - no), sorted(no - yes)
    raise ModelError(f"the tokenizer of {folder} cannot say yes and no", do=model_kinds.NAME_WHAT)


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

        return _over_pairs(images, texts, ask_all)

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
    if said and said[0] in ANSWERS:
        return 100.0 * (said[0] == "yes")
    either = set(said) & set(ANSWERS)
    return 100.0 * (either == {"yes"}) if len(either) == 1 else None


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
