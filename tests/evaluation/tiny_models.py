"""Tiny models of the real classes, with tokenizers made here: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)

SIDE, TOKENS, WIDTH = 32, 16, 16
TOWER = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
WORDS = "yes no Yes No does this picture show answer or a an the red blue green cat dog television on background user assistant"


def byte_pairs() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("o", "n</w>")]
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=TOKENS)


def whole_words(*special: str, lower: bool = False, end: str = "") -> PreTrainedTokenizerFast:
    """One token a word, the rest unknown; with an end token behind every text where one is named."""
    names = dict.fromkeys(["<pad>", "<unk>", "<s>", "</s>", *special, *WORDS.split(), "?", ".", '"', ":", ","])
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    if end:
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, list(names).index(end))]
        )
    backend.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=TOKENS, extra_special_tokens=list(special),
    )  # fmt: skip
    made.padding_side = "right"
    return made


def letters() -> Siglip2Tokenizer:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    return Siglip2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=TOKENS)


def write_clip(folder: Path, **preprocessing: Any) -> Path:
    torch.manual_seed(3)
    words = byte_pairs()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = TOWER | ends | {"vocab_size": len(words), "max_position_embeddings": TOKENS, "projection_dim": 8}
    vision = TOWER | {"image_size": SIDE, "patch_size": 8, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=8.0)).save_pretrained(
        folder
    )
    words.save_pretrained(folder)
    told = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}} | preprocessing
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def write_siglip(folder: Path, *, version: int = 1) -> Path:
    torch.manual_seed(4)
    words = whole_words(lower=True, end="</s>") if version == 1 else letters()
    text = TOWER | {
        "vocab_size": len(words),
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "max_position_embeddings": TOKENS,
        "projection_size": WIDTH,
    }
    if version == 1:
        vision = TOWER | {"image_size": SIDE, "patch_size": 8}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        told: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    else:
        vision = TOWER | {"num_patches": 16, "patch_size": 8}
        Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
        told = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder
