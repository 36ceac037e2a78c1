"""Stage 2 of the embedded base: a CLIP byte-pair tokenizer over the recipe's own captions."""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from . import icons, scenes
from .whole import whole

LENGTH = 32  # tokens, start and end mark included
MERGED = 2048
WORDS = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


def corpus(downloads: Path, count: int = 20_000) -> list[str]:
    """Captions of `count` scenes, the words of the vocabulary, and the icon names of all sets as general English."""
    pairs = [(thing, name) for thing in icons.THINGS for name, style in icons.STYLE_WORDS.items() if style]
    lines = []
    for index in range(count):
        rng = np.random.default_rng([13, index])
        lines.append(scenes.describe(rng, scenes.draw_scene(rng, pairs), icons.STYLE_WORDS))
    lines += [word for word in icons.VOCABULARY["words"]["extra"] for _ in range(200)]
    for name in icons.SETS:
        lines += [icon.replace("-", " ") for icon in icons.read_set(downloads / name)["icons"]]
    return lines


def train(lines: list[str], merged: int = MERGED, length: int = LENGTH) -> CLIPTokenizer:
    """A CLIPTokenizer of about `merged` tokens (lower case, end-of-word marks, start and end tokens as CLIP's)."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=merged,
        min_frequency=2,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    model = json.loads(bpe.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet]
    tokens += [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = train(corpus(args.downloads))
    with whole(args.out / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    print(len(tokenizer), tokenizer.tokenize("a shaded drawing of an old television on a teal background, ünïcode 🙂 42"))


if __name__ == "__main__":
    main()
