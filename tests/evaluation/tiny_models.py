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


def write_vilt(folder: Path, labels: tuple[str, ...] = ("2", "no", "blue", "yes")) -> Path:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(5)
    words = _pieces(folder)
    config = ViltConfig(
        **TOWER, vocab_size=len(words), image_size=SIDE, patch_size=8, max_position_embeddings=TOKENS, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    ViltForQuestionAnswering(config).save_pretrained(folder)
    ViltProcessor(ViltImageProcessor(size={"shortest_edge": SIDE}), words).save_pretrained(folder)
    return folder


def write_blip(folder: Path, kind: str = "BlipForQuestionAnswering") -> Path:
    import transformers

    torch.manual_seed(6)
    words = _pieces(folder)
    text = TOWER | {
        "vocab_size": len(words), "max_position_embeddings": TOKENS, "encoder_hidden_size": WIDTH, "initializer_range": 0.5,
        "bos_token_id": words.cls_token_id, "sep_token_id": words.sep_token_id, "eos_token_id": words.sep_token_id,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = TOWER | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.5}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    getattr(transformers, kind)(config).save_pretrained(folder)
    pixels = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    transformers.BlipProcessor(pixels, words).save_pretrained(folder)
    return folder


def _pieces(folder: Path) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True)
    names = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.lower().split(), "?", ".", '"', "'", ":", ","])
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    return BertTokenizer(vocab={name: i for i, name in enumerate(names)}, model_max_length=TOKENS)


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def write_llava(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(7)
    words = whole_words("<image>")
    words.model_max_length = 256
    text = TOWER | {
        "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = TOWER | {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 8, "projection_dim": 8}
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(40)
    model.save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        pixels,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def write_smolvlm(folder: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    torch.manual_seed(8)
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    words = whole_words(*special)
    words.model_max_length = 512
    text = TOWER | {
        "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, "max_position_embeddings": 512,
        "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = TOWER | {"image_size": SIDE, "patch_size": 8}
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=2,
        pad_token_id=0,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    pixels = Idefics3ImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    Idefics3Processor(pixels, words, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)
    return folder
