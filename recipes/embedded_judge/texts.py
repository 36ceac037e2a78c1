"""The tokenizer of the judge, and batches of texts as token numbers."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from recipes.embedded_base import tokenizer as base_tokenizer
from recipes.embedded_base.whole import whole

from . import lessons

TOKENS = 40  # of the longest text
MERGED = 7500  # tokens


class Encoder:
    """The tokenizer's answers, remembered word by word: the tokenizer splits at words anyway."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer, self.known = tokenizer, {}
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def tokens(self, text: str) -> list[int]:
        """Token numbers with start and end."""
        found = [self.start]
        for word in text.split():
            if word not in self.known:
                self.known[word] = self.tokenizer(word, add_special_tokens=False).input_ids
            found += self.known[word]
        return [*found[: TOKENS - 1], self.end]

    def batches(self, texts: list[str], parts: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(numbers of texts, tokens, mask) of texts of about the same length."""
        rows = [self.tokens(t) for t in texts]
        order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
        found = []
        for part in range(parts):
            chosen = order[part * len(order) // parts : (part + 1) * len(order) // parts]
            if not chosen:
                continue
            tokens = torch.full((len(chosen), max(len(rows[k]) for k in chosen)), self.end)
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            for line, k in enumerate(chosen):
                tokens[line, : len(rows[k])] = torch.tensor(rows[k])
                mask[line, : len(rows[k])] = True
            found.append((torch.tensor(chosen), tokens, mask))
        return found


def make_tokenizer(art: lessons.Art, out: Path) -> CLIPTokenizer:
    """The tokenizer in `out`, trained on the names and captions where it is not there yet."""
    if not (out / "tokenizer").exists():
        with whole(out / "tokenizer") as folder:
            base_tokenizer.train(lessons.corpus(art), MERGED, TOKENS).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(out / "tokenizer")
