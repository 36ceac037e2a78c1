"""The judge: a CLIP model that says how well a picture and a text go together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from dovetail.errors import ModelError, first_line


class Judge:
    """A CLIP model that says how well a picture and a text go together."""

    def __init__(self, folder: str) -> None:
        try:
            self.model = (
                CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().requires_grad_(False)
            )
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        except Exception as error:
            raise ModelError(
                f"cannot load the judge {folder}: {first_line(error)}",
                do="name a CLIP folder or hub id as [evaluation] judge",
            ) from error
        self.side = int(self.model.config.vision_config.image_size)
        own = Path(folder) / "preprocessor_config.json"
        told = json.loads(own.read_text()) if own.exists() else {}
        self.mean = np.array(told.get("image_mean", (0.48145466, 0.4578275, 0.40821073)), np.float32)
        self.std = np.array(told.get("image_std", (0.26862954, 0.26130258, 0.27577711)), np.float32)

    @torch.no_grad()
    def pictures(self, pictures: list[np.ndarray]) -> Tensor:
        """Unit vectors (pictures, width) of uint8 (H, W, 3), resized to the judge's side by bicubic interpolation."""
        from PIL import Image

        if not pictures:
            return torch.zeros(0, self.model.config.projection_dim)
        ready = [np.asarray(Image.fromarray(p).resize((self.side, self.side), Image.Resampling.BICUBIC)) for p in pictures]
        batch = (np.stack(ready).astype(np.float32) / 255 - self.mean) / self.std
        vectors = []
        for part in torch.from_numpy(batch).permute(0, 3, 1, 2).split(64):
            vectors.append(_tensor(self.model.get_image_features(pixel_values=part)))
        return torch.nn.functional.normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (texts, width)."""
        if not texts:
            return torch.zeros(0, self.model.config.projection_dim)
        length = min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        vectors = _tensor(self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=None))
        return torch.nn.functional.normalize(vectors, dim=-1)


def _tensor(features: Any) -> Tensor:
    """Older transformers return the projected features, newer ones an output that holds them."""
    return features if isinstance(features, Tensor) else features.pooler_output
