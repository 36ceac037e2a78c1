"""A judge from CLIP or SigLIP (transformers): 100 times the cosine between a picture's and a text's embedding."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from dovetail.errors import ModelError, first_line
from dovetail.evaluation import model_kinds

BATCH = 32  # pictures or texts at once
DO = "name a CLIP or SigLIP folder or hub id as [evaluation] judge"


class ClipJudge:
    """CLIP, SigLIP or SigLIP 2 of a folder or hub id, in float32, with the preprocessing that it was trained with.

    Raises ModelError in one line where the folder holds something else, or weights that are incomplete or broken.
    """

    def __init__(self, folder: str, *, device: str = "cpu") -> None:
        config = model_kinds.config_of(folder, do=DO)
        if config.get("model_type") not in model_kinds.CLIP_TYPES or model_kinds.kind_of(folder, config) != "clip":
            raise ModelError(f"{folder} is no CLIP: it is {model_kinds.described(config)}", do=DO)
        self.name = Path(folder).name if Path(folder).is_dir() else folder
        self.model = _loaded(folder).to(device)
        self.tokenizer = _tokenizer(folder, int(self.model.config.text_config.vocab_size))
        self.processor = _image_processor(folder, self.model.config)
        self.device = device
        limit = int(self.model.config.text_config.max_position_embeddings)
        self.max_tokens = min(int(self.tokenizer.model_max_length), limit)

    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """100 times the cosine of image i and text i: float64 (n,). NaN where the model gives none.

        A picture (the same object) or text that comes several times is embedded once.
        """
        if not len(texts):
            return np.zeros(0)
        pictures = {id(image): image for image in images}
        of_picture = dict(zip(pictures, self.embed_images(list(pictures.values())), strict=True))
        unique = list(dict.fromkeys(texts))
        of_text = dict(zip(unique, self.embed_texts(unique), strict=True))
        return np.array([100 * float(of_picture[id(i)] @ of_text[t]) for i, t in zip(images, texts, strict=True)])

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit vectors, float32 (n, width), of uint8 images (H, W, 3)."""
        vectors = [torch.zeros(0, self._width())]
        for start in range(0, len(images), BATCH):
            batch = self.processor([Image.fromarray(i) for i in images[start : start + BATCH]], return_tensors="pt")
            features = self.model.get_image_features(**batch.to(self.device))
            vectors.append(_projected(features).float().cpu())
        return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 (n, width). A text longer than the tower is cut before its end token, which CLIP reads."""
        vectors = [torch.zeros(0, self._width())]
        for start in range(0, len(texts), BATCH):
            tokens = self.tokens(texts[start : start + BATCH])
            features = self.model.get_text_features(**{name: ids.to(self.device) for name, ids in tokens.items()})
            vectors.append(_projected(features).float().cpu())
        return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the text tower reads of texts: ids (n, max_tokens), and for CLIP their mask."""
        cut = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens}
        read = self.tokenizer(list(texts), **cut, return_tensors="pt")
        ids, end = read["input_ids"], self.tokenizer.eos_token_id
        if end is not None and self.model.config.model_type == "clip":
            endless = ~(ids == end).any(dim=1)  # a tokenizer without a post-processor cuts its end token off, too
            ids[endless, -1] = end
        if self.model.config.model_type == "clip":
            return {"input_ids": ids, "attention_mask": read["attention_mask"]}
        return {"input_ids": ids}  # SigLIP learned with its padding in sight (Zhai et al. 2023)

    def _width(self) -> int:
        config = self.model.config
        return int(config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size)


def _loaded(folder: str) -> Any:
    try:
        model, told = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # safetensors, the hub and transformers raise classes of their own
        raise ModelError(f"cannot load the judge {folder}: {first_line(error)}", do=DO) from error
    if missing := sorted(told["missing_keys"]):
        # They would be drawn at random, and the judge would judge at random.
        raise ModelError(f"the judge {folder} lacks {len(missing)} weights, {missing[0]} among them", do=DO)
    return model.eval().requires_grad_(False)


def _read(folder: str, what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        raise ModelError(f"the judge {folder} has no {what} that can be read: {first_line(error)}", do=DO) from error


def _tokenizer(folder: str, vocabulary: int) -> Any:
    tokenizer = _read(folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder))
    one, other = (tokenizer(text).input_ids for text in ("red", "dog"))
    if one == other:  # where its files are missing, transformers makes one that knows no word
        raise ModelError(f"the judge {folder} has no tokenizer that tells words apart", do="download the model again")
    if max(*one, *other) >= vocabulary:
        raise ModelError(f"the tokenizer of the judge {folder} is another model's", do="download the model again")
    return tokenizer


def _image_processor(folder: str, config: Any) -> Any:
    """The model's own preprocessing by Pillow, which gives the same pixels on every machine.

    What its file leaves out follows the picture tower: a size for another one would be cut or padded.
    """
    told = _own_preprocessing(folder)
    own: dict[str, Any] = {}
    if config.model_type != "siglip2":  # whose pictures are as many patches as they are
        side = int(config.vision_config.image_size)
        square = {"height": side, "width": side}
        if "size" not in told:
            own["size"] = {"shortest_edge": side} if config.model_type == "clip" else square
        if config.model_type == "clip" and "crop_size" not in told:
            own["crop_size"] = square
    if told:
        processor = _read(folder, "preprocessing", lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **own))
    else:
        processor = _defaults(config.model_type, own)
    if config.model_type != "siglip2":
        found = tuple(processor([Image.new("RGB", (side + 3, side))], return_tensors="pt")["pixel_values"].shape[-2:])
        if found != (side, side):
            raise ModelError(
                f"the judge {folder} prepares pictures of {found[0]}x{found[1]} for a tower of {side}x{side}",
                do="correct size and crop_size in its preprocessor_config.json",
            )
    return processor


def _own_preprocessing(folder: str) -> dict[str, Any]:
    if Path(folder).is_dir():
        files = [Path(folder) / name for name in ("preprocessor_config.json", "processor_config.json")]
    else:
        from transformers.utils import cached_file

        named = (cached_file(folder, n, _raise_exceptions_for_missing_entries=False) for n in ("preprocessor_config.json",))
        files = [Path(found) for found in named if found]
    for file in files:
        if file.exists():
            told = _read(folder, "preprocessing", lambda: json.loads(file.read_text(encoding="utf-8")))  # noqa: B023
            return dict(told.get("image_processor", told))
    return {}


def _defaults(model_type: str, own: dict[str, Any]) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    kinds = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil, "siglip2": Siglip2ImageProcessorPil}
    return kinds[model_type](**own)


def _projected(features: Any) -> Tensor:
    """Older transformers return the projected features, newer ones an output that holds them."""
    return features if isinstance(features, Tensor) else features.pooler_output
