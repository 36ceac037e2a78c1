"""The embedded judge: says how well a picture and a text go together, and which pictures show things of one kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dovetail.errors import ModelError, first_line
from dovetail.evaluation.towers import Shape, Towers

FORMAT = "dovetail-judge-1"
BASE_JUDGE = Path(__file__).parents[1] / "base" / "judge"
BATCH = 256
LIKENESS = "kind"  # which vectors `embed_images` gives: they find more kinds never trained (benchmarks/judge.py --layers)
DO = "name a folder that recipes/embedded_judge packed"


class EmbeddedJudge:
    """A judge in a folder of the kind that `recipes/embedded_judge` packs.

    `score` compares in the space where pictures and texts meet. `embed_images` gives vectors in which pictures of one kind lie
    together, whether or not the judge knows a word for it; they are not comparable to those of `embed_texts`, `joint_images`
    are. ModelError in one line where the folder is none or broken.
    """

    def __init__(self, folder: str | Path = BASE_JUDGE) -> None:
        place = Path(folder)
        try:
            told = json.loads((place / "config.json").read_text(encoding="utf-8"))
            if not isinstance(told, dict) or told.get("format") != FORMAT:
                raise ValueError(f"config.json does not say {FORMAT}")
            self.name, self.side = str(told["name"]), int(told["side"])
            self.towers = _towers(place, told)
            self.tokenizer = _tokenizer(place)
            self.words = frozenset(str(w) for w in json.loads((place / "words.json").read_text(encoding="utf-8"))["words"])
        except Exception as error:  # safetensors, json, torch and tokenizers raise classes of their own
            raise ModelError(f"cannot load the embedded judge {place}: {first_line(error)}", do=DO) from error
        self.max_tokens = self.towers.shape.tokens
        self.ends = int(self.tokenizer.bos_token_id), int(self.tokenizer.eos_token_id)

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """100 times the cosine of image i (uint8, H x W x 3) and text i: float64 (n,).

        A picture (the same object) or text that comes several times is embedded once.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts")
        if not len(texts):
            return np.zeros(0)
        pictures = {id(image): image for image in images}
        picture_rows = {key: row for row, key in enumerate(pictures)}
        text_rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        seen, read = self.joint_images(list(pictures.values())), self.embed_texts(list(text_rows))
        pairs = seen[[picture_rows[id(i)] for i in images]] * read[[text_rows[t] for t in texts]]
        return 100 * pairs.sum(1).double().numpy()

    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit vectors, float32 (n, width), of uint8 images (H, W, 3): near each other where they show one kind of thing."""
        return self.vectors(images, LIKENESS)

    def joint_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit vectors, float32 (n, joint), that are comparable to those of `embed_texts`."""
        return self.vectors(images, "joint")

    @torch.inference_mode()
    def vectors(self, images: Sequence[NDArray[np.uint8]], which: str) -> Tensor:
        """Unit vectors, float32, of the space of texts ("joint") or of kinds of things ("kind")."""
        found = []
        for start in range(0, max(1, len(images)), BATCH):
            part = [self._fitted(i) for i in images[start : start + BATCH]] or [np.zeros((self.side, self.side, 3), np.uint8)]
            pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)
            joint, kinds = self.towers.see(pixels.float() / 127.5 - 1)
            found.append({"joint": joint, "kind": kinds}[which])
        return torch.cat(found)[: len(images)].clone()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (n, joint). A text longer than the tower is cut before its end token."""
        rows = [self._tokens(t) for t in texts] or [list(self.ends)]
        order = sorted(range(len(rows)), key=lambda k: len(rows[k]))  # texts of one length cost no padding
        found = torch.zeros(len(rows), self.towers.shape.joint)
        for start in range(0, len(rows), BATCH):
            chosen = order[start : start + BATCH]
            tokens = torch.full((len(chosen), max(len(rows[k]) for k in chosen)), self.ends[1])
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for line, k in enumerate(chosen):
                tokens[line, : len(rows[k])], mask[line, : len(rows[k])] = torch.tensor(rows[k]), True
            found[chosen] = self.towers.read(tokens, mask).float()
        return found[: len(texts)].clone()

    def knows(self, word: str) -> bool:
        """Whether a word stood among the names that the judge learned from, singular or plural; of several words, the whole
        name or each of them."""
        words = word.lower().split()
        return self._learned(" ".join(words)) or all(map(self._learned, words))

    def _learned(self, word: str) -> bool:
        return any(form in self.words for form in (word, f"{word}s", word.removesuffix("s"), word.removesuffix("es")))

    def _tokens(self, text: str) -> list[int]:
        inner = self.tokenizer(text, add_special_tokens=False).input_ids[: self.max_tokens - 2]
        return [self.ends[0], *inner, self.ends[1]]

    def _fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture at the judge's side: area mean where it shrinks, bicubic where it grows."""
        from PIL import Image

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}")
        if image.shape[:2] == (self.side, self.side):
            return image
        way = Image.Resampling.BOX if min(image.shape[:2]) >= self.side else Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(image).resize((self.side, self.side), way))


def _towers(place: Path, told: dict[str, Any]) -> Towers:
    from safetensors.torch import load_file

    towers = Towers(Shape.from_json(told["shape"]))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in load_file(place / "model.safetensors").items()}
    if broken := [k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise ValueError(f"{broken[0]} holds values that are no numbers")
    towers.load_state_dict(weights)
    return towers.eval().requires_grad_(False)


def _tokenizer(place: Path) -> Any:
    from transformers import CLIPTokenizer

    if not (place / "tokenizer.json").is_file():  # transformers would make one that knows no word
        raise ValueError("tokenizer.json is missing")
    return CLIPTokenizer.from_pretrained(str(place))
