"""A judge that answers questions about pictures: how sure is a model that a picture shows what a text says?

The score is 100 times the probability of "yes" against "no" to one question (VQAScore, Lin et al. 2024, arXiv:2404.01291).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dovetail.errors import ModelError, first_line
from dovetail.evaluation import model_kinds

QUESTION = 'Does this picture show "{text}"? Answer yes or no.'
ANSWERS = ("yes", "no")


def question_for(text: str) -> str:
    """The question that is asked about a text, whose own quotation marks are made single ones."""
    return QUESTION.format(text=text.replace('"', "'"))


def over_pairs(
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
        self.name, self.device = (Path(folder).name if Path(folder).is_dir() else folder), device
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

        return over_pairs(images, texts, ask)

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
