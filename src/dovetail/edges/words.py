"""New words for a text encoder (Gal et al. 2022, textual inversion): a placeholder stands for one or several learnt vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dovetail.errors import BadConfigError, ModelError

NAME = "new_words"  # of the parameter, below the text encoder


def tokens_of(placeholder: str, vectors: int) -> list[str]:
    """The placeholder and its further vectors, named as diffusers does: `<tv>`, `<tv>_1`, ..."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, vectors))]


def add(tokenizer: Any, text_encoder: Any, placeholder: str, vectors: int, initializer: str) -> torch.nn.Parameter:
    """Put the new words in, each vector beginning as the mean of the `initializer`'s; returns them (vectors, width).

    They lie in a parameter of their own, looked up in place of the rows that the embedding has for them, so that no other row
    changes. Raises BadConfigError where the tokenizer has the placeholder already, or the initializer has no word.
    """
    old = text_encoder.get_input_embeddings().weight
    begin = tokenizer(initializer, add_special_tokens=False).input_ids
    if not begin:
        raise BadConfigError("the initializer has no word", do="give one that says roughly what the pictures show")
    first = len(tokenizer)
    if tokenizer.add_tokens(tokens_of(placeholder, vectors)) != vectors:
        raise BadConfigError(f"the tokenizer knows {placeholder} already", do="give another placeholder, like <my-thing>")
    rows = torch.nn.Parameter(old[begin].mean(0, keepdim=True).repeat(vectors, 1).detach().clone())
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text_encoder.requires_grad_(False)
    text_encoder.register_parameter(NAME, rows)

    def look_up(module: Any, asked: tuple[Tensor], found: Tensor) -> Tensor:
        own = text_encoder.get_parameter(NAME)
        new = (asked[0] >= first)[..., None]
        return torch.where(new, own[(asked[0] - first).clamp(0, vectors - 1)].to(found.dtype), found)

    text_encoder.hook = text_encoder.get_input_embeddings().register_forward_hook(look_up)
    text_encoder.first_new_word = first
    return rows


def put(text_encoder: Any, weights: Mapping[str, Tensor]) -> None:
    """Put what a training gave into the words that `add` made."""
    rows = text_encoder.get_parameter(NAME)
    if weights.keys() != {NAME} or weights[NAME].shape != rows.shape:
        raise ModelError("the learnt words do not fit what was asked for", do="train again with this placeholder")
    rows.data.copy_(weights[NAME])
    rows.requires_grad_(False)


def write(encoders: Mapping[str, Any], file: Path) -> None:
    """What `load_textual_inversion` of diffusers reads: name -> the vectors of a text encoder.

    The name is the placeholder; in a Stable Diffusion XL, whose two encoders have vectors each, `clip_l` and `clip_g`.
    """
    save_file({n: e.get_parameter(NAME).detach().cpu().contiguous() for n, e in encoders.items()}, file)


def fuse(text_encoder: Any) -> None:
    """Write the new words into the embedding, where other tools look for them."""
    rows = text_encoder.get_parameter(NAME).detach()
    text_encoder.get_input_embeddings().weight.data[text_encoder.first_new_word :] = rows
    text_encoder.hook.remove()
    del text_encoder.hook, text_encoder.first_new_word
    delattr(text_encoder, NAME)
