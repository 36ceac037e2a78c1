"""CLIP's own vocabulary of 49,408 words, from the file in PyPI's `open_clip_torch`: what real checkpoints read with."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from test_launch import go

from dovetail.edges import words
from dovetail.edges.models import Models
from dovetail.engines import painter

LONG = ", ".join(f"a television number {n} with a wooden case and two antennas" for n in range(12))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion with the real tokenizer, 77 tokens at a time."""
    return tiny.write_base_with_clips_words(tmp_path_factory.mktemp("real words") / "base")


@pytest.fixture
def models(base: Path) -> Models:
    return Models(base, torch.device("cpu"))


def test_the_numbers_are_those_that_clip_gives(models: Models) -> None:
    assert len(models.tokenizer) == 49408 and models.tokenizer.model_max_length == 77
    assert models.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert models.tokenizer("A  Photo of\na CAT").input_ids == models.tokenizer("a photo of a cat").input_ids


@pytest.mark.parametrize(
    "text", ["", "   ", "Fernseher, 電視, télévision", "📺🐈", "<|endoftext|>", "a" * 600, "(((", "\u200b\ufeff"]
)
def test_any_text_has_states(models: Models, text: str) -> None:
    pieces = models.pieces(text)
    states = models.embed([text], pieces)
    assert states.shape == (1, 77 * pieces, tiny.WIDTH) and bool(states.isfinite().all())


def test_a_long_prompt_is_read_to_its_end(models: Models) -> None:
    assert models.pieces(LONG) == 3
    ends = [LONG + " at night", LONG + " at noon"]
    one, other = models.embed(ends, 3)
    assert torch.equal(one[:154], other[:154]) and not torch.equal(one[154:], other[154:])
    painted = painter.paint(models, [painter.Order(prompt=p, seed=1) for p in ends], steps=2, guidance_scale=4.0)
    assert (painted[0] != painted[1]).any()


def test_the_launch_command_learns_from_captions_of_any_length(base: Path, pictures: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / row["file_name"]).parent.mkdir(exist_ok=True)
        (folder / row["file_name"]).write_bytes((pictures / row["file_name"]).read_bytes())
        row["text"] = row["text"] + (", " + LONG) * (number % 2)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = go(base, folder, tmp_path / "out")
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_a_new_word_joins_the_49408(models: Models) -> None:
    words.add(models.tokenizer, models.text_encoder, "<screen>", 2, "television")
    ids = models.tokenizer("a photo of <screen> at night").input_ids
    assert len(models.tokenizer) >= 49409 and max(ids) >= 49408
    assert bool(models.embed(["a photo of <screen>"]).isfinite().all())
